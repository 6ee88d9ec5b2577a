"""I01: layers are written by strangers and unpacked by root."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from runtime.images.errors import UnpackError
from runtime.images.unpack import Limits, Unpacked, unpack_layer
from tests.unit.images.build import digest, info, tar_of

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts are device nodes, which only root makes"),
]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder with a neighbour that must stay as it is."""
    (tmp_path / "outside").write_text("untouched")
    folder = tmp_path / "a" / "layer"
    folder.mkdir(parents=True)
    return folder


def unpack(target: Path, *members: tuple[tarfile.TarInfo, bytes], limits: Limits | None = None) -> Unpacked:
    return unpack_layer(io.BytesIO(tar_of(members)), target, limits)


def file(name: str, content: bytes = b"evil", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return info(name, **fields), content


def folder(name: str, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return info(name, tarfile.DIRTYPE, **{"mode": 0o755, **fields}), b""


def symlink(name: str, where: str) -> tuple[tarfile.TarInfo, bytes]:
    return info(name, tarfile.SYMTYPE, linkname=where), b""


def hardlink(name: str, where: str) -> tuple[tarfile.TarInfo, bytes]:
    return info(name, tarfile.LNKTYPE, linkname=where), b""


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, "trusted.overlay.opaque") == b"y"
    except OSError as error:
        assert error.errno == errno.ENODATA
        return False


def test_files_keep_mode_owner_time_links_and_attributes(target: Path) -> None:
    capable, _ = file("bin/ping")
    capable.pax_headers = {"SCHILY.xattr.user.note": "hi"}
    data = tar_of(
        [
            folder("bin/", mode=0o750, uid=3, gid=4, mtime=11),
            (capable, b"x"),
            file("bin/su", mode=0o4755, uid=5, mtime=12),
            hardlink("bin/sudo", "bin/su"),
            symlink("sh", "/bin/bash"),
            (info("pipe", tarfile.FIFOTYPE, mode=0o620), b""),
        ]
    )
    found = unpack_layer(io.BytesIO(data), target)
    assert (found.diff_id, found.entries) == (digest(data), 6)
    status = (target / "bin/su").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime, status.st_nlink) == (
        0o4755,
        5,
        12,
        2,
    )
    parent = (target / "bin").stat()
    assert (stat.S_IMODE(parent.st_mode), parent.st_uid, parent.st_gid, parent.st_mtime) == (0o750, 3, 4, 11)
    assert os.readlink(target / "sh") == "/bin/bash"
    assert stat.S_IMODE((target / "pipe").stat().st_mode) == 0o620 and (target / "pipe").is_fifo()
    assert os.getxattr(target / "bin/ping", "user.note") == b"hi"


def test_missing_parents_are_made(target: Path) -> None:
    unpack(target, file("a/b/c", b"1"))
    assert (target / "a/b/c").read_bytes() == b"1"
    assert stat.S_IMODE((target / "a/b").stat().st_mode) == 0o755


def test_later_entries_replace_earlier_ones(target: Path) -> None:
    unpack(target, folder("x"), file("x/y"), file("x", b"2"), file("z"), folder("z"), file("z/f", b"3"))
    assert (target / "x").read_bytes() == b"2" and (target / "z/f").read_bytes() == b"3"


def test_whiteouts_become_what_overlayfs_expects(target: Path) -> None:
    unpack(
        target, file("etc/.wh.gone", b""), folder("var"), file("var/.wh..wh..opq", b""), file("var/new", b"n")
    )
    assert is_whiteout(target / "etc/gone")
    assert opaque(target / "var") and (target / "var/new").read_bytes() == b"n"


@pytest.mark.parametrize("first", ["whiteout", "folder"])
def test_a_whiteout_hides_lower_layers_but_not_its_own(target: Path, first: str) -> None:
    """The order of a whiteout and what replaces it does not matter (OCI image spec, layer, Whiteouts)."""
    content = [folder("d"), file("d/own", b"1")]
    mark = [file(".wh.d", b"")]
    unpack(target, *(mark + content if first == "whiteout" else content + mark))
    assert opaque(target / "d") and (target / "d/own").read_bytes() == b"1"


def test_names_in_a_linked_folder_land_inside_the_layer(target: Path) -> None:
    """An absolute link is the layer's own /usr, not the host's: the kernel resolves it (RESOLVE_IN_ROOT)."""
    unpack(target, folder("usr"), folder("usr/lib"), symlink("lib", "/usr/lib"), file("lib/x", b"1"))
    assert (target / "usr/lib/x").read_bytes() == b"1"


