"""Addresses from local ranges, one file per address, in upstream host-local's own layout.

    <dataDir>/<network>/<address>             "<container ID>\\r\\n<ifname>"
    <dataDir>/<network>/last_reserved_ip.<n>  where the next search of range set n begins
    <dataDir>/<network>/lock                  flock: plugins of several processes take turns

So our plugin and Debian's can be exchanged while pods run. A reservation is a file created with O_EXCL
and synced, as is the folder that names it, before the address is handed out: neither SIGKILL nor a power cut
gives one address to two containers. An empty file was left by a writer that was killed between creating and
filling it: its ADD never answered, so the next one takes it away. Search goes round-robin from the last
address, which keeps a freed one unused for as long as possible.
Source: containernetworking/plugins, plugins/ipam/host-local (layout and configuration keys).
"""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import ipaddress
import os
import sys
from collections.abc import Mapping

from cni.beside import beside
from cni.errors import AddressesExhausted, InvalidConfig, IoFailure, NotAvailable, PluginFailure
from cni.frozen import frozen
from cni.types import DNS, IP, Request, Result, Route

DEFAULT_DATA_DIR = "/var/lib/cni/networks"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    RangeSet = tuple["Range", ...]


@frozen
class Range:
    """Usable addresses `first`..`last` of a subnet; the gateway is never handed out."""

    prefix: int
    subnet: ipaddress.IPv4Network | ipaddress.IPv6Network
    first: Address
    last: Address
    gateway: Address

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, type(self.first)):
            return False
        return int(self.first) <= int(address) <= int(self.last)

    @staticmethod
    def parse(body: Mapping[str, Any]) -> Range:
        """Keys subnet, rangeStart, rangeEnd, gateway. Raises InvalidConfig naming what is wrong."""
        try:
            subnet = ipaddress.ip_network(body["subnet"])
            small = 30 if subnet.version == 4 else 126
            if subnet.prefixlen > small:
                raise InvalidConfig(f"Could not use subnet {subnet}: too small to allocate from")
            top = subnet.broadcast_address - 1 if subnet.version == 4 else subnet.broadcast_address
            first = ipaddress.ip_address(body.get("rangeStart") or subnet.network_address + 1)
            last = ipaddress.ip_address(body.get("rangeEnd") or top)
            gateway = ipaddress.ip_address(body.get("gateway") or subnet.network_address + 1)
        except KeyError as error:
            raise InvalidConfig("Could not read an address range: it has no subnet") from error
        except (ValueError, TypeError) as error:
            raise InvalidConfig("Could not read an address range", str(error)) from error
        if first not in subnet or last not in subnet or int(first) > int(last):
            raise InvalidConfig(f"Could not use range {first}-{last}: not an interval of {subnet}")
        return Range(subnet.prefixlen, subnet, first, last, gateway)


def parse_ranges(ipam: Mapping[str, Any]) -> tuple[RangeSet, ...]:
    """The range sets of an `ipam` section: the old single `subnet` first, then `ranges`."""
    sets: list[RangeSet] = []
    if ipam.get("subnet"):
        sets.append((Range.parse(ipam),))
    sets += [tuple(Range.parse(r) for r in entry) for entry in ipam.get("ranges") or ()]
    if not sets or not all(sets):
        raise InvalidConfig("Could not find an address range in the ipam section (give subnet or ranges)")
    flat = [r for entry in sets for r in entry]
    for index, one in enumerate(flat):
        for other in flat[index + 1 :]:
            if one.first in other or other.first in one:
                raise InvalidConfig(f"Could not use ranges {one.subnet} and {other.subnet}: they overlap")
    for entry in sets:
        if len({r.subnet.version for r in entry}) > 1:
            raise InvalidConfig("Could not use a range set that mixes IPv4 and IPv6")
    return tuple(sets)


def local_ranges(ipam: Mapping[str, Any]) -> list[Range]:
    """All ranges of an `ipam` section; none when another plugin than host-local gives the addresses."""
    if ipam.get("type") != "host-local":
        return []
    return [r for entry in parse_ranges(ipam) for r in entry]


