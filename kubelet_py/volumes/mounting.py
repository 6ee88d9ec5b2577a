"""The few mounts that the agent itself makes on the host: tmpfs for what must not touch a disk, subPaths,
the roots of image volumes, huge pages; and what the host says about a mount that a container is to share."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from kubelet_py.errors import VolumeError

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
PAGE = 4096
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8


def mount_points() -> list[Path]:
    """Where something is mounted, in the order of mounting."""
    return [Path(point) for point, _ in _mounts()]


def is_mounted(folder: Path) -> bool:
    """Whether something is mounted at exactly this path."""
    wanted = str(folder)
    return any(path == wanted for path, _ in _mounts())


def unmount_below(folder: Path) -> None:
    """Unmount what is mounted below `folder`, the deepest first (volumes on tmpfs, subPaths)."""
    for place in reversed(mount_points()):
        if folder in place.parents:
            unmount(place)


def _mounts() -> Iterator[tuple[str, list[str]]]:
    """(mount point, its optional fields such as "shared:5") of every mount, in the order of mounting."""
    # The kernel escapes space, tab, newline and backslash only: what else Python takes for one is of a name.
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for line in file:
            fields = line.rstrip("\n").split(" ")
            yield _plain(fields[4]), fields[6 : fields.index("-")]


def _plain(text: str) -> str:
    """mountinfo writes blanks and backslashes as octal escapes."""
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escaped, plain)
    return text


def propagation_of(path: Path) -> tuple[str, set[str]]:
    """The mount point that `path` lies on, and how it propagates: "shared", "master" (a slave) or nothing."""
    real = os.path.realpath(path)
    found, kinds = "/", set[str]()
    for point, tags in _mounts():
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found):
            found, kinds = point, {tag.partition(":")[0] for tag in tags}
    return found, kinds


def mount_tmpfs(
    folder: Path, *, size: int | None = None, mode: int = 0o755, execute: bool = True
) -> None:
    """Mount a tmpfs unless one is there; `size` in bytes."""
    # Quicker than reading all mounts, and enough for another file system.
    if os.lstat(folder).st_dev != os.lstat(folder.parent).st_dev:
        return
    options = f"mode={mode:o}" + (f",size={size}" if size else "")
    flags = MS_NOSUID | MS_NODEV | (0 if execute else MS_NOEXEC)
    _mount("tmpfs", folder, "tmpfs", flags, options, f"Could not mount tmpfs on {folder}")


def mount_huge_pages(folder: Path, page_bytes: int) -> None:
    """Mount a hugetlbfs with pages of that size unless one is there; VolumeError where the node has none."""
    if is_mounted(folder):
        return
    what = f"Could not mount huge pages of {page_bytes} bytes on {folder}"
    _mount("nodev", folder, "hugetlbfs", MS_NOSUID | MS_NODEV, f"pagesize={page_bytes}", what)


def mount_layers(folder: Path, layers: Sequence[str]) -> None:
    """Show an image's layers (top first) at `folder`, read-only and without executing, unless they are."""
    if is_mounted(folder):
        return
    what = f"Could not mount an image of {len(layers)} layers on {folder}"
    flags = MS_RDONLY | MS_NOEXEC | MS_NODEV | MS_NOSUID
    if not layers:
        _mount("tmpfs", folder, "tmpfs", flags, "size=4k,nr_inodes=1", what)
    elif len(layers) == 1:
        bind(layers[0], folder)
        try:
            _mount(None, folder, None, MS_BIND | MS_REMOUNT | flags, None, what)
        except VolumeError:
            unmount(folder)
            raise
    else:
        # Without an upper folder an overlay is read-only by itself.
        data = f"lowerdir={':'.join(map(_escaped, layers))}"
        if len(os.fsencode(data)) >= PAGE:
            raise VolumeError(f"{what}: E2BIG (its layers' paths do not fit a page)")
        _mount("overlay", folder, "overlay", flags, data, what)


def _escaped(layer: str) -> str:
    """A path as overlayfs reads it in a list."""
    for special in ("\\", ":", ","):
        layer = layer.replace(special, f"\\{special}")
    return layer


def bind(source: str, target: Path) -> None:
    """Bind `source` onto an existing path of the same sort."""
    _mount(source, target, None, MS_BIND, None, f"Could not bind onto {target}")


@cache
def _libc() -> ctypes.CDLL:
    """Opened once: each time anew costs as much as a small mount."""
    return ctypes.CDLL(None, use_errno=True)


def _mount(
    source: str | None, target: Path, kind: str | None, flags: int, data: str | None, what: str
) -> None:
    libc = _libc()
    texts = [None if text is None else os.fsencode(text) for text in (source, kind, data)]
    if libc.mount(texts[0], os.fsencode(target), texts[1], ctypes.c_ulong(flags), texts[2]) != 0:
        code = ctypes.get_errno()
        raise VolumeError(f"{what}: {errno.errorcode.get(code, code)}")


def below(folder: Path) -> list[Path]:
    """Everything that is mounted at or below `folder`, the last mount first."""
    real = os.path.realpath(folder)
    points = [point for point, _ in _mounts() if point == real or point.startswith(f"{real}/")]
    return [Path(point) for point in reversed(points)]


def unmount(folder: Path) -> None:
    """Detach what is mounted at the path; nothing where nothing is."""
    libc = _libc()
    if libc.umount2(os.fsencode(folder), MNT_DETACH | UMOUNT_NOFOLLOW) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT):
            raise VolumeError(f"Could not unmount {folder}: {errno.errorcode.get(code, code)}")
