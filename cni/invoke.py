"""The runtime's side of CNI: runs a network's plugins in order, remembers results, undoes in reverse.

What ADD answered is kept on disk until DEL (see `attachment`), since DEL and CHECK must be given the final
result of ADD, also by a process started later. Plugins come from
`bin_dirs`, in order; one found in `own_bin_dir` runs in this process (see skeleton.Plugins), any other is
executed: our plugins and a distribution's are interchangeable. Source: CNI SPEC 1.1.0, section 3, 4.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cni import resizing
from cni.attachment import Attachment, Capabilities
from cni.conflist import ConfigFolder, NetworkList
from cni.errors import CniError, InvalidConfig
from cni.frozen import replace
from cni.netlink import Netlink
from cni.plugin import NetworkWide
from cni.skeleton import Plugins
from cni.types import SUPPORTED_VERSIONS, Request, Result, check_container_id, check_ifname
from cni.veth import GSO_USUAL

Attachments = Collection[tuple[str, str]]

_RUNTIMES_OWN = ("capabilities", "cniVersions", "prevResult")


class Invoker:
    """Attaches containers to the network of `config_dir`. Safe for use by many threads.

    Operations on one container take turns, as the specification demands; GC runs alone.
    """

    def __init__(
        self,
        *,
        config_dir: Path,
        bin_dirs: Sequence[Path],
        cache_dir: Path,
        own_bin_dir: Path,
        timeout: float = 60.0,
        spare_addresses: int = 0,
    ) -> None:
        self._folder = ConfigFolder(config_dir)
        self._path = tuple(str(folder) for folder in bin_dirs)
        self._cache = cache_dir / "results"
        self._plugins = Plugins(own_bin_dir, timeout=timeout, spare_addresses=spare_addresses)
        self._turns = _Turns()

    def add(
        self,
        container_id: str,
        netns: str,
        *,
        ifname: str = "eth0",
        args: Mapping[str, str] | None = None,
        capabilities: Capabilities | None = None,
        lasting: Callable[[], str] | None = None,
    ) -> Result:
        """Run ADD of every plugin. On failure what was done is undone, then CniError is raised.

        Of `capabilities` (portMappings, bandwidth, ips, mac …) each plugin is given those it declares.
        `lasting` is for a `netns` that is only a name for the moment (see `wires_early`): asked when the
        plugins are done, it tells the one that stays true, which the result then has. What it raises is a
        failure as any other.
        """
        check_container_id(container_id)
        check_ifname(ifname)
        with self._turns.one(container_id):
            network = self._folder.load()
            self._clear_way(container_id, netns, ifname)
            entry = Attachment(
                self._cache, network, container_id, ifname, dict(args or {}), capabilities or {}
            )
            # Written before the first plugin runs: what a SIGKILL leaves half done can be undone later.
            entry.begin()
            result: Result | None = None
            wired = netns
            try:
                self._loopback(entry, netns)
                for plugin in network.plugins:
                    result = self._plugins.run(
                        plugin["type"], self._request("ADD", entry, plugin, netns, result)
                    )
                final = result or Result()
                if lasting is not None:
                    wired = ""  # the name for the moment may soon be another namespace's
                    wired = lasting()
                    final = _moved(final, netns, wired)
                entry.finish(final)
            except BaseException:
                with contextlib.suppress(CniError):  # the first failure is the one to report
                    self._undo(entry, wired, result)
                raise
            return final

    def _loopback(self, entry: Attachment, netns: str) -> None:
        """Runtimes bring lo up themselves, outside the list; our bridge and ptp do it on their way."""
        first = str(entry.network.plugins[0]["type"])
        if first not in ("bridge", "ptp") or not self._plugins.in_process(first, self._path):
            config = {"name": "loopback", "cniVersion": entry.network.version}
            self._plugins.own("loopback").add(Request("ADD", config, entry.container_id, netns, "lo"))

    def _clear_way(self, container_id: str, netns: str, ifname: str) -> None:
        """Refuse a second ADD, whose undoing would take the first one's interface; finish a broken one."""
        found = Attachment.find(self._cache, container_id, ifname)
        if found is None:
            return
        entry, result = found
        if result is not None:
            raise InvalidConfig(
                f"Could not attach {container_id}: {ifname} is attached already (DEL it first)"
            )
        self._undo(entry, netns, None)

    def delete(self, container_id: str, netns: str | None, *, ifname: str = "eth0") -> None:
        """Run DEL in reverse with what ADD was given and answered; nothing cached means nothing to do twice.

        `netns` may be None or gone. Raises the last plugin's CniError after trying all; the cache stays then.
        """
        check_container_id(container_id)
        with self._turns.one(container_id):
            self._delete(container_id, netns or "", ifname)

    def _delete(self, container_id: str, netns: str, ifname: str) -> None:
        found = Attachment.find(self._cache, container_id, ifname)
        if found is None:
            # Never attached by this cache, or already detached: DEL once by the present configuration.
            with contextlib.suppress(InvalidConfig):
                network = self._folder.load()
                self._undo(Attachment(self._cache, network, container_id, ifname, {}, {}), netns, None)
            return
        entry, result = found
        self._undo(entry, netns, result)

    def _undo(self, entry: Attachment, netns: str, result: Result | None) -> None:
        failure: CniError | None = None
        for plugin in reversed(entry.network.plugins):
            try:
                self._plugins.run(plugin["type"], self._request("DEL", entry, plugin, netns, result))
            except CniError as error:
                failure = error
        if failure is not None:
            raise failure
        entry.remove()

    def check(self, container_id: str, netns: str, *, ifname: str = "eth0") -> None:
        """Run CHECK of every plugin. Raises CniError when the attachment is not as ADD left it."""
        with self._turns.one(container_id):
            found = Attachment.find(self._cache, container_id, ifname)
            if found is None or found[1] is None:
                raise InvalidConfig(f"Could not check {container_id}: it is not attached")
            entry, result = found
            if entry.network.disable_check or _older(entry.network.version, "0.4.0"):
                return
            for plugin in entry.network.plugins:
                self._plugins.run(plugin["type"], self._request("CHECK", entry, plugin, netns, result))

    def gc(self, valid: Attachments | Callable[[], Attachments]) -> None:
        """Detach every cached attachment that is not in `valid` (container ID, ifname), then GC the plugins.

        A function for `valid` is called when no operation runs any more, so that what it answers is true for
        as long as GC takes. Goes on after a failure and raises the last one. Plugins of versions before 1.1.0
        know no GC; our own are asked all the same.
        """
        failure: CniError | None = None
        with self._turns.alone():
            keep = set(valid() if callable(valid) else valid)
            for container_id, ifname in Attachment.all(self._cache):
                if (container_id, ifname) not in keep:
                    try:
                        self._delete(container_id, "", ifname)
                    except CniError as error:
                        failure = error
            try:
                network: NetworkList | None = self._folder.load()
            except InvalidConfig:  # no network any more: nothing that plugins could have kept
                network = None
            if network is not None and not network.disable_gc:
                failure = self._gc_plugins(network, keep) or failure
        if failure is not None:
            raise failure

    def _gc_plugins(self, network: NetworkList, valid: Collection[tuple[str, str]]) -> CniError | None:
        failure: CniError | None = None
        attachments = [{"containerID": c, "ifname": i} for c, i in sorted(valid)]
        for plugin in network.plugins:
            own = self._plugins.in_process(plugin["type"], self._path)
            if not own and _older(network.version, "1.1.0"):
                continue
            config = _section(network, plugin) | {"cni.dev/valid-attachments": attachments}
            try:
                self._plugins.run(plugin["type"], Request("GC", config, path=self._path))
            except CniError as error:
                failure = error
        return failure

    def status(self) -> None:
        """Raise CniError (50, 51 or a missing plugin's) when an ADD could not work now."""
        network = self._folder.load()
        for plugin in network.plugins:
            if _older(network.version, "1.1.0") and not self._plugins.in_process(plugin["type"], self._path):
                continue
            config = _section(network, plugin)
            self._plugins.run(plugin["type"], Request("STATUS", config, path=self._path))

    def resize(self, size: int) -> None:
        """Give bridge and attached pods the gsoIPv4MaxSize (0: the kernel's own) that the network's next pods
        get; those with limits send 64 kB as before. Goes on after a failure and raises the last one."""
        failure: CniError | None = None
        with Netlink() as host:
            for failed in self._resized(host, size or GSO_USUAL):
                failure = failed
        if failure is not None:
            raise failure

    def _resized(self, host: Netlink, wanted: int) -> Iterator[CniError]:
        """Does it, and tells what failed of it."""
        network = self._folder.load()
        for plugin in network.plugins:
            if plugin["type"] != "bridge":
                continue
            try:
                resizing.resize_bridge(host, str(plugin.get("bridge") or ""), wanted)
            except CniError as error:
                yield error
        ends = resizing.others(host, network.name, wanted)
        for container_id, ifname in Attachment.all(self._cache) if ends else ():
            if container_id not in ends:
                continue
            try:
                with self._turns.one(container_id):
                    self._resize_pod(host, container_id, ifname, wanted)
            except CniError as error:
                yield error

    def _resize_pod(self, host: Netlink, container_id: str, ifname: str, wanted: int) -> None:
        found = Attachment.find(self._cache, container_id, ifname)
        if found is None or found[1] is None:
            return
        far = min(wanted, GSO_USUAL) if found[0].capabilities.get("bandwidth") else wanted
        for interface in found[1].interfaces:
            if interface.sandbox and interface.name == ifname:
                resizing.resize(host, interface.sandbox, ifname, near=wanted, far=far)

    def ready(self) -> str | None:
        """None, or why pods cannot be attached: no configuration, or a plugin that is not installed."""
        try:
            for plugin in self._folder.load().plugins:
                self._plugins.find(plugin["type"], self._path)
        except CniError as error:
            return str(error)
        return None

    def wires_early(self) -> bool:
        """Whether a namespace may be wired by a name that it will not keep: only our own plugins do not mind
        when CHECK and DEL have another one."""
        return not self.needs_netns_for_delete()

    def needs_netns_for_delete(self) -> bool:
        """False when every plugin is ours: then a pod's namespace may be dropped before DEL, which spares
        the RCU grace period (20–40 ms) of removing a link by hand."""
        try:
            plugins = self._folder.load().plugins
            return not all(self._plugins.in_process(p["type"], self._path) for p in plugins)
        except CniError:
            return True

    def prepare(self) -> None:
        """Make our bridge, its address and the masquerade rules before the first pod; verify them later.

        Does nothing when the configuration names other plugins than ours.
        """
        for plugin, kind, network in self._network_wide():
            kind.prepare({**plugin, "name": network.name})

    def close(self) -> None:
        """Give back what is kept for pods to come; those that come all the same are served as before. Raises
        CniError, OSError."""
        self._plugins.close()

    def tear_down(self) -> None:
        """Remove what our plugins made for the network as a whole: bridge, masquerade, host port chains."""
        for plugin, kind, network in self._network_wide():
            kind.tear_down({**plugin, "name": network.name})
        from cni.portmap import Portmap

        ports = self._plugins.own("portmap")
        assert isinstance(ports, Portmap)
        ports.tear_down()

    def _network_wide(self) -> list[tuple[Mapping[str, Any], NetworkWide, NetworkList]]:
        try:
            network = self._folder.load()
        except InvalidConfig:
            return []
        found: list[tuple[Mapping[str, Any], NetworkWide, NetworkList]] = []
        for plugin in network.plugins:
            if plugin["type"] in ("bridge", "ptp") and self._plugins.in_process(plugin["type"], self._path):
                own = self._plugins.own(plugin["type"])
                assert isinstance(own, NetworkWide)
                found.append((plugin, own, network))
        return found

    def _request(
        self, command: str, entry: Attachment, plugin: Mapping[str, Any], netns: str, previous: Result | None
    ) -> Request:
        config = _section(entry.network, plugin)
        declared = plugin.get("capabilities") or {}
        runtime = {key: value for key, value in entry.capabilities.items() if declared.get(key) and value}
        if runtime:
            config["runtimeConfig"] = {**(config.get("runtimeConfig") or {}), **runtime}
        return Request(
            command=command,
            config=config,
            container_id=entry.container_id,
            netns=netns,
            ifname=entry.ifname,
            args=entry.args,
            path=self._path,
            previous=previous,
        )


