"""A pod's sandbox: its cgroup, its namespaces held by pause, its place in the network, our files for it, and
the shared memory that its containers have in common (as containerd's /dev/shm of a sandbox).

`create` does all of it or nothing; `remove` undoes it in reverse. The addresses are written down beside the
pod, so that an agent that adopts the pod knows them without asking the plugins.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cni.errors import CniError
from cni.invoke import Invoker
from kubelet_py.config import Config
from kubelet_py.errors import SandboxError, VolumeError
from kubelet_py.instruments import Histogram, Instrument, Number
from kubelet_py.paths import NodePaths
from kubelet_py.pods import attachment, files, resources, security, timeline
from kubelet_py.pods.container_spec import SHM_BYTES
from kubelet_py.pods.containers import Event
from kubelet_py.pods.context import NodeFacts
from kubelet_py.pods.held_start import HeldStart
from kubelet_py.pods.leftovers import remove_log, remove_logs
from kubelet_py.pods.model import (
    ANNOTATION_CONFIG_SOURCE,
    LABEL_POD_NAME,
    LABEL_POD_NAMESPACE,
    LABEL_POD_UID,
    Object,
    PodView,
    host_network,
)
from kubelet_py.pods.runtime_class import RuntimeClasses
from kubelet_py.pods.timeline import Timelines
from kubelet_py.pods.user_namespaces import UserNamespaces
from kubelet_py.volumes import mounting
from runtime.cgroups import CgroupDriver
from runtime.errors import RuntimeFailure
from runtime.sandbox_start import SandboxStart
from runtime.service import RuntimeService
from runtime.values import Sandbox, SandboxConfig

log = logging.getLogger(__name__)

# What came of wiring a pod early: its addresses, a failure, or None where it has not been tried.
Wired = tuple[str, ...] | CniError | OSError | None

Hold = Callable[[SandboxStart], HeldStart | None]
"""Has a container set up in a sandbox that is being made."""


class SandboxCounts:
    """Starts of sandboxes by the handler of their RuntimeClass ("" for the node's own runtime), as upstream's
    instrumented_services.go: a failed one is timed too."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._durations = Histogram(
            "kubelet_run_podsandbox_duration_seconds",
            "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.",
            "runtime_handler",
        )
        self._errors = Number(
            "kubelet_run_podsandbox_errors_total",
            "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.",
            "runtime_handler",
        )
        self.instruments: tuple[Instrument, ...] = (self._durations, self._errors)

    @contextmanager
    def run(self, handler: str) -> Iterator[None]:
        began = self._clock()
        try:
            yield
        except SandboxError:
            self._errors.add(handler)
            raise
        finally:
            self._durations.observe(self._clock() - began, handler)


