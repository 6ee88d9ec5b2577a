"""Large files' contents where closing one fails: some file systems tell only then that they are full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.images.errors import UnpackError
from runtime.images.large import LARGE, LargeFiles
from runtime.images.tarstream import Entry


def closed_early(descriptor: int, entry: Entry) -> None:
    """What follows is a close(2) that fails."""
    os.close(descriptor)


@pytest.mark.parametrize("files", [1, 100])
def test_a_file_that_cannot_be_closed_fails_the_layer(tmp_path: Path, files: int) -> None:
    """With many, too, of which the thread's queue holds only the first."""
    content = memoryview(bytes(LARGE))
    writer = LargeFiles(closed_early, lambda entry, error: UnpackError(f"{entry.name!r}: {error.strerror}"))
    with pytest.raises(UnpackError, match="b'0': Bad file descriptor"), writer:
        writer.prepare()
        for number in range(files):
            descriptor = os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY)
            writer.take(descriptor, Entry(str(number).encode(), "file", 0, 0, 0, LARGE, 0), [content])
        writer.finish()