@pytest.mark.parametrize("where", ["../../outside", "/../../../outside", "/outside", "a/../../../outside"])
def test_links_cannot_lead_a_file_out(target: Path, where: str) -> None:
    """CVE-2025-4517 and its kind: a link first, then a file through it."""
    outside = target.parent.parent / "outside"
    with pytest.raises(UnpackError):
        unpack(target, symlink("up", where), file("up/x"))
    unpack(target, symlink("to", str(outside)), file("to"))
    assert outside.read_text() == "untouched" and (target / "to").read_bytes() == b"evil"


def test_a_relative_link_chain_stays_inside(target: Path) -> None:
    deep = [folder("d"), symlink("d/up", "../../.."), file("d/up/outside")]
    unpack(target, *deep)
    assert (target.parent.parent / "outside").read_text() == "untouched"
    assert (target / "outside").read_bytes() == b"evil"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "a/.."])
def test_names_with_dots_are_refused(target: Path, name: str) -> None:
    """CVE-2007-4559."""
    with pytest.raises(UnpackError, match="leads out"):
        unpack(target, file(name))
    assert sorted(item.name for item in target.parent.parent.iterdir()) == ["a", "outside"]


def test_absolute_names_are_the_layers_own(target: Path) -> None:
    unpack(target, file("/abs/x", b"1"))
    assert (target / "abs/x").read_bytes() == b"1"


@pytest.mark.parametrize("where", ["../../outside", "/etc/passwd", "missing", ".", "self"])
def test_hard_links_to_elsewhere_are_refused(target: Path, where: str) -> None:
    with pytest.raises(UnpackError):
        unpack(target, hardlink("self", where))
    assert (target.parent.parent / "outside").stat().st_nlink == 1


def test_a_hard_link_through_a_link_does_not_reach_the_host(target: Path) -> None:
    with pytest.raises(UnpackError):
        unpack(target, symlink("s", str(target.parent.parent)), hardlink("h", "s/outside"))
    unpack(target, symlink("p", str(target.parent.parent / "outside")), hardlink("q", "p"))
    assert (target / "q").is_symlink()


@pytest.mark.parametrize("name", [".wh...", ".wh..", ".wh."])
def test_whiteouts_of_dots_are_refused(target: Path, name: str) -> None:
    with pytest.raises(UnpackError, match="whiteout"):
        unpack(target, file(f"d/{name}"))


def device(name: str, kind: bytes, major: int, minor: int, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return info(name, kind, devmajor=major, devminor=minor, **fields), b""


@pytest.mark.parametrize("where", ["dev/null", "srv/chroot/dev/null"])
def test_devices_that_every_container_has_are_made(target: Path, where: str) -> None:
    made = device(where, tarfile.CHRTYPE, 1, 3, mode=0o666, uid=3, gid=4, mtime=11)
    unpack(target, file(where), made, made)
    status = (target / where).lstat()
    assert (stat.S_ISCHR(status.st_mode), status.st_rdev) == (True, os.makedev(1, 3))
    found = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime
    assert found == (0o666, 3, 4, 11)


@pytest.mark.parametrize(
    ("kind", "major", "minor"),
    [(tarfile.BLKTYPE, 8, 0), (tarfile.CHRTYPE, 1, 1), (tarfile.BLKTYPE, 1, 3), (tarfile.CHRTYPE, 0, 0)],
    ids=["disk", "memory", "a block device with null's number", "overlayfs' whiteout"],
)
def test_other_devices_are_refused_outside_of_dev_and_left_out_inside(
    target: Path, kind: bytes, major: int, minor: int
) -> None:
    with pytest.raises(UnpackError, match=f"device {major}:{minor}"):
        unpack(target, device("node", kind, major, minor))
    unpack(target, device("dev/node", kind, major, minor))
    assert not (target / "node").exists() and not (target / "dev/node").exists()


def test_attributes_that_steer_overlayfs_are_refused(target: Path) -> None:
    member, content = file("f")
    member.pax_headers = {"SCHILY.xattr.trusted.overlay.redirect": "/etc"}
    with pytest.raises(UnpackError, match="reserved"):
        unpack(target, (member, content))


@pytest.mark.parametrize(
    ("limits", "why"),
    [(Limits(entries=2), "2 entries"), (Limits(bytes=4096), "4096 bytes"), (Limits(path=20), "path has")],
)
def test_limits_are_kept(target: Path, limits: Limits, why: str) -> None:
    members = [file("a", b"x" * 2000), file("b", b"x" * 2000), file("c" * 30, b"")]
    with pytest.raises(UnpackError, match=why):
        unpack(target, *members, limits=limits)


def test_a_parent_that_is_a_file_is_refused(target: Path) -> None:
    with pytest.raises(UnpackError, match="ENOTDIR"):
        unpack(target, file("f"), file("f/x"))