class Sandboxes:
    """Makes and removes the sandboxes of this node's pods."""

    def __init__(
        self,
        *,
        service: RuntimeService,
        cgroups: CgroupDriver,
        invoker: Invoker,
        paths: NodePaths,
        config: Config,
        facts: NodeFacts,
        classes: RuntimeClasses,
        event: Event,
        timelines: Timelines,
        users: UserNamespaces,
        cgroup_times: Histogram,
    ) -> None:
        self._users = users
        self._service = service
        self._cgroup_times = cgroup_times
        self._timelines = timelines
        self._classes = classes
        self._cgroups = cgroups
        self._invoker = invoker
        self._paths = paths
        self._config = config
        self._facts = facts
        self._event = event
        self._ips: dict[str, tuple[str, ...]] = {}
        self._counts = SandboxCounts()
        self.instruments = self._counts.instruments

    def ips(self, sandbox_id: str) -> tuple[str, ...]:
        """The sandbox's addresses; read once from disk for a sandbox that an earlier agent made."""
        if sandbox_id not in self._ips:
            self._ips[sandbox_id] = self._read_ips(sandbox_id)
        return self._ips[sandbox_id]

    def create(self, pod: Object, attempt: int, hold: Hold = lambda start: None) -> HeldStart | None:
        """Make cgroup, namespaces, network, files; what `hold` has given. SandboxError, with nothing left,
        when a step fails."""
        network_down = None if host_network(pod) else self._invoker.ready()
        if network_down is not None:
            raise SandboxError(f"network is not ready: {network_down}")
        wanted = attachment.capabilities(pod)  # nonsense is refused before anything is made
        handler = self._classes.handler(pod)
        ids = self._users.range_of(pod, handler)
        self._nodename(pod)  # one that is too long is refused before anything is made
        with self._counts.run(handler):
            return self._make(pod, attempt, wanted, handler, ids, hold)

    def _make(
        self,
        pod: Object,
        attempt: int,
        wanted: dict[str, Any],
        handler: str,
        ids: tuple[int, int],
        hold: Hold,
    ) -> HeldStart | None:
        metadata = pod["metadata"]
        rules = replace(self._facts.rules, pids=self._config.pod_pids_limit)
        limits = resources.pod_resources(pod, rules)
        cgroup = self._cgroup_of(pod)
        log_folder = self._paths.pod_logs / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        try:
            # First of all: as long as it is there, the rest is looked for (leftovers.py).
            (self._paths.pods / metadata["uid"]).mkdir(parents=True, exist_ok=True)
            with self._timelines.step(metadata["uid"], timeline.SANDBOX):
                if self._cgroups.parents_first or host_network(pod):
                    self._make_cgroup(cgroup, limits)
                home = self._cgroups.home(cgroup)
                config = self._sandbox_config(pod, attempt, home, log_folder, handler)
                config = replace(config, first_id=ids[0], ids=ids[1])
                sandbox, wired, held = self._run(pod, config, wanted, cgroup, limits, hold)
        except (RuntimeFailure, OSError, VolumeError) as error:
            raise SandboxError(f"failed to create sandbox: {error}") from error
        try:
            addresses = self._addresses(pod, sandbox, wired, wanted)
            if not host_network(pod):
                self._write_hosts(pod, addresses)
            self._write_ips(metadata["uid"], sandbox.id, addresses)
            self._limit(cgroup, limits)
        except BaseException as error:
            self._drop(held)
            if not isinstance(error, CniError | OSError):
                raise
            if not host_network(pod):
                self._detach(sandbox.id, sandbox.netns)  # a half-made attachment holds an address
            self._service.remove_pod_sandbox(sandbox.id)
            raise SandboxError(
                f'failed to setup network for sandbox "{sandbox.id}": plugin failed: {error}'
            ) from error
        self._ips[sandbox.id] = addresses
        return held

    def _limit(self, cgroup: str, limits: dict[str, Any]) -> None:
        """`create` leaves CPU limits out, which only pause's own cgroup gets by itself after its start; set
        before, a small limit would slow the very start of the pod."""
        try:
            with self._cgroup_times.timed("update"):
                self._cgroups.open(cgroup).update({"cpu": limits["cpu"]})
        except RuntimeFailure as error:
            log.warning("Failed to limit pod cgroup=%s error=%s", cgroup, error)

    def _run(
        self,
        pod: Object,
        config: SandboxConfig,
        wanted: dict[str, Any],
        cgroup: str,
        limits: dict[str, Any],
        hold: Hold,
    ) -> tuple[Sandbox, Wired, HeldStart | None]:
        """Start shim and pause in their cgroup; and what came of all that is done while they start. Raises
        RuntimeFailure, OSError, VolumeError, with nothing left."""
        home, wired, held = config.cgroup_parent, None, None

        def meanwhile() -> None:
            if not (self._cgroups.parents_first or config.host_network):
                self._make_cgroup(cgroup, limits)

        try:
            if config.host_network:
                # It counts as made once its pause runs: an agent that is killed then must have left it whole.
                self._furnish(pod, config)
                self._write_hosts(pod, ())
            start = self._service.begin_pod_sandbox(config, meanwhile)
        except BaseException:
            self._cgroups.settle(home)
            raise
        try:
            try:
                if not config.host_network:
                    self._furnish(pod, config)
                if config.host_network or (start.netns and self._invoker.wires_early()):
                    held = hold(start)
                wired = self._attach_early(pod, start, wanted)
            finally:
                sandbox = start.finish()
            self._cgroups.settle(home)
        except BaseException:
            self._drop(held)
            self._cgroups.settle(home)
            if isinstance(wired, tuple):
                self._detach(start.id, None)
            self._service.remove_pod_sandbox(start.id)
            raise
        return sandbox, wired, held

    def _make_cgroup(self, cgroup: str, limits: dict[str, Any]) -> None:
        with self._cgroup_times.timed("create"):
            self._cgroups.create(cgroup, limits)

    def _furnish(self, pod: Object, config: SandboxConfig) -> None:
        """What its containers find of the node's: places, to which the addresses come later. Raises OSError,
        VolumeError."""
        Path(config.log_directory).mkdir(parents=True, exist_ok=True)
        self._write_files(pod)
        if not config.host_ipc:
            self._share_memory(config.uid)

    def _drop(self, held: HeldStart | None) -> None:
        if held is not None:
            self._service.drop_container(held.container)

    def _attach_early(self, pod: Object, start: SandboxStart, wanted: dict[str, Any]) -> Wired:
        """The addresses, or why there are none; None when that has to wait for pause. Raises StartError, with
        nothing attached, when pause does not start."""
        if not start.netns or not self._invoker.wires_early():
            return None
        try:
            return self._attach(pod, start.id, start.netns, wanted, lambda: start.finish().netns)
        except (CniError, OSError) as error:
            return error

    def _addresses(
        self, pod: Object, sandbox: Sandbox, wired: Wired, wanted: dict[str, Any]
    ) -> tuple[str, ...]:
        """The pod's, attached by now. Raises CniError, OSError."""
        if isinstance(wired, Exception):
            raise wired
        if wired is not None or host_network(pod):
            return wired or ()
        return self._attach(pod, sandbox.id, sandbox.netns, wanted)

    def _nodename(self, pod: Object) -> str:
        return files.nodename_of(pod, self._facts.name, self._config.cluster_domain)

    def _cgroup_of(self, pod: Object) -> str:
        return self._cgroups.names.group(*resources.pod_cgroup(self._paths.cgroup_root, pod))

    def _sandbox_config(
        self, pod: Object, attempt: int, home: str, log_folder: Path, handler: str
    ) -> SandboxConfig:
        metadata, spec = pod["metadata"], pod["spec"]
        return SandboxConfig(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            attempt=attempt,
            hostname=self._nodename(pod),
            labels={
                LABEL_POD_NAME: metadata["name"],
                LABEL_POD_NAMESPACE: metadata["namespace"],
                LABEL_POD_UID: metadata["uid"],
            },
            annotations={
                ANNOTATION_CONFIG_SOURCE: (metadata.get("annotations") or {}).get(
                    ANNOTATION_CONFIG_SOURCE, "api"
                )
            },
            log_directory=str(log_folder),
            cgroup_parent=home,
            host_network=bool(spec.get("hostNetwork")),
            host_pid=bool(spec.get("hostPID")),
            host_ipc=bool(spec.get("hostIPC")),
            share_process_namespace=bool(spec.get("shareProcessNamespace")),
            sysctls=security.sysctls(pod, self._config.allowed_unsafe_sysctls),
            runtime_handler=handler,
        )

    def _attach(
        self,
        pod: Object,
        sandbox_id: str,
        netns: str,
        wanted: dict[str, Any],
        lasting: Callable[[], str] | None = None,
    ) -> tuple[str, ...]:
        metadata = pod["metadata"]
        arguments = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": metadata["namespace"],
            "K8S_POD_NAME": metadata["name"],
            "K8S_POD_INFRA_CONTAINER_ID": sandbox_id,
            "K8S_POD_UID": metadata["uid"],
        }
        with self._timelines.step(metadata["uid"], timeline.NETWORK):
            result = self._invoker.add(
                sandbox_id, netns, args=arguments, capabilities=wanted, lasting=lasting
            )
        return tuple(ip.address.partition("/")[0] for ip in result.ips)

    def _write_files(self, pod: Object) -> None:
        folder = self._paths.pods / pod["metadata"]["uid"]
        resolv = Path(self._config.resolv_conf)
        defaults = files.DnsDefaults(
            resolv.read_text() if self._config.resolv_conf and resolv.exists() else "",
            self._config.cluster_dns,
            self._config.cluster_domain,
        )
        warning = files.missing_cluster_dns(pod, defaults)
        if warning is not None:
            self._event(pod, "", "Warning", "MissingClusterDNS", warning)
        for text in files.omitted_dns(pod, defaults):
            self._event(pod, "", "Warning", "DNSConfigForming", text)
        files.write(folder / "hostname", self._nodename(pod) + "\n")
        files.write(folder / "resolv.conf", files.resolv_text(pod, defaults))
        files.write(folder / "etc-hosts", "")  # to be bound; _write_hosts fills it

    def _write_hosts(self, pod: Object, addresses: tuple[str, ...]) -> None:
        folder = self._paths.pods / pod["metadata"]["uid"]
        hostname = files.hostname_of(pod, self._facts.name)
        node_hosts = Path("/etc/hosts").read_text() if host_network(pod) else None
        hosts = files.hosts_text(pod, addresses, hostname, node_hosts, self._config.cluster_domain)
        files.write(folder / "etc-hosts", hosts)

    def _share_memory(self, uid: str) -> None:
        """One tmpfs for the pod, at most 64 MiB; `stop` takes it away."""
        folder = self._paths.pods / uid / files.SHM
        folder.mkdir(exist_ok=True)
        mounting.mount_tmpfs(folder, size=SHM_BYTES, mode=0o1777, execute=False)

    def _write_ips(self, uid: str, sandbox_id: str, addresses: tuple[str, ...]) -> None:
        (self._paths.pods / uid / f"sandbox-{sandbox_id}.json").write_text(json.dumps({"ips": addresses}))

    def _read_ips(self, sandbox_id: str) -> tuple[str, ...]:
        for sandbox in self._service.list_sandboxes():
            if sandbox.id == sandbox_id:
                file = self._paths.pods / sandbox.config.uid / f"sandbox-{sandbox_id}.json"
                if file.exists():
                    return tuple(json.loads(file.read_text())["ips"])
        return ()

    def stop(self, view: PodView) -> None:
        """End pause and everything left, and give the addresses back; the records stay until `remove`."""
        for sandbox in view.sandboxes:
            before = self._invoker.needs_netns_for_delete()
            if before and sandbox.ready and not sandbox.host_network:
                self._detach(sandbox.id, sandbox.netns)
            self._service.stop_pod_sandbox(sandbox.id)
            if not before and not sandbox.host_network:
                self._detach(sandbox.id, None)
            self._ips.pop(sandbox.id, None)
        try:
            mounting.unmount(self._paths.pods / view.uid / files.SHM)
        except VolumeError as error:
            log.warning("Failed to remove shared memory pod_uid=%s error=%s", view.uid, error)

    def _detach(self, sandbox_id: str, netns: str | None) -> None:
        try:
            self._invoker.delete(sandbox_id, netns)
        except CniError as error:
            # GC at the next start will find it; the pod must go nevertheless.
            log.warning("Failed to detach sandbox=%s error=%s", sandbox_id[:12], error)

    def remove(self, view: PodView, pod: Object) -> None:
        """Forget the sandboxes and remove the pod's cgroup; the processes must have ended."""
        # An orphan's spec is not known any more: its cgroup is what its sandbox was given.
        known = view.sandbox.cgroup if view.sandbox else ""
        cgroup = self._cgroups.names.group_of(known) if known else self._cgroup_of(pod)
        for sandbox in view.sandboxes:
            self._service.remove_pod_sandbox(sandbox.id)
        try:
            with self._cgroup_times.timed("destroy"):
                self._cgroups.remove(cgroup, recursive=True)
        except RuntimeFailure as error:
            log.warning("Failed to remove cgroup path=%s error=%s", cgroup, error)

    def remove_log(self, container_id: str) -> None:
        """Remove an old attempt's log, what was rotated away of it, and the link to it."""
        for container in self._service.list_containers():
            if container.id == container_id:  # else somebody else was faster
                remove_log(self._paths, container_id, Path(container.config.log_path))

    def remove_logs(self, pod: Object) -> None:
        """Remove the pod's log folder and the links into it."""
        metadata = pod["metadata"]
        folder = self._paths.pod_logs / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        remove_logs(self._paths, folder)
