"""From a layer archive to a folder that overlayfs can use as a lower layer.

Layers are written by strangers and unpacked by root, so an entry must never land outside its folder.
Every parent is opened with openat2(RESOLVE_IN_ROOT): the kernel itself resolves links as if the layer were
the root, `..` and absolute targets included; the last component is created with O_EXCL and never followed.
Names with `..`, devices that reach the machine's hardware, and attributes that would steer overlayfs are
refused.

Two conventions meet here. In archives a deleted file is `.wh.<name>` and a hidden folder contains
`.wh..wh..opq` (OCI image spec, "layer"); overlayfs wants a character device 0:0 and the attribute
trusted.overlay.opaque=y (Documentation/filesystems/overlayfs.rst). Whiteouts speak of *lower* layers: what
this layer itself brings under the same name stays, wherever the archive mentions it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime.images.errors import UnpackError
from runtime.images.plain import Hashed, decompress
from runtime.images.rooted import open_in_root
from runtime.images.sparse import SparseMap
from runtime.images.tape import TapeWriter
from runtime.images.tarstream import Entry, TarReader
from runtime.removal import remove_tree

log = logging.getLogger(__name__)

_OPAQUE = "trusted.overlay.opaque"
_WHITEOUT = b".wh."
_OPAQUE_MARK = b".wh..wh..opq"
_AUFS_MARK = b".wh..wh."
_FAR = 2**62  # nanoseconds from 1970; Linux' clock ends there, too
_MAX_ID = 2**32 - 2
_CACHED_PARENTS = 64
# null, zero, full, random, urandom, tty, console, ptmx: what each container has in its /dev anyway. Images
# for services in a chroot carry them elsewhere, too.
_DEVICES = frozenset(((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)))
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_NAMES = frozenset((b"", b".", b".."))
_NODES = frozenset(("char", "block"))

@dataclass(frozen=True, slots=True)
class Limits:
    """What one layer may cost: entries, bytes when decompressed, bytes in a path."""

    entries: int = 2_000_000
    bytes: int = 64 << 30
    path: int = 4096


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was found: the digest of the plain archive (the diffID), its bytes, the number of entries."""

    diff_id: str
    bytes: int
    entries: int


def unpack_layer(
    source: BinaryIO, folder: Path, limits: Limits | None = None, tape: TapeWriter | None = None
) -> Unpacked:
    """Unpack a layer (plain, gzip or zstd) into an existing empty folder; `tape` gets the rest of it.

    Raises UnpackError; then the folder holds a part of the layer and is the caller's to remove.
    """
    limits = limits or Limits()
    entries = 0
    with Hashed(decompress(source), limits.bytes) as hashed, _Extractor(folder, limits) as extractor:
        reader = TarReader(iter(hashed), tape)
        for entry in reader:
            entries += 1
            if entries > limits.entries:
                raise UnpackError(f"Could not unpack layer: more than {limits.entries} entries")
            try:
                extractor.apply(entry, reader)
            except OSError as error:
                raise _failed(entry, error) from error
        extractor.finish()
        if tape is not None:
            tape.broken = extractor.lost
            tape.close()
    return Unpacked(hashed.digest, hashed.length, entries)


