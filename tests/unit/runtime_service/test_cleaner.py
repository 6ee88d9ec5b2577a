"""Who waits for what was given up, waits until it is off the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from runtime import recovery
from runtime.cleaner import Cleaner


def test_a_wait_ends_when_what_was_added_before_is_gone(tmp_path: Path) -> None:
    cleaner = Cleaner(cast(Any, None))
    folders = [tmp_path / f"c{number}" for number in range(3)]
    for folder in folders:
        (folder / "upper").mkdir(parents=True)
        (folder / "upper/file").write_text("x")
        cleaner.add(recovery.give_up(folder))
    assert not cleaner.wait(0), "nobody clears yet"
    cleaner.start()
    assert cleaner.wait(60)
    assert list(tmp_path.iterdir()) == []
    cleaner.close()


def test_a_folder_that_cannot_be_cleared_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cleaner = Cleaner(cast(Any, None))
    cleaner.start()
    (tmp_path / "file").write_text("x")
    cleaner.add(tmp_path / "file")
    assert cleaner.wait(60)
    cleaner.close()
    assert "left for the next start" in caplog.text