class Store:
    """The folder of one network. Use its methods inside `with store.locked():`; `sync` is fsync(2)."""

    def __init__(self, folder: str, sync: Callable[[int], None] = os.fsync) -> None:
        self._folder = folder
        self._sync = sync
        self._thread_lock = _thread.allocate_lock()
        self._owners: dict[str, tuple[str, str]] = {}
        self._stamp = -1

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Exclusive among threads and processes."""
        with self._thread_lock:
            try:
                os.makedirs(self._folder, exist_ok=True)
                lock = os.open(f"{self._folder}/lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise IoFailure(f"Could not open the address store {self._folder}", str(error)) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._refresh()
                yield
                self._stamp = os.stat(self._folder).st_mtime_ns
            finally:
                os.close(lock)

    def _refresh(self) -> None:
        # Reading every file costs milliseconds with a few hundred pods; our own changes are known.
        if os.stat(self._folder).st_mtime_ns == self._stamp:
            return
        self._owners.clear()
        for name in os.listdir(self._folder):
            if name == "lock" or name.startswith("last_reserved_ip"):
                continue
            with open(f"{self._folder}/{name}", errors="replace", newline="") as file:
                text = file.read()
            if not text:
                os.unlink(f"{self._folder}/{name}")
                continue
            # Old stores hold the container ID only, newer ones a second line with the interface.
            container, _, ifname = text.strip().partition("\n")
            self._owners[name] = (container.strip(), ifname.strip())
        self._stamp = -1

    def owner(self, address: Address) -> tuple[str, str] | None:
        return self._owners.get(str(address))

    def owned(self, container_id: str, ifname: str) -> list[Address]:
        found = [n for n, (c, i) in self._owners.items() if c == container_id and i in (ifname, "")]
        return [ipaddress.ip_address(name) for name in found]

    def reserve(self, address: Address, container_id: str, ifname: str, range_set: int) -> bool:
        """Take the address for this interface; False when it is taken. `keep` puts it on disk."""
        name = str(address)
        path = f"{self._folder}/{name}"
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
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
            for path in (*(f"{self._folder}/{address}" for address in addresses), self._folder):
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._sync(handle)
                finally:
                    os.close(handle)
        except OSError as error:
            raise IoFailure(f"Could not reserve {', '.join(addresses)}", str(error)) from error

    def _remember(self, address: Address, range_set: int) -> None:
        # Overwritten in place: truncating first makes ext4 flush the file on close, 1 ms each time.
        path = f"{self._folder}/last_reserved_ip.{range_set}"
        handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            text = str(address).encode()
            os.write(handle, text)
            if os.fstat(handle).st_size != len(text):
                os.ftruncate(handle, len(text))
        finally:
            os.close(handle)

    def release(self, container_id: str, ifname: str) -> None:
        for address in self.owned(container_id, ifname):
            self._unlink(str(address))

    def release_all_but(self, valid: set[tuple[str, str]]) -> None:
        containers = {container for container, _ in valid}
        for name, (container, ifname) in list(self._owners.items()):
            if (container, ifname) in valid or (not ifname and container in containers):
                continue
            self._unlink(name)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._folder}/{name}")
        self._owners.pop(name, None)

    def last(self, range_set: int) -> Address | None:
        try:
            with open(f"{self._folder}/last_reserved_ip.{range_set}") as file:
                return ipaddress.ip_address(file.read().strip())
        except (OSError, ValueError):
            return None


class HostLocal:
    """The plugin; one instance keeps the stores it has seen (their folders may be shared)."""

    def __init__(self, sync: Callable[[int], None] = os.fsync) -> None:
        self._sync = sync
        self._stores: dict[str, Store] = {}

    def add(self, request: Request) -> Result:
        """One address per range set. Raises AddressesExhausted; reserves all or nothing.

        Its way to the disk takes as long as wiring a pod: a caller that waits for `unfinished` has both at
        once, and gives the addresses back by DEL when it hears of a failure there.
        """
        ipam = _ipam(request)
        sets = parse_ranges(ipam)
        wanted = _requested(request)
        routes, dns = _routes(ipam), _dns(ipam)
        store = self._store(request)
        with store.locked():
            held = store.owned(request.container_id, request.ifname)
            if held:
                owner = f"{request.container_id} {request.ifname}"
                raise PluginFailure(f"Could not allocate for {owner}: it already has {held[0]}")
            try:
                ips = tuple(_allocate(store, request, i, entry, wanted) for i, entry in enumerate(sets))
                if wanted:
                    raise InvalidConfig(f"Could not allocate requested address {wanted[0]}: in no range")
            except BaseException:
                store.release(request.container_id, request.ifname)
                raise
        taken = [ip.address.partition("/")[0] for ip in ips]
        if request.unfinished is not None:
            request.unfinished.append(beside(lambda: store.keep(taken)))
            return Result(ips=ips, routes=routes, dns=dns)
        try:
            store.keep(taken)
        except BaseException:
            self.delete(request)
            raise
        return Result(ips=ips, routes=routes, dns=dns)

    def delete(self, request: Request) -> None:
        store = self._store(request)
        with store.locked():
            store.release(request.container_id, request.ifname)

    def check(self, request: Request) -> None:
        store = self._store(request)
        with store.locked():
            if not store.owned(request.container_id, request.ifname):
                raise PluginFailure(f"Could not find an address of {request.container_id} {request.ifname}")

    def gc(self, request: Request) -> None:
        """Free every address whose owner is not among cni.dev/valid-attachments."""
        valid = {
            (str(a.get("containerID")), str(a.get("ifname")))
            for a in request.config.get("cni.dev/valid-attachments") or ()
        }
        store = self._store(request)
        with store.locked():
            store.release_all_but(valid)

    def status(self, request: Request) -> None:
        """Raises NotAvailable when a range set has no free address left."""
        store = self._store(request)
        with store.locked():
            for entry in parse_ranges(_ipam(request)):
                if next(_candidates(entry, None, store), None) is None:
                    raise NotAvailable(f"Could not find a free address in {entry[0].subnet}")

    def _store(self, request: Request) -> Store:
        folder = f"{_ipam(request).get('dataDir') or DEFAULT_DATA_DIR}/{request.network}"
        if folder not in self._stores:
            self._stores[folder] = Store(folder, self._sync)
        return self._stores[folder]


def _allocate(store: Store, request: Request, index: int, entry: RangeSet, wanted: list[Address]) -> IP:
    mine = [a for a in wanted if any(a in r.subnet for r in entry)]
    for address in mine:
        wanted.remove(address)
    if mine:
        home = next((r for r in entry if mine[0] in r), None)
        if home is None or mine[0] == home.gateway:
            raise InvalidConfig(f"Could not allocate requested address {mine[0]}: outside the range")
        if not store.reserve(mine[0], request.container_id, request.ifname, index):
            raise PluginFailure(f"Could not allocate requested address {mine[0]}: EEXIST (it is in use)")
        return IP(f"{mine[0]}/{home.prefix}", gateway=str(home.gateway))
    for home, address in _candidates(entry, store.last(index), store):
        if store.reserve(address, request.container_id, request.ifname, index):
            return IP(f"{address}/{home.prefix}", gateway=str(home.gateway))
    names = ", ".join(f"{r.first}-{r.last}" for r in entry)
    raise AddressesExhausted(f"Could not allocate an address in {request.network}: no free one in {names}")


def _candidates(entry: RangeSet, last: Address | None, store: Store) -> Iterator[tuple[Range, Address]]:
    """Free addresses of the set in round-robin order, starting behind `last`."""
    sizes = [int(r.last) - int(r.first) + 1 for r in entry]
    total = sum(sizes)
    start = 0
    before = 0
    for r, size in zip(entry, sizes, strict=True):
        if last is not None and last in r:
            start = before + int(last) - int(r.first) + 1
        before += size
    for step in range(total):
        position = (start + step) % total
        for r, size in zip(entry, sizes, strict=True):
            if position < size:
                address = r.first + position
                if address != r.gateway and store.owner(address) is None:
                    yield r, address
                break
            position -= size


def _requested(request: Request) -> list[Address]:
    """Addresses asked for: runtimeConfig.ips, args.cni.ips, or IP= in CNI_ARGS."""
    texts: list[str] = list((request.config.get("runtimeConfig") or {}).get("ips") or ())
    texts += ((request.config.get("args") or {}).get("cni") or {}).get("ips") or ()
    if request.args.get("IP"):
        texts += request.args["IP"].split(",")
    try:
        return list(dict.fromkeys(ipaddress.ip_address(text.partition("/")[0]) for text in texts))
    except ValueError as error:
        raise InvalidConfig("Could not read a requested address", str(error)) from error


def _ipam(request: Request) -> Mapping[str, Any]:
    ipam = request.config.get("ipam")
    if not isinstance(ipam, Mapping):
        raise InvalidConfig("Could not find the ipam section in the configuration")
    return ipam


def _routes(ipam: Mapping[str, Any]) -> tuple[Route, ...]:
    body = {"cniVersion": "1.1.0", "routes": ipam.get("routes") or []}
    return Result.from_json(body).routes


def _dns(ipam: Mapping[str, Any]) -> DNS:
    """`resolvConf` names a file in resolv.conf(5)'s format whose settings go into the result."""
    path = ipam.get("resolvConf")
    if not path:
        return DNS()
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": [], "domain": []}
    try:
        with open(path) as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise IoFailure(f"Could not read {path}", str(error)) from error
    for line in lines:
        words = line.split()
        if words and words[0] in found:
            found[words[0]] += words[1:]
    return DNS(
        tuple(found["nameserver"]),
        "".join(found["domain"][:1]),
        tuple(found["search"]),
        tuple(found["options"]),
    )


if __name__ == "__main__":
    from cni.skeleton import main

    sys.exit(main("host-local"))
