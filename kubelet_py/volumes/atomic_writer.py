"""Files of a volume that all change at once.

The files live in a folder `..<time>.<random>`; `..data` is a symlink to it, every visible name is a
symlink through `..data`. Renaming a new `..data` over the old one exchanges everything in one step: a reader
sees all old files or all new ones. Names and layout are upstream's (volume/util/atomic_writer.go), because
programs watch for `..data`.

The folder is ours alone until it is bound into a container, and a container sees it read-only or can change
only what it sees; removal never follows a symlink out of the volume (CVE-2017-1002102).
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kubelet_py.errors import VolumeError

DATA = "..data"


@dataclass(frozen=True, slots=True)
class File:
    """One file of the payload: its bytes, its permission bits, and its owner where that matters."""

    data: bytes
    mode: int = 0o644
    uid: int | None = None


Payload = Mapping[str, File]


def check_path(path: str) -> None:
    """Refuse absolute paths, "..", and names that would clash with ours."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or parts[0].startswith(".."):
        raise VolumeError(f"invalid path {path!r}: it must be relative, without '..'")


def write(folder: Path, payload: Payload, group: int | None = None) -> bool:
    """Make the folder hold exactly `payload`; True when something changed. `group`: fsGroup."""
    for path in payload:
        check_path(path)
    current = folder / DATA
    old = _current(folder)
    if old is not None and _same(folder / old, payload):
        return False
    stamp = time.strftime("..%Y_%m_%d_%H_%M_%S.", time.gmtime()) + secrets.token_hex(4)
    fresh = folder / stamp
    fresh.mkdir(mode=0o755)
    fresh.chmod(0o755)
    for path, file in payload.items():
        if "/" in path:
            (fresh / path).parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        _write_file(f"{fresh}/{path}", file, group)
    if group is not None:
        _hand_over(fresh, group)
    _replace_link(current, stamp)
    _links(folder, payload)
    if old is not None:
        shutil.rmtree(folder / old)
    return True


def _current(folder: Path) -> str | None:
    """The folder that holds the present files; None when `..data` is missing or not of our making: what it
    names is removed later, so it may only name a real folder beside it."""
    link = folder / DATA
    target = os.readlink(link) if link.is_symlink() else ""
    ours = target.startswith("..") and len(target) > 2 and "/" not in target
    return target if ours and (folder / target).is_dir() and not (folder / target).is_symlink() else None


def _write_file(path: str, file: File, group: int | None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(file.data)
        mode = file.mode
        if group is not None:
            mode |= 0o440 if file.uid is None else 0
        if file.uid is not None or group is not None:
            os.fchown(descriptor, -1 if file.uid is None else file.uid, -1 if group is None else group)
        os.fchmod(descriptor, mode)


def _hand_over(fresh: Path, group: int) -> None:
    """The folders, too, as upstream gives read-only volumes to an fsGroup; nobody else knows them yet."""
    for folder in [fresh, *(path for path in fresh.rglob("*") if path.is_dir())]:
        os.chown(folder, -1, group)
        folder.chmod(0o2755)


def _links(folder: Path, payload: Payload) -> None:
    """One symlink per first path component; those of files that are gone go too."""
    wanted = {PurePosixPath(path).parts[0] for path in payload}
    with os.scandir(folder) as entries:
        present = {entry.name for entry in entries if entry.is_symlink()}
    for name in wanted - present:
        _replace_link(folder / name, f"{DATA}/{name}")
    for name in present - wanted - {DATA}:
        os.unlink(folder / name)


def _replace_link(link: Path, target: str) -> None:
    try:
        os.symlink(target, link)
        return
    except FileExistsError:
        pass
    temporary = link.with_name(f"..tmp_{secrets.token_hex(4)}")
    temporary.symlink_to(target)
    temporary.rename(link)


def _same(folder: Path, payload: Payload) -> bool:
    found = {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    if set(found) != set(payload):
        return False
    return all(found[path].read_bytes() == file.data for path, file in payload.items())