class _Extractor:
    """Creates entries below one folder, which nothing else may be changing meanwhile."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._limits = limits
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._masked = _masked_modes(folder)
        self._parents: dict[bytes, int] = {}
        self._folder_times: list[tuple[bytes, int]] = []
        self._implied = 0  # folders made that the archive does not mention
        self.lost = False  # whether something was replaced that this very layer brought

    def __enter__(self) -> _Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        os.close(self._root)

    def apply(self, entry: Entry, reader: TarReader) -> None:
        """Create one entry; raises UnpackError or OSError."""
        path = self._path(entry.name, entry)
        if not path:
            if entry.kind == "dir":
                self._dress(self._root, entry)
            return
        above, _, name = path.rpartition(b"/")
        parent, kind = self._parent(above), entry.kind
        if name.startswith(_WHITEOUT):
            self._whiteout(path, parent, name)
        elif kind == "dir":
            self._folder(path, parent, entry)
        elif kind in _NODES and not self._makes_device(path, entry):
            log.debug("Skipped device of a layer path=%s", _text(entry.name))
        else:
            create = self._file if kind == "file" else self._other
            try:
                create(parent, path, name, entry, reader)
            except FileExistsError:
                if kind == "link" and self._path(entry.target, entry) == path:
                    raise UnpackError(f"Could not unpack {_text(entry.name)}: hard link to itself") from None
                self._remove(parent, name)
                # Removing may have closed the cached parents.
                create(self._parent(above), path, name, entry, reader)

    def finish(self) -> None:
        """Set the folders' times, which creating their content has changed."""
        for path, mtime in reversed(self._folder_times):
            above, _, name = path.rpartition(b"/")
            try:
                parent = self._parent(above, make=False)
                os.utime(name, ns=(mtime, mtime), dir_fd=parent, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue  # a later entry put something else in its place
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise

    def _path(self, name: bytes, entry: Entry) -> bytes:
        """The name from the root on, with nothing in it but names: b"" is the root itself."""
        if len(name) > self._limits.path:
            raise UnpackError(f"Could not unpack {_text(name[:80])}…: its path has {len(name)} bytes")
        parts = name.split(b"/")
        if _NO_NAMES.isdisjoint(parts) and b"\0" not in name:
            return name
        if b".." in parts or b"\0" in name:
            raise UnpackError(f"Could not unpack {_text(entry.name)}: {_text(name)} leads out of the layer")
        return b"/".join([part for part in parts if part not in _NO_NAMES])

    # -- parents -------------------------------------------------------------------------------------

    def _parent(self, path: bytes, *, make: bool = True) -> int:
        missing: list[bytes] = []
        while True:
            try:
                found = self._opened(path)
                break
            except FileNotFoundError:
                if not make:
                    raise
                missing.append(path)  # a path may have more names than Python's stack has room for
                path = path.rpartition(b"/")[0]
        while missing:
            found = self._made(found, missing.pop())
        return found

    def _made(self, above: int, path: bytes) -> int:
        """Archives may leave out folders; Docker, too, makes them root's and 0755."""
        self._implied += 1
        if self._implied > self._limits.entries:
            raise UnpackError(f"Could not unpack layer: more than {self._limits.entries} folders left out")
        name = path.rpartition(b"/")[2]
        try:
            os.mkdir(name, 0o755, dir_fd=above)
            os.chmod(b"/proc/self/fd/%d/%s" % (above, name), 0o755)
        except FileExistsError:
            raise UnpackError(f"Could not unpack into {_text(path)}: a dangling symbolic link") from None
        return self._cache(path, open_in_root(above, name))

    def _opened(self, path: bytes) -> int:
        if not path:
            return self._root
        found = self._parents.get(path)
        return self._cache(path, open_in_root(self._root, path)) if found is None else found

    def _cache(self, path: bytes, found: int) -> int:
        if len(self._parents) >= _CACHED_PARENTS:
            oldest = next(iter(self._parents))
            os.close(self._parents.pop(oldest))
        self._parents[path] = found
        return found

    def _forget(self) -> None:
        for descriptor in self._parents.values():
            os.close(descriptor)
        self._parents.clear()

    # -- kinds ---------------------------------------------------------------------------------------

    def _file(self, parent: int, path: bytes, name: bytes, entry: Entry, reader: TarReader) -> None:
        descriptor = os.open(name, _NEW_FILE, entry.mode & 0o777, dir_fd=parent)
        try:
            if entry.sparse is not None:
                self._spread(descriptor, entry.sparse, reader)
            else:
                for chunk in reader.content(stored=path):
                    _write(descriptor, chunk)
            # Last, since writing takes setuid bits, capabilities and time.
            if entry.mode & self._masked or entry.uid or entry.gid or entry.xattrs:
                self._dress(descriptor, entry)
            os.utime(descriptor, ns=_times(entry))
        finally:
            os.close(descriptor)

    def _other(self, parent: int, path: bytes, name: bytes, entry: Entry, reader: TarReader) -> None:
        if entry.kind == "symlink":
            os.symlink(entry.target, name, dir_fd=parent)
            self._dress_by_name(parent, name, entry)
        elif entry.kind == "link":
            self._link(parent, name, entry)
        else:
            kind, number = stat.S_IFIFO, 0
            if entry.kind != "fifo":
                kind, number = stat.S_IFCHR, os.makedev(entry.major, entry.minor)
            os.mknod(name, kind | 0o600, number, dir_fd=parent)
            self._dress_by_name(parent, name, entry)

    def _spread(self, descriptor: int, where: SparseMap, reader: TarReader) -> None:
        """Write each piece where it belongs and leave the holes; the tape keeps such content as it is."""
        if where.size > self._limits.bytes:
            raise UnpackError(f"Could not unpack layer: a sparse file of {where.size} bytes")
        chunks, data = iter(reader.content()), memoryview(b"")
        for offset, length in where.places:
            os.lseek(descriptor, offset, os.SEEK_SET)
            while length:
                data = data or next(chunks)
                _write(descriptor, data[:length])
                length, data = length - len(data[:length]), data[length:]
        os.ftruncate(descriptor, where.size)

    def _link(self, parent: int, name: bytes, entry: Entry) -> None:
        target = self._path(entry.target, entry)
        if not target:
            raise UnpackError(f"Could not unpack {_text(entry.name)}: a hard link to the root")
        # An own descriptor: resolving the target may push `parent` out of the cache.
        here = os.dup(parent)
        try:
            folder, _, last = target.rpartition(b"/")
            above = self._parent(folder)
            os.link(last, name, src_dir_fd=above, dst_dir_fd=here, follow_symlinks=False)
        except FileNotFoundError:
            raise UnpackError(
                f"Could not unpack {_text(entry.name)}: hard link to {_text(entry.target)}, not in the layer"
            ) from None
        finally:
            os.close(here)

    def _folder(self, path: bytes, parent: int, entry: Entry) -> None:
        above, _, name = path.rpartition(b"/")
        opaque = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            present = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(present.st_mode):
                opaque = _is_whiteout(present)
                self._remove(parent, name)
                parent = self._parent(above)
                os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._dress(descriptor, entry)
            if opaque:
                os.setxattr(descriptor, _OPAQUE, b"y")
        finally:
            os.close(descriptor)
        self._folder_times.append((path, _times(entry)[0]))

    def _whiteout(self, path: bytes, parent: int, name: bytes) -> None:
        if name == _OPAQUE_MARK:
            os.setxattr(f"/proc/self/fd/{parent}", _OPAQUE, b"y")
            return
        if name.startswith(_AUFS_MARK):
            return  # bookkeeping of aufs, meaningless elsewhere
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in (b"", b".", b".."):
            raise UnpackError(f"Could not unpack {_text(path)}: a whiteout of {_text(hidden)}")
        try:
            os.mknod(hidden, stat.S_IFCHR | 0o000, os.makedev(0, 0), dir_fd=parent)
        except FileExistsError:
            present = os.stat(hidden, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(present.st_mode):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(hidden, flags, dir_fd=parent)
                try:
                    os.setxattr(descriptor, _OPAQUE, b"y")
                finally:
                    os.close(descriptor)

    def _makes_device(self, path: bytes, entry: Entry) -> bool:
        """Whether the device is one to make, or one to leave out; UnpackError for others."""
        if entry.kind == "char" and (entry.major, entry.minor) in _DEVICES:
            return True
        if path.startswith(b"dev/") or path == b"dev":
            # Old distributions' images carry /dev; a container gets a fresh tmpfs there and never sees it.
            return False
        raise UnpackError(
            f"Could not unpack {_text(entry.name)}: device {entry.major}:{entry.minor} outside of /dev"
        )

    def _remove(self, parent: int, name: bytes) -> None:
        present = os.stat(name, dir_fd=parent, follow_symlinks=False)
        self.lost = self.lost or not _is_whiteout(present)
        if stat.S_ISDIR(present.st_mode):
            remove_tree(os.fsdecode(name), dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
        self._forget()

    # -- owner, mode, attributes ---------------------------------------------------------------------

    def _dress(self, descriptor: int, entry: Entry) -> None:
        if entry.uid or entry.gid or descriptor == self._root:
            _check_owner(entry)
            os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, entry.mode)  # after chown, which clears setuid
        if entry.xattrs:
            self._attributes(descriptor, entry)

    def _dress_by_name(self, parent: int, name: bytes, entry: Entry) -> None:
        if entry.uid or entry.gid:
            _check_owner(entry)
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind != "symlink":
            os.chmod(b"/proc/self/fd/%d/%s" % (parent, name), entry.mode)
        os.utime(name, ns=_times(entry), dir_fd=parent, follow_symlinks=False)

    def _attributes(self, descriptor: int, entry: Entry) -> None:
        for key, value in entry.xattrs.items():
            if key.startswith("trusted."):
                raise UnpackError(f"Could not unpack {_text(entry.name)}: attribute {key} is reserved")
            if key == "security.capability":
                os.setxattr(descriptor, key, value)
            elif key.startswith("user.") and not key.startswith("user.overlay."):
                try:
                    os.setxattr(descriptor, key, value)
                except OSError as error:
                    if error.errno != errno.ENOTSUP:  # tmpfs before Linux 6.6; upstream goes on
                        raise
                    log.debug("Skipped attribute path=%s key=%s reason=ENOTSUP", _text(entry.name), key)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    """write(2) until nothing is left: it may take less than it is given."""
    done = os.write(descriptor, data)
    while done < len(data):
        done += os.write(descriptor, data[done:])


def _masked_modes(folder: Path) -> int:
    """The bits of a mode that new files below `folder` do not get: the umask's, a default ACL's, setuid."""
    try:
        probe = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o777)
    except OSError:  # not every file system has files without a name
        return 0o7777
    try:
        return 0o7777 & ~os.fstat(probe).st_mode
    finally:
        os.close(probe)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _check_owner(entry: Entry) -> None:
    if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
        raise UnpackError(
            f"Could not unpack {_text(entry.name)}: owner {entry.uid}:{entry.gid} is out of range"
        )


def _times(entry: Entry) -> tuple[int, int]:
    moment = entry.mtime
    if not -_FAR < moment < _FAR:
        moment = _FAR if moment > 0 else -_FAR
    return moment, moment


def _failed(entry: Entry, error: OSError) -> UnpackError:
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    hint = {
        errno.ENOSPC: " (free some disk space)",
        errno.ENOTDIR: " (a parent is not a folder)",
        errno.ELOOP: " (a parent is a loop of links)",
        errno.EPERM: " (layers are unpacked by root)",
    }.get(error.errno or 0, "")
    return UnpackError(f"Could not unpack {_text(entry.name)}: {name}{hint}")


def _text(name: bytes) -> str:
    return repr(name.decode("utf-8", "backslashreplace"))
