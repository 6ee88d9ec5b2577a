"""Which addresses are taken: one file per address, in upstream host-local's own layout.

    <dataDir>/<network>/<address>             "<container ID>\\r\\n<ifname>"
    <dataDir>/<network>/last_reserved_ip.<n>  where the next search of range set n begins
    <dataDir>/<network>/lock                  flock: plugins of several processes take turns

So our plugin and Debian's can be exchanged while pods run. A reservation is a file created with O_EXCL
and synced, as is the folder that names it, before the address is handed out: neither SIGKILL nor a power cut
gives one address to two containers. An empty file was left by a writer that was killed between creating and
filling it: its ADD never answered, so the next one takes it away.

Spares: a process that lives long sets the next addresses aside, with a mark of its own
("-", its pid and start time, and a number) for an owner, and syncs those files while nobody waits. Handing
one out then writes the owner over the mark, in place, and need not be synced: if the power fails, the file is
still there with one or the other in it. To every other process a spare is taken until GC, or until the
process that the mark names is dead: its spares were never handed out, or went to pods that a power cut ended.
Source: containernetworking/plugins, plugins/ipam/host-local/backend/disk (layout).
"""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import ipaddress
import os

from cni.errors import IoFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC


class Store:
    """The folder of one network. Use its methods inside `with store.locked():`; `sync` is fsync(2)."""

    def __init__(self, folder: str, sync: Callable[[int], None] = os.fsync) -> None:
        self.folder = folder
        self._sync = sync
        self._thread_lock = _thread.allocate_lock()
        self._owners: dict[str, tuple[str, str]] = {}
        self._last: dict[int, Address] = {}
        self._mark = ""
        self._spares: dict[str, bool] = {}  # whether it is on disk yet
        self._stamp = -1

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Exclusive among threads and processes."""
        with self._thread_lock:
            try:
                lock = self._open_lock()
            except OSError as error:
                raise IoFailure(f"Could not open the address store {self.folder}", str(error)) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._refresh()
                yield
                self._stamp = os.stat(self.folder).st_mtime_ns
            finally:
                os.close(lock)

    def _open_lock(self) -> int:
        path, flags = f"{self.folder}/lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(self.folder, exist_ok=True)
            return os.open(path, flags, 0o600)

    def _refresh(self) -> None:
        # Reading every file costs milliseconds with a few hundred pods; our own changes are known.
        if os.stat(self.folder).st_mtime_ns == self._stamp:
            return
        self._owners.clear()
        self._last.clear()
        marks = {self._mark: True}
        for name in os.listdir(self.folder):
            if name == "lock" or name.startswith("last_reserved_ip"):
                continue
            with open(f"{self.folder}/{name}", errors="replace", newline="") as file:
                text = file.read()
            if not text:
                os.unlink(f"{self.folder}/{name}")
                continue
            container, ifname = owner = _owner(text)
            if container.startswith("-") and not ifname:
                if container not in marks:
                    marks[container] = _alive(container)
                if not marks[container]:
                    os.unlink(f"{self.folder}/{name}")
                    continue
            self._owners[name] = owner
        # Another process's GC may have taken some.
        self._spares = {
            n: kept for n, kept in self._spares.items() if self._owners.get(n) == (self._mark, "")
        }
        self._stamp = -1

    def free(self, address: Address) -> bool:
        name = str(address)
        return name not in self._owners or name in self._spares

    def owned(self, container_id: str, ifname: str) -> list[Address]:
        found = [n for n, (c, i) in self._owners.items() if c == container_id and i in (ifname, "")]
        return [ipaddress.ip_address(name) for name in found]

    def reserve(self, address: Address, container_id: str, ifname: str, range_set: int) -> bool:
        """Take the address for this interface; False when it is taken. `keep` puts it on disk."""
        name = str(address)
        path = f"{self.folder}/{name}"
        try:
            handle = os.open(path, _NEW, 0o644)
        except FileExistsError:
            return False
        except OSError as error:
            raise IoFailure(f"Could not reserve {address}", str(error)) from error
        try:
            os.write(handle, f"{container_id}\r\n{ifname}".encode())
            self._remember(address, range_set)
        except OSError as error:
            os.unlink(path)
            raise IoFailure(f"Could not reserve {address}", str(error)) from error
        finally:
            os.close(handle)
        self._owners[name] = (container_id, ifname)
        return True

    def keep(self, addresses: Sequence[str]) -> None:
        """Wait until the reservations are on disk; the lock need not be held. Raises IoFailure."""
        # A file's own sync says nothing of its name: that is the folder's (fsync(2)).
        try:
            for path in (*(f"{self.folder}/{address}" for address in addresses), self.folder):
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._sync(handle)
                finally:
                    os.close(handle)
        except OSError as error:
            raise IoFailure(f"Could not reserve {', '.join(addresses)}", str(error)) from error

    def take_spare(self, address: Address, container_id: str, ifname: str, range_set: int) -> bool | None:
        """Give this interface an address that was set aside; None if it was not, or is no more; else whether
        it is on disk. Raises IoFailure."""
        name = str(address)
        kept = self._spares.pop(name, None)
        if kept is None:
            return None
        try:
            handle = os.open(f"{self.folder}/{name}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            self._owners.pop(name, None)
            return None
        except OSError as error:
            raise IoFailure(f"Could not reserve {address}", str(error)) from error
        try:
            # The folder's time is of some milliseconds: another process may have come and gone within it.
            found = os.pread(handle, 4096, 0).decode(errors="replace")
            if found != self._mark:
                self._owners[name] = _owner(found)
                return None
            _write_over(handle, f"{container_id}\r\n{ifname}")
            self._remember(address, range_set)
            os.utime(self.folder)  # no name came or went: this tells other processes to look
        except OSError as error:
            self._unlink(name)
            raise IoFailure(f"Could not reserve {address}", str(error)) from error
        finally:
            os.close(handle)
        self._owners[name] = (container_id, ifname)
        return kept

    def set_aside(self, wanted: Sequence[Address]) -> list[str]:
        """Make these, and no others, the spares; those that are new must be kept and then told to `kept`."""
        self._mark = self._mark or _new_mark()
        names = [str(address) for address in wanted]
        for name in self._spares.keys() - set(names):
            self._spares.pop(name)
            self._unlink(name)
        fresh = [name for name in names if name not in self._spares]
        for name in fresh:
            handle = os.open(f"{self.folder}/{name}", _NEW, 0o644)
            try:
                os.write(handle, self._mark.encode())
            finally:
                os.close(handle)
            self._owners[name] = (self._mark, "")
            self._spares[name] = False
        return fresh

    def kept(self, names: Sequence[str]) -> None:
        """Those of them that nobody took meanwhile can be handed out at once."""
        self._spares.update({name: True for name in names if name in self._spares})

    def drop_spares(self) -> None:
        for name in list(self._spares):
            self._spares.pop(name)
            self._unlink(name)

    def spares_left(self) -> int:
        return len(self._spares)

    def _remember(self, address: Address, range_set: int) -> None:
        _overwrite(f"{self.folder}/last_reserved_ip.{range_set}", os.O_CREAT | os.O_WRONLY, str(address))
        self._last[range_set] = address

    def release(self, container_id: str, ifname: str) -> None:
        for address in self.owned(container_id, ifname):
            self._unlink(str(address))

    def release_all_but(self, valid: set[tuple[str, str]]) -> None:
        containers = {container for container, _ in valid}
        for name, (container, ifname) in list(self._owners.items()):
            if (
                (container, ifname) in valid
                or (not ifname and container in containers)
                or name in self._spares
            ):
                continue
            self._unlink(name)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.folder}/{name}")
        self._owners.pop(name, None)

    def last(self, range_set: int) -> Address | None:
        # Whoever else writes that file has made another in the folder, which `_refresh` sees.
        if range_set in self._last:
            return self._last[range_set]
        try:
            with open(f"{self.folder}/last_reserved_ip.{range_set}") as file:
                return ipaddress.ip_address(file.read().strip())
        except (OSError, ValueError):
            return None


def _overwrite(path: str, flags: int, content: str) -> None:
    handle = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        _write_over(handle, content)
    finally:
        os.close(handle)


def _write_over(handle: int, content: str) -> None:
    # In place: truncating first makes ext4 flush the file on close, 1 ms each time.
    data = content.encode()
    os.pwrite(handle, data, 0)
    if os.fstat(handle).st_size != len(data):
        os.ftruncate(handle, len(data))


def _owner(text: str) -> tuple[str, str]:
    """Old stores hold the container ID only, newer ones a second line with the interface."""
    container, _, ifname = text.strip().partition("\n")
    return container.strip(), ifname.strip()


def _new_mark() -> str:
    pid, _state, start = _process("self")
    return f"-{pid}.{start}.{os.urandom(4).hex()}"


def _alive(mark: str) -> bool:
    """Whether the process that made a mark can still hand out what it set aside. A mark of another form may
    be anybody's."""
    pid, _, rest = mark[1:].partition(".")
    start = rest.partition(".")[0]
    if not (pid.isdigit() and start.isdigit()):
        return True
    try:
        _pid, state, started = _process(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return started == start and state not in "ZX"


def _process(name: str) -> tuple[str, str, str]:
    """Pid, state and start time (ticks since boot, which tells it from a later one with the same pid)."""
    with open(f"/proc/{name}/stat", errors="replace") as file:
        before, _, after = file.read().rpartition(") ")
    fields = after.split()
    return before.partition(" ")[0], fields[0], fields[19]