class _Turns:
    """One operation per container at a time; `alone` waits for all and keeps new ones out."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._busy: dict[str, int] = defaultdict(int)
        self._exclusive = False

    @contextlib.contextmanager
    def one(self, container_id: str) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._exclusive and container_id not in self._busy)
            self._busy[container_id] = 1
        try:
            yield
        finally:
            with self._condition:
                del self._busy[container_id]
                self._condition.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._exclusive and not self._busy)
            self._exclusive = True
        try:
            yield
        finally:
            with self._condition:
                self._exclusive = False
                self._condition.notify_all()


def _moved(result: Result, before: str, after: str) -> Result:
    """The result with another path for the container's namespace."""
    interfaces = (replace(one, sandbox=after) if one.sandbox == before else one for one in result.interfaces)
    return replace(result, interfaces=tuple(interfaces))


def _section(network: NetworkList, plugin: Mapping[str, Any]) -> dict[str, Any]:
    """A plugin's configuration as it is given to it (SPEC section 3, "Deriving execution configuration"):
    everything passes unchanged but the keys that are the runtime's own."""
    own = {k: v for k, v in plugin.items() if k not in _RUNTIMES_OWN and not k.startswith("cni.dev/")}
    return own | {"name": network.name, "cniVersion": network.version}


def _older(version: str, than: str) -> bool:
    return SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(than)
