"""Users and groups as an image knows them: /etc/passwd and /etc/group are read, never believed beyond names.

The agent needs numbers before a container exists (runAsNonRoot must be decided, spec.process.user filled in),
so the files are looked for in the image's layers themselves. A path in a layer may be a symlink that means
"from the root of the image"; openat2(RESOLVE_IN_ROOT) keeps it in the layer, and a whiteout (character device
0:0) hides what is below.
"""

from __future__ import annotations

import errno
import os
import posixpath

from runtime.errors import UserError
from runtime.kernel import Kernel
from runtime.mounting import open_inside
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LARGEST_FILE = 4 << 20
LARGEST_ID = 2**32 - 2
LONGEST_NUMBER = 20  # digits, zeroes in front included
_S_IFMT, _S_IFCHR, _S_IFREG, _S_IFLNK = 0o170000, 0o020000, 0o100000, 0o120000
_LINKS = 40


class User(Record):
    """`groups`: the supplementary groups /etc/group lists for the user's name, without the primary one.
    `name` and `home` are "" and "/" when the image does not know the uid."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    name: str = ""
    home: str = "/"


def resolve(user: str, passwd: str, group: str, *, keep_groups: bool = False) -> User:
    """`user` as in an image's USER or config: "", "name", "uid", "name:group", "uid:gid" → numbers.

    `passwd` and `group` are the files' texts. A group given explicitly replaces the supplementary ones, as
    Docker does, unless `keep_groups`. Raises UserError for names the image does not know and for numbers that
    are no ids.
    """
    who, colon, which = user.partition(":")
    entry = _passwd_entry(who or "0", passwd)
    if entry is None:
        uid, gid, name, home = _identity(who or "0", "user"), 0, "", "/"
    else:
        name, uid, gid, home = entry
    gid = _group_id(which, group) if colon else gid
    if colon and not keep_groups:
        return User(uid, gid, (), name, home)
    groups = tuple(g for g in _memberships(name, group) if g != gid) if name else ()
    return User(uid, gid, groups, name, home)


def lookup(kernel: Kernel, layers: Sequence[str], user: str, *, keep_groups: bool = False) -> User:
    """`resolve` against the files of an image whose layers (folders, TOP first) are given."""
    passwd, group = (read_text(kernel, layers, path) for path in ("/etc/passwd", "/etc/group"))
    return resolve(user, passwd, group, keep_groups=keep_groups)


def home(kernel: Kernel, root: str, uid: int) -> str:
    """The home folder that /etc/passwd below `root` gives a uid; "/" where it gives none."""
    try:
        text = read_text(kernel, (root,), "/etc/passwd")
    except OSError:
        return "/"
    homes = (parts[5] for parts in _entries(text, 6) if _is_number(parts[2]) and int(parts[2]) == uid)
    return next(homes, "") or "/"


def read_text(kernel: Kernel, layers: Sequence[str], path: str) -> str:
    """A small text file of an image, "" if there is none; symlinks are followed through all layers."""
    for _ in range(_LINKS):
        found, text = _read_once(kernel, layers, path)
        if found != "link":
            return text
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), text))
    return ""


def _read_once(kernel: Kernel, layers: Sequence[str], path: str) -> tuple[str, str]:
    """("file", text), ("link", target) or ("none", "") from the first layer that says anything about the
    path."""
    for layer in layers:
        root = kernel.open(layer, os.O_PATH | os.O_DIRECTORY)
        try:
            try:
                fd = open_inside(kernel, root, path, os.O_PATH | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise
            try:
                mode = kernel.fstat(fd).mode & _S_IFMT
                if mode == _S_IFLNK:
                    return "link", os.readlink("", dir_fd=fd)
                if mode == _S_IFREG:
                    return "file", _content(kernel, root, path)
                return "none", ""
            finally:
                kernel.close(fd)
        finally:
            kernel.close(root)
    return "none", ""


def _content(kernel: Kernel, root: int, path: str) -> str:
    fd = open_inside(kernel, root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(fd, "rb") as file:
        return file.read(LARGEST_FILE).decode("utf-8", "replace")


def _identity(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise UserError(f"Could not find {what} {text!r} in the image: no such entry (use a number)")
    number = int(text) if _is_number(text) else LARGEST_ID + 1
    if number > LARGEST_ID:
        raise UserError(f"Could not use {what} {text}: ids end at {LARGEST_ID}")
    return number


def _is_number(text: str) -> bool:
    """Whether it may be an id: an image's files say anything, and int() refuses thousands of digits."""
    return text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER


def _entries(text: str, fields: int) -> Iterable[list[str]]:
    for line in text.splitlines():
        parts = line.strip().split(":")
        if len(parts) >= fields and not line.startswith("#"):
            yield parts


def _passwd_entry(who: str, passwd: str) -> tuple[str, int, int, str] | None:
    """A name matches before a number does, as in libcontainer's user package."""
    by_number = None
    for parts in _entries(passwd, 6):
        name, uid, gid, home = parts[0], parts[2], parts[3], parts[5]
        if not (_is_number(uid) and _is_number(gid)) or max(int(uid), int(gid)) > LARGEST_ID:
            continue
        if name == who:
            return name, int(uid), int(gid), home or "/"
        if by_number is None and _is_number(who) and int(uid) == int(who):
            by_number = (name, int(uid), int(gid), home or "/")
    return by_number


def _group_id(which: str, group: str) -> int:
    for parts in _entries(group, 3):
        if parts[0] == which and _is_number(parts[2]):
            return _identity(parts[2], "group")
    return _identity(which, "group")


def _memberships(name: str, group: str) -> list[int]:
    found: list[int] = []
    for parts in _entries(group, 4):
        if name in parts[3].split(",") and _is_number(parts[2]) and int(parts[2]) not in found:
            found.append(int(parts[2]))
    return found
