"""The plugin host-local: which address of its local ranges a container gets.

Search goes round-robin from the last address, which keeps a freed one unused for as long as possible. How
reservations are kept is `address_store`'s affair.
Source: containernetworking/plugins, plugins/ipam/host-local (layout and configuration keys).
"""

from __future__ import annotations

import _thread
import ipaddress
import os
import sys
from collections.abc import Mapping
from itertools import islice

from cni.address_store import Store
from cni.beside import beside
from cni.errors import AddressesExhausted, InvalidConfig, IoFailure, NotAvailable, PluginFailure
from cni.frozen import frozen
from cni.types import DNS, IP, Request, Result, Route, listed, valid_attachments

DEFAULT_DATA_DIR = "/var/lib/cni/networks"
CLOSE_SECONDS = 10.0  # for a disk that is slow to set addresses aside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
    for entry in listed(ipam.get("ranges"), "ranges"):
        sets.append(tuple(Range.parse(r) for r in listed(entry, "ranges")))
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


@frozen
class _Section:
    source: Mapping[str, Any]
    sets: tuple[RangeSet, ...]
    routes: tuple[Route, ...]


class HostLocal:
    """The plugin; one instance keeps the stores it has seen (their folders may be shared).

    `spares` is how many addresses of a range set are reserved ahead, for a process that lives long enough to
    hand them out; never more than a sixteenth of the set.
    """

    def __init__(self, sync: Callable[[int], None] = os.fsync, *, spares: int = 0) -> None:
        self._sync = sync
        self._spares = spares
        self._refilling = _thread.allocate_lock()
        self._stores: dict[str, Store] = {}
        self._read: _Section | None = None

    def add(self, request: Request) -> Result:
        """One address per range set. Raises AddressesExhausted; reserves all or nothing.

        Its way to the disk takes as long as wiring a pod: a caller that waits for `unfinished` has both at
        once, and gives the addresses back by DEL when it hears of a failure there.
        """
        ipam = _ipam(request)
        section = self._section(ipam)
        sets, routes, dns = section.sets, section.routes, _dns(ipam)
        wanted = _requested(request)
        store = self._store(request)
        with store.locked():
            held = store.owned(request.container_id, request.ifname)
            if held:
                owner = f"{request.container_id} {request.ifname}"
                raise PluginFailure(f"Could not allocate for {owner}: it already has {held[0]}")
            fresh: list[str] = []
            try:
                ips = tuple(
                    _allocate(store, request, i, entry, wanted, fresh) for i, entry in enumerate(sets)
                )
                if wanted:
                    raise InvalidConfig(f"Could not allocate requested address {wanted[0]}: in no range")
            except BaseException:
                store.release(request.container_id, request.ifname)
                raise
            low = bool(fresh) or 2 * store.spares_left() <= sum(self._ahead(entry) for entry in sets)
        if request.unfinished is not None:
            if fresh:
                request.unfinished.append(beside(lambda: store.keep(fresh)))
            if self._spares and low:
                # When the rest is done: two threads would only take turns.
                request.unfinished.append(lambda: beside(lambda: self._refill_unseen(store, sets)))
            return Result(ips=ips, routes=routes, dns=dns)
        try:
            store.keep(fresh)
        except BaseException:
            self.delete(request)
            raise
        return Result(ips=ips, routes=routes, dns=dns)

    def refill(self, store: Store, sets: tuple[RangeSet, ...]) -> None:
        """Set the next addresses aside. Raises IoFailure; there are no spares then, and every ADD syncs for
        itself and so tells its caller of the disk's trouble."""
        if not self._refilling.acquire(blocking=False):
            return
        try:
            with store.locked():
                chosen: list[Address] = []
                for index, entry in enumerate(sets):
                    following = _candidates(entry, store.last(index), store)
                    chosen += [address for _, address in islice(following, self._ahead(entry))]
                fresh = store.set_aside(chosen)
            store.keep(fresh)
            with store.locked():
                store.kept(fresh)
        except (OSError, IoFailure):
            with store.locked():
                store.drop_spares()
            raise
        finally:
            self._refilling.release()

    def _refill_unseen(self, store: Store, sets: tuple[RangeSet, ...]) -> None:
        """`refill` where nobody waits for it."""
        try:
            self.refill(store, sets)
        except Exception:
            import logging  # not above: no program sets addresses aside

            logging.getLogger(__name__).exception("Failed to set addresses aside folder=%s", store.folder)

    def close(self) -> None:
        """Give back what was set aside; from now on nothing is. Raises OSError, IoFailure."""
        self._spares = 0
        waited = self._refilling.acquire(timeout=CLOSE_SECONDS)
        try:
            for store in list(self._stores.values()):
                if store.spares_left():
                    with store.locked():
                        store.drop_spares()
        finally:
            if waited:
                self._refilling.release()

    def _ahead(self, entry: RangeSet) -> int:
        return min(self._spares, sum(int(r.last) - int(r.first) + 1 for r in entry) // 16)

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
            for a in valid_attachments(request.config)
        }
        store = self._store(request)
        with store.locked():
            store.release_all_but(valid)

    def status(self, request: Request) -> None:
        """Raises NotAvailable when a range set has no free address left."""
        store = self._store(request)
        with store.locked():
            for entry in self._section(_ipam(request)).sets:
                if next(_candidates(entry, None, store), None) is None:
                    raise NotAvailable(f"Could not find a free address in {entry[0].subnet}")

    def _section(self, ipam: Mapping[str, Any]) -> _Section:
        """Read once for the same object, not for one that looks the same: an invoker keeps its configuration
        until the file changes."""
        read = self._read
        if read is None or read.source is not ipam:
            read = self._read = _Section(ipam, parse_ranges(ipam), _routes(ipam))
        return read

    def _store(self, request: Request) -> Store:
        folder = f"{_ipam(request).get('dataDir') or DEFAULT_DATA_DIR}/{request.network}"
        if folder not in self._stores:
            self._stores[folder] = Store(folder, self._sync)
        return self._stores[folder]


def _allocate(
    store: Store, request: Request, index: int, entry: RangeSet, wanted: list[Address], fresh: list[str]
) -> IP:
    """An address of the set; one whose reservation is not on disk yet is added to `fresh`."""

    def taken(address: Address) -> bool:
        kept = store.take_spare(address, request.container_id, request.ifname, index)
        if kept is None and not store.reserve(address, request.container_id, request.ifname, index):
            return False
        if not kept:
            fresh.append(str(address))
        return True

    mine = [a for a in wanted if any(a in r.subnet for r in entry)]
    for address in mine:
        wanted.remove(address)
    if mine:
        home = next((r for r in entry if mine[0] in r), None)
        if home is None or mine[0] == home.gateway:
            raise InvalidConfig(f"Could not allocate requested address {mine[0]}: outside the range")
        if not taken(mine[0]):
            raise PluginFailure(f"Could not allocate requested address {mine[0]}: EEXIST (it is in use)")
        return IP(f"{mine[0]}/{home.prefix}", gateway=str(home.gateway))
    for home, address in _candidates(entry, store.last(index), store):
        if taken(address):
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
                if address != r.gateway and store.free(address):
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
