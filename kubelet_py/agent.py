"""The node agent's process: wires the parts together, and says in one sentence what it waits for.

Start-up order matters twice: the runtime's forkserver is started before any thread exists, and pods are heard
of only after the Services are known (their addresses are in every container's environment). Everything else
starts at once and retries by itself, so the order in which API server and agent come to life does not matter.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from cni import wireguard
from kubeclient.events import EventRecorder
from kubeclient.informer import Informer
from kubeclient.ranges import read_ranges
from kubeclient.resources import NODES, PODS, SERVICES
from kubeclient.rest import RestClient
from kubelet_py.backend import AgentBackend
from kubelet_py.config import Options, longest_restart_wait, pulls_at_once
from kubelet_py.errors import CertificateError, ConfigError, NodeError
from kubelet_py.flags import parse_arguments
from kubelet_py.instruments import Instrument
from kubelet_py.node import allocatable, cpu_topology, encryption, tunnel
from kubelet_py.node import status as node_status
from kubelet_py.node.addresses import NoAddress, choose_node_addresses
from kubelet_py.node.announcement import Announcement
from kubelet_py.node.credentials import Credentials
from kubelet_py.node.enforcement import Enforcement, rules_of
from kubelet_py.node.events import NodeEvents
from kubelet_py.node.guard import Guard
from kubelet_py.node.host_checks import prepare
from kubelet_py.node.housekeeping import Housekeeping
from kubelet_py.node.meter import Meter
from kubelet_py.node.network import NodeNetwork
from kubelet_py.node.network_keeper import NetworkKeeper, first_subnet
from kubelet_py.node.peer_routes import PeerRoutes, PeerWays
from kubelet_py.node.qos import QosCgroups
from kubelet_py.node.registrar import Registrar, as_it_is_now
from kubelet_py.node.report import NodeReport
from kubelet_py.node.startup import StartupTimes
from kubelet_py.paths import NodePaths
from kubelet_py.pods import app_armor, security
from kubelet_py.pods.admission import Gate
from kubelet_py.pods.allocations import Allocations
from kubelet_py.pods.containers import ContainerStarter
from kubelet_py.pods.context import NodeFacts, ObjectSource, TokenSource
from kubelet_py.pods.cpu_manager import CpuManager
from kubelet_py.pods.events import PodEvents
from kubelet_py.pods.image_puller import ImagePuller, fetch_with_credentials
from kubelet_py.pods.image_volumes import mounted_images
from kubelet_py.pods.leftovers import Leftovers
from kubelet_py.pods.manifest_sources import ManifestSources
from kubelet_py.pods.model import API_SOURCE, Object, epoch, is_static
from kubelet_py.pods.oom_watcher import OomWatcher
from kubelet_py.pods.pleg import Pleg
from kubelet_py.pods.pod_manager import PodManager
from kubelet_py.pods.prober import Prober
from kubelet_py.pods.record import Parts, census
from kubelet_py.pods.resize import DEFERRED
from kubelet_py.pods.resizer import Resizer
from kubelet_py.pods.runtime_class import RuntimeClasses
from kubelet_py.pods.sandboxes import Sandboxes
from kubelet_py.pods.status_manager import NullStatusManager, StatusManager
from kubelet_py.pods.sync_counts import working_pods
from kubelet_py.pods.sync_pod import PodSyncer
from kubelet_py.pods.timed_runtime import TimedRuntime
from kubelet_py.pods.timeline import Timelines
from kubelet_py.pods.user_namespaces import UserNamespaces
from kubelet_py.pods.volume_keeper import VolumeKeeper
from kubelet_py.pods.workers import PodWorkers
from kubelet_py.port import Port
from kubelet_py.server.healthz import HealthChecks, HealthzServer, loop_check
from kubelet_py.signals import obey
from kubelet_py.spreading import spread
from kubelet_py.volumes.manager import VolumeManager
from runtime import cgroups, userns
from runtime.errors import RuntimeFailure
from runtime.images.store import ImageStore
from runtime.linux import LinuxKernel
from runtime.runtimes import load as load_runtimes

log = logging.getLogger("agent")

TICK = 1.0
ORPHAN_SECONDS = 30.0
SHUTDOWN_SIGNAL = signal.SIGUSR1  # sent by `kubelet-py node shutdown`
SWITCH_INTERVAL = 0.0005  # seconds a thread may keep the interpreter while another waits


class Agent:
    """One node. `run` returns after `stop`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._config = options.config
        self._paths = NodePaths(options.root)
        self._stopping, self._startup = threading.Event(), StartupTimes()
        self._heard = threading.Event()
        self._sentence = ""
        self._looked = self._turned_at = time.monotonic()
        self._cgroup_manager = self._config.cgroup_driver or cgroups.native()
        self._cgroups = cgroups.choose(self._cgroup_manager)
        log.info("Chose cgroup driver=%s", self._cgroups.name)
        runtimes = self._runtimes = load_runtimes(self._paths.config / "runtimes.toml")
        self._runtime = TimedRuntime(
            run_dir=self._paths.run,
            state_dir=self._paths.containers,
            cgroups=self._cgroups,
            runtimes=runtimes,
        )
        self._oom = OomWatcher(self._runtime)
        self._runtime.subscribe(self._oom.heard)  # a shim may have something to tell since the last agent
        self._runtime.start()  # first of all: it forks
        paths = self._paths
        spread((paths.state, paths.pods, paths.containers, paths.sandboxes, paths.pod_logs))
        versions = [network.version for network in read_ranges(self._config.cluster_cidr)]
        first, *others = choose_node_addresses(options.node_ip, versions=versions)
        addresses = [replace(first, reason=options.node_ip_reason or first.reason), *others]
        self._announcement = Announcement(self._paths, options.node_name, addresses, self._all_nodes)
        self._machine = node_status.read_machine(self._paths.state)
        self._node = NodeFacts(
            options.node_name,
            tuple(one.address for one in addresses),
            allocatable.allocatable(self._machine, self._config),
            self._machine.memory,
            rules_of(self._config, self._machine, self._cgroups),
        )
        self._credentials = Credentials(options, self._paths, tuple(self._node.ips))
        self._client = self._credentials.connect(self._stopping)
        self._build()

    def _build(self) -> None:
        client, paths, config = self._client, self._paths, self._config
        options, first = self._options, self._node.ips[0]
        self._tunnel = tunnel.opened(options.pod_routes, paths, first, options.wireguard_port)
        overhead = wireguard.OVERHEAD if self._tunnel is not None else 0
        name, mode = self._options.node_name, self._options.pod_routes
        self._cni = network = NodeNetwork(
            paths, options.cni_bin_dirs, overhead, options.pod_gso_size, wrapped=mode == "vxlan"
        )
        self._network = NetworkKeeper(network, config, self._refresh_node, self._wake_all, self._attached)
        ways = [PeerRoutes(me=name, address=ip, mode=mode, key=self._public_key) for ip in self._node.ips]
        self._peers = PeerWays(ways, config.pod_cidr, self._tunnel)
        self._images = ImageStore(paths.images)
        self._workers = PodWorkers(lambda uid: self._syncer.sync(uid))
        sandboxes, wake = self._runtime.list_sandboxes, self._workers.wake
        self._manager = PodManager(client, wake, self._node_uid, sandboxes=sandboxes)
        recorder = EventRecorder(client, "kubelet", self._options.node_name) if client else None
        self._events = PodEvents(recorder, self._manager.mirror)
        self._node_events = NodeEvents(recorder, self._options.node_name)
        self._timelines = Timelines()
        self._statuses = StatusManager(client, sent=self._on_status) if client else NullStatusManager()
        self._volumes = VolumeManager(paths.pods)
        self._users = UserNamespaces(
            paths.pods, max_pods=config.max_pods, supported=partial(userns.supported, LinuxKernel())
        )
        self._qos = QosCgroups(
            self._cgroups, paths.cgroup_root, protect=self._node.rules.throttling is not None
        )
        self._sandboxes = Sandboxes(
            service=self._runtime,
            cgroups=self._cgroups,
            invoker=network.invoker,
            paths=paths,
            config=config,
            facts=self._node,
            classes=RuntimeClasses(client),
            event=self._events.tell,
            timelines=self._timelines,
            users=self._users,
            cgroup_times=self._qos.durations,
        )
        self._leftovers = Leftovers(paths, self._cgroups, self._volumes)
        self._pleg = Pleg(self._runtime, self._sandboxes.ips, wake, self._workers.wake_after)
        self._prober = Prober(self._runtime, changed=wake, tell=self._events.tell_of_probe, host_ip=first)
        self._services = Informer(client, SERVICES) if client else None
        self._checks = HealthChecks(loop_check(lambda: self._turned_at, time.monotonic))
        self._healthz = HealthzServer(config.healthz_bind_address, config.healthz_port, self._checks)
        self._port = Port(
            config=config,
            paths=paths,
            node_name=self._options.node_name,
            node_ip=self._node.ips[0],
            client=client,
            serving=self._credentials.serving,
            backend=self._backend,
            checks=self._checks,
        )
        self._pods: Informer | None = None
        self._registrar: Registrar | None = None
        self._node_informer: Informer | None = None
        objects, tokens = ObjectSource(client), TokenSource(client)
        self._keeper = VolumeKeeper(
            client,
            objects,
            tokens,
            records=self._manager.records,
            wake=self._workers.wake,
            period=config.sync_frequency,
        )
        fetch = partial(
            fetch_with_credentials,
            hosts_dir=paths.config / "registries",
            node_file=paths.state / "config.json",
        )
        at_once = pulls_at_once(config)
        self._puller = puller = ImagePuller(self._images, wake, fetch=fetch, at_once=at_once)
        self._housekeeping = Housekeeping(
            config,
            paths,
            self._images,
            self._runtime,
            tell=self._node_events.tell,
            mounted=lambda: mounted_images(record.pod for record in self._manager.records()),
        )
        tell = self._node_events.tell
        self._enforcement = Enforcement(self._cgroups, self._qos, self._machine, config, tell)
        self._guard = Guard(
            config=config,
            paths=paths,
            machine=self._machine,
            cgroups=self._cgroups,
            runtime=self._runtime,
            records=self._manager.records,
            view=self._pleg.view,
            wake=self._workers.wake,
            volumes=self._volumes.usage,
            reclaim_images=self._housekeeping.reclaim_images,
            remove_log=self._sandboxes.remove_log,
            event=self._events.tell,
            tell=self._node_events.tell,
            changed=self._refresh_node,
        )
        self._report = NodeReport(
            config=config,
            node=self._node,
            machine=self._machine,
            handlers=["", *self._runtimes],
            users=self._users,
            images=self._images,
            network=self._network,
            cni=network,
            cgroups=self._cgroups,
            enforcement=self._enforcement,
            guard=self._guard,
        )
        self._cpus = CpuManager(config, paths.state, self._runtime.update_resources, cpu_topology.here())
        starter = ContainerStarter(
            paths=paths,
            config=config,
            runtime=self._runtime,
            images=puller,
            volumes=self._volumes,
            objects=objects,
            kernel=LinuxKernel(),
            services=self._list_services,
            node=self._node,
            event=self._events.tell,
            timelines=self._timelines,
            cpus=self._cpus.cpus,
            ids=lambda pod: self._users.range_of(pod, ""),  # its sandbox has them already
        )
        allocations = Allocations(paths.pods)
        self._gate = gate = Gate(
            records=self._manager.records,
            held=self._pleg.uids,
            node=self._node_object,
            allocatable=self._node.allocatable,
            totals=self._qos.set_requests,
            pressures=self._guard.pressures,
            shutting_down=self._guard.shutting_down,
            preempt=self._guard.preempt,
            forbids=partial(
                security.refusal,
                unsafe_sysctls=config.allowed_unsafe_sysctls,
                apparmor=app_armor.enabled(),
            ),
            restore=allocations.restore,
            fresh_node=partial(as_it_is_now, self._client, self._options.node_name),
        )
        parts = Parts(
            runtime=self._runtime,
            sandboxes=self._sandboxes,
            volumes=self._volumes,
            starter=starter,
            pleg=self._pleg,
            prober=self._prober,
            puller=puller,
            statuses=self._statuses,
            objects=objects,
            tokens=tokens,
            gate=gate,
            cpus=self._cpus,
            resizer=Resizer(
                self._cgroups,
                rules=self._node.rules,
                gate=gate,
                allocatable=self._node.allocatable,
                allocations=allocations,
                update=self._runtime.update_resources,
                pins=self._cpus.pins,
            ),
            node=self._node,
            node_object=self._node_object,
            event=self._events.tell,
            client=client,
            timelines=self._timelines,
            mirror=self._manager.mirror,
            longest_wait=longest_restart_wait(config),
        )
        self._syncer = PodSyncer(parts, self._manager.record, self._forget)
        self._static = ManifestSources(
            config,
            paths.manifests,
            self._options.node_name,
            self._manager.on_static_pods,
            self._keeper.keep_local,
        )

    # life

    def run(self) -> None:
        """Start every part, then look after the node until `stop`."""
        self._qos.make()
        self._enforcement.enforce()
        self._credentials.start()
        self._statuses.start()
        self._workers.start()
        self._pleg.start()
        self._prober.start()
        if self._config.healthz_port:
            self._healthz.start()
        self._port.start(lambda: bool(self._node_uid()))
        if self._client is None:
            self._heard.set()
            self._network.bring_up(self._config.pod_cidr or first_subnet(self._config.cluster_cidr))
        else:
            before = self._cni.remembered()
            if before:  # pods need not wait for an API server that is away, nor be told of a node NotReady
                self._network.bring_up(before)
            self._start_api(self._client)
        self._static.start()
        self._end_orphans()
        self._guard.start()
        gc.collect()
        gc.freeze()  # what start-up made lives as long as the process
        while not self._stopping.wait(TICK):
            self._tell(self.tick())

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None:
        """Let go of everything; containers run on."""
        parts = (self._static, self._guard, self._prober, self._pleg, self._workers, self._statuses)
        others = (self._keeper, self._registrar, self._credentials, self._port, self._healthz)
        for part in (*parts, *others):
            if part is not None:
                part.stop()
        self._cni.close()
        self._runtime.close()
        log.info("Stopped agent node=%s", self._options.node_name)

    def _start_api(self, client: RestClient) -> None:
        name = self._options.node_name
        assert self._services is not None
        self._node_informer = Informer(client, NODES, on_event=self._on_node_event)
        mine = f"spec.nodeName={name}"
        self._pods = Informer(client, PODS, field_selector=mine, on_event=self._on_pod_event)
        self._registrar = Registrar(
            client,
            name=name,
            labels=self._report.labels(),
            config=self._config,
            report=self._report.status,
            on_node=self._on_node,
            tell=self._node_events.tell,
            admit=self._announcement.check,
            startup=self._startup,
            annotations=encryption.announcement(self._public_key(), self._options.wireguard_port),
        )
        self._services.start()
        self._node_informer.start()
        self._registrar.start()
        threading.Thread(target=self._follow_pods, name="follow-pods", daemon=True).start()
        threading.Thread(target=self._keep_mirrors, name="mirrors", daemon=True).start()

    def _follow_pods(self) -> None:
        assert self._services is not None and self._pods is not None
        self._services.wait_synced()
        self._pods.start()
        self._pods.wait_synced()
        self._heard.set()
        self._manager.has_told(API_SOURCE)
        self._end_orphans()

    def _keep_mirrors(self) -> None:
        assert self._pods is not None
        while not self._stopping.is_set():
            self._manager.mirrors_due.wait()
            self._manager.mirrors_due.clear()
            self._pods.wait_synced()
            self._manager.keep_mirrors()

    def _backend(self, more: Sequence[Instrument]) -> AgentBackend:
        return AgentBackend(
            self._manager,
            self._pleg,
            self._runtime,
            self._meter(),
            self._prober,
            replace(self._config, cgroup_driver=self._cgroup_manager),
            self._timelines,
            self._puller.counts,
            lambda: [*self._instruments(), *more],
            self._credentials.expiries,
            self._heard.wait,
        )

    def _instruments(self) -> list[Instrument]:
        """What every part counts, for /metrics."""
        counting = (
            self._pleg, self._workers, self._syncer, self._statuses, self._volumes, self._qos, self._gate,
            self._guard.eviction, self._timelines, self._puller.counts, self._housekeeping, self._cpus,
            self._sandboxes, self._manager, self._startup, self._guard.shutdown,
        )  # fmt: skip
        more = [working_pods(self._manager.records()), *self._credentials.instruments()]
        return [*(each for part in counting for each in part.instruments), *more]

    def _meter(self) -> Meter:
        return Meter(
            name=self._options.node_name,
            paths=self._paths,
            machine=self._machine,
            cgroups=self._cgroups,
            records=self._manager.records,
            view=self._pleg.view,
        )

    # the loop

    def tick(self) -> str:
        """A look at the whole: refresh what has to be fresh; one sentence on how things are."""
        now = self._turned_at = time.monotonic()
        records = self._manager.records()
        self._keeper.look(now)
        if now - self._looked >= ORPHAN_SECONDS:
            self._looked = now
            self._end_orphans()
        self._housekeeping.look()
        for record in records:
            if record.resize.held is not None and record.resize.held.reason == DEFERRED:
                self._workers.wake(record.uid)  # there may be room now
        self._oom.look(self._manager.pod, self._events.tell)
        self._cpus.look([record.uid for record in records], self._pleg, whole=self._heard.is_set())
        self._network.look()
        if self._peers.waiting:
            self._follow_peers()
        self._peers.look()
        problem = self._network.problem()
        if problem is not None:
            return f"waiting for the network: {problem}"
        if self._client is not None and self._pods is not None and not self._pods.synced():
            return "waiting for the API server"
        return census(records)

    def _forget(self, uid: str) -> None:
        self._manager.forget(uid)
        self._timelines.forget(uid)

    def _on_status(self, uid: str, status: Object, seconds: float) -> None:
        record = self._manager.record(uid)
        if record is not None and status.get("phase") == "Running":
            created = None if is_static(record.pod) else record.pod["metadata"].get("creationTimestamp")
            self._timelines.told(uid, seconds, record.seen_at, epoch(created) if created else None)

    def _tell(self, sentence: str) -> None:
        if sentence != self._sentence:
            log.info("Looked after node state=%s", sentence)
            self._sentence = sentence

    def _end_orphans(self) -> None:
        try:
            sandboxes = self._runtime.list_sandboxes()
            self._manager.end_orphans(sandboxes, self._paths.pods, self._leftovers.clear)
        except (NodeError, OSError) as error:
            log.warning("Failed to remove orphans error=%s", error)

    def _on_node_event(self, kind: str, new: Object, old: Object | None) -> None:
        if new["metadata"]["name"] != self._options.node_name:
            self._follow_peers()
            return
        if kind != "DELETED":
            self._on_node(new)
        if self._registrar is not None:
            self._registrar.deleted() if kind == "DELETED" else self._registrar.seen(new)

    def _on_pod_event(self, kind: str, new: Object, old: Object | None) -> None:
        self._manager.on_api_event(kind, new, old)
        if kind == "MODIFIED":
            self._statuses.seen(new)

    def _on_node(self, node: Object) -> None:
        self._node_events.release()
        self._credentials.serving.look()
        spec = node["spec"]
        cidr = ",".join(spec.get("podCIDRs") or ()) or spec.get("podCIDR") or self._config.pod_cidr
        if cidr:
            self._network.bring_up(cidr)

    def _follow_peers(self) -> None:
        """Routes to the pods of the other nodes, once all of them are known."""
        if self._node_informer is not None and self._node_informer.synced():
            self._peers.update(self._node_informer.list(), self._node_object())
            self._network.know(self._peers.neighbours)

    def _public_key(self) -> str:
        return self._tunnel.public_key if self._tunnel is not None else ""

    def _attached(self) -> list[tuple[str, str]]:
        return [(sandbox.id, "eth0") for sandbox in self._runtime.list_sandboxes()]

    def _refresh_node(self) -> None:
        if self._registrar is not None:
            self._registrar.refresh()

    def _wake_all(self) -> None:
        for record in self._manager.records():
            self._workers.wake(record.uid)

    def _all_nodes(self) -> Sequence[Object]:
        assert self._client is not None
        nodes: Sequence[Object] = self._client.list(NODES)["items"]
        return nodes

    def _node_uid(self) -> str:
        node = self._registrar.node() if self._registrar is not None else None
        return str(node["metadata"]["uid"]) if node is not None else ""

    def _node_object(self) -> Object:
        """The Node as the API has it; before it does, what it will be registered with."""
        name = self._options.node_name
        informed = self._node_informer.get(name) if self._node_informer is not None else None
        registered = self._registrar.node() if self._registrar is not None else None
        if found := informed or registered:
            return found
        return {"metadata": {"name": name, "labels": self._report.labels()}, "spec": {}}

    def begin_shutdown(self) -> None:
        """End all pods by priority (kubelet-py node shutdown)."""
        self._guard.shutdown.begin()

    def _list_services(self) -> Sequence[Object] | None:
        if self._services is None:
            return []
        return self._services.list() if self._services.synced() else None


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    sys.setswitchinterval(SWITCH_INTERVAL)
    threading.stack_size(512 * 1024)
    try:
        agent = Agent(prepare(parse_arguments(sys.argv[1:] if argv is None else argv)))
    except (CertificateError, ConfigError, NoAddress, RuntimeFailure, OSError) as error:
        print(f"kubelet_py.agent: {error}", file=sys.stderr)
        return 1
    obey({signal.SIGTERM: agent.stop, signal.SIGINT: agent.stop, SHUTDOWN_SIGNAL: agent.begin_shutdown})
    try:
        agent.run()
    except (CertificateError, ConfigError, RuntimeFailure, OSError) as error:
        print(f"kubelet_py.agent: {error}", file=sys.stderr)
        return 1
    finally:
        agent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
