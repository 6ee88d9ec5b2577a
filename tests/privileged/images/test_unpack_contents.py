"""Contents of files of all sizes, over several of the chunks that layers are read in; and however a layer
ends, no thread and no descriptor is left."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.images.errors import UnpackError
from runtime.images.plain import CHUNK
from runtime.images.unpack import unpack_layer
from tests.unit.images.build import digest, info, tar_of

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away and mounts"),
]

LARGE = 1 << 16
Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """An empty folder; afterwards there must be no thread and no descriptor more than before."""
    folder = tmp_path / "layer"
    folder.mkdir()
    before = sorted(os.listdir("/proc/self/fd")), threading.active_count()
    yield folder
    assert (sorted(os.listdir("/proc/self/fd")), threading.active_count()) == before


@pytest.fixture
def small_disk(target: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small-disk", target], check=True)
    yield target
    subprocess.run(["umount", target], check=True)


def large(name: str, size: int = LARGE, **fields: object) -> Member:
    return info(name, **fields), random.Random(name).randbytes(size)


def test_contents_and_what_writing_would_take_come_out_as_in_the_archive(target: Path) -> None:
    sizes = (LARGE - 1, LARGE, 1, CHUNK - 1000, CHUNK, 3 * CHUNK + 7, 0, 5)
    members = [
        large(f"file{number}", size, mode=0o4755, uid=7, gid=8, mtime=1000 + number)
        for number, size in enumerate(sizes * 3)
    ]
    members[3][0].pax_headers = {"SCHILY.xattr.user.note": "hi"}
    data = tar_of([(info("folder", tarfile.DIRTYPE, mode=0o755, mtime=9), b""), *members])
    assert unpack_layer(io.BytesIO(data), target).diff_id == digest(data)
    for member, content in members:
        status = (target / member.name).stat()
        assert digest((target / member.name).read_bytes()) == digest(content)
        found = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime
        assert found == (0o4755, 7, 8, member.mtime)
    assert os.getxattr(target / "file3", "user.note") == b"hi"


def test_links_to_a_file_keep_its_content_when_another_takes_its_name(target: Path) -> None:
    link = info("link", tarfile.LNKTYPE, linkname="first")
    members = [large("first", 2 * CHUNK, mtime=5), (link, b""), (info("first", mtime=6), b"2"), large("d/x")]
    folder = info("d", mtime=7), b"3"
    unpack_layer(io.BytesIO(tar_of([*members, folder])), target)
    assert (target / "link").read_bytes() == members[0][1] and (target / "link").stat().st_mtime == 5
    assert (target / "first").read_bytes() == b"2" and (target / "d").read_bytes() == b"3"


def test_a_full_disk_is_an_error_of_the_file_that_met_it(small_disk: Path) -> None:
    members = [large("fits", 3 * LARGE), large("too-large", 2 * CHUNK)]
    members += [large(f"more{number}") for number in range(40)]
    with pytest.raises(UnpackError, match=r"too-large.*ENOSPC.*free some disk space"):
        unpack_layer(io.BytesIO(tar_of(members)), small_disk)


def test_a_reserved_attribute_of_a_large_file_is_refused(target: Path) -> None:
    member = large("file")
    member[0].pax_headers = {"SCHILY.xattr.trusted.overlay.opaque": "y"}
    with pytest.raises(UnpackError, match=r"file.*trusted\.overlay\.opaque is reserved"):
        unpack_layer(io.BytesIO(tar_of([member, *(large(f"more{n}") for n in range(40))])), target)
    assert not os.listxattr(target / "file")


def test_an_archive_that_ends_within_a_large_file_is_refused(target: Path) -> None:
    data = tar_of([large("whole"), large("cut", 3 * CHUNK)])
    for length in (LARGE + 4096, CHUNK, 2 * CHUNK + 5):
        with pytest.raises(UnpackError, match="ends in the middle of an entry"):
            unpack_layer(io.BytesIO(data[:length]), target)
        for file in target.iterdir():
            file.unlink()


def test_an_error_elsewhere_leaves_no_thread_and_no_descriptor(target: Path) -> None:
    members = [large(f"file{number}", 4 * LARGE) for number in range(20)]
    evil = info("../outside"), b"evil"
    with pytest.raises(UnpackError, match="leads out of the layer"):
        unpack_layer(io.BytesIO(tar_of([*members, evil, *members])), target)
