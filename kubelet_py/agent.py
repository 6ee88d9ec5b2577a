"""The node agent's process: wires the parts together, and says in one sentence what it waits for.

Start-up order matters twice: the runtime's forkserver is started before any thread exists, and pods are heard
of only after the Services are known (their addresses are in every container's environment). Everything else
starts at once and retries by itself, so the order in which API server and agent come to life does not matter.
"""

from __future__ import annotations

import gc
import ipaddress
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cni.errors import CniError
from kubeclient import kubeconfig
from kubeclient.errors import ApiError
from kubeclient.events import EventRecorder
from kubeclient.informer import Informer
from kubeclient.resources import NODES, PODS, SERVICES, SUBJECT_ACCESS_REVIEWS
from kubeclient.rest import RestClient
from kubelet_py.backend import AgentBackend
from kubelet_py.config import Options, parse_arguments
from kubelet_py.errors import ConfigError, NodeError
from kubelet_py.node import status as node_status
from kubelet_py.node.addresses import NoAddress, choose_node_address
from kubelet_py.node.network import NodeNetwork
from kubelet_py.node.registrar import Registrar
from kubelet_py.paths import NodePaths
from kubelet_py.pods.containers import ContainerStarter
from kubelet_py.pods.context import NodeFacts, ObjectSource, TokenSource
from kubelet_py.pods.image_puller import ImagePuller
from kubelet_py.pods.model import Object, every_container
from kubelet_py.pods.pleg import Pleg
from kubelet_py.pods.pod_manager import PodManager
from kubelet_py.pods.prober import Prober
from kubelet_py.pods.sandboxes import Sandboxes
from kubelet_py.pods.static_pods import StaticPods
from kubelet_py.pods.status_manager import NullStatusManager, StatusManager
from kubelet_py.pods.sync_pod import Parts, PodSyncer
from kubelet_py.pods.workers import PodWorkers
from kubelet_py.volumes.manager import VolumeManager
from runtime import cgroups
from runtime.errors import RuntimeFailure
from runtime.images.store import ImageStore
from runtime.linux import LinuxKernel
from runtime.service import RuntimeService

if TYPE_CHECKING:
    from kubelet_py.server.app import KubeletServer

log = logging.getLogger("agent")

TICK = 1.0
REFRESH_SECONDS = 10.0
ORPHAN_SECONDS = 30.0
SWITCH_INTERVAL = 0.0005  # seconds a thread may keep the interpreter while another waits


class Agent:
    """One node. `run` returns after `stop`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._config = options.config
        self._paths = NodePaths(options.root)
        self._stopping = threading.Event()
        self._network_up = threading.Event()
        self._network_lock = threading.Lock()
        self._cidr = ""
        self._problem = "cni plugin not initialized"
        self._sentence = ""
        self._refreshed = self._looked = time.monotonic()
        self._cgroups = cgroups.detect()
        self._runtime = RuntimeService(
            run_dir=self._paths.run, state_dir=self._paths.containers, cgroups=self._cgroups
        )
        self._runtime.start()  # first of all: it forks
        address = choose_node_address(options.node_ip)
        log.info(
            "Chose node address=%s interface=%s reason=%s", address.address, address.interface, address.reason
        )
        self._machine = node_status.read_machine(self._paths.state)
        self._node = NodeFacts(
            options.node_name,
            (address.address,),
            node_status.allocatable(self._machine, self._config),
            self._machine.memory,
        )
        self._client = self._connect()
        self._build()

    def _connect(self) -> RestClient | None:
        file = self._paths.kubeconfig("kubelet")
        if not file.exists():
            log.info("Started without an API server: only static pods run (no %s)", file)
            return None
        return RestClient(kubeconfig.load(file), user_agent="kubelet-py")

    def _build(self) -> None:
        client, paths, config = self._client, self._paths, self._config
        self._network = NodeNetwork(paths, self._options.cni_bin_dirs)
        self._images = ImageStore(paths.images)
        self._recorder = EventRecorder(client, "kubelet", self._options.node_name) if client else None
        self._workers = PodWorkers(lambda uid: self._syncer.sync(uid))
        self._manager = PodManager(client, self._workers.wake, self._node_uid)
        self._statuses = StatusManager(client) if client else NullStatusManager()
        self._volumes = VolumeManager(paths.pods)
        self._sandboxes = Sandboxes(
            service=self._runtime,
            cgroups=self._cgroups,
            invoker=self._network.invoker,
            paths=paths,
            config=config,
            facts=self._node,
        )
        self._pleg = Pleg(self._runtime, self._sandboxes.ips, self._workers.wake)
        self._prober = Prober(self._runtime, changed=self._workers.wake, tell=self._probe_event)
        self._services = Informer(client, SERVICES) if client else None
        self._server: KubeletServer | None = None
        self._pods: Informer | None = None
        self._registrar: Registrar | None = None
        self._node_informer: Informer | None = None
        objects, tokens, puller = ObjectSource(client), TokenSource(client), ImagePuller(self._images)
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
            event=self._event,
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
            node=self._node,
            event=self._event,
            client=client,
            cgroup_root=paths.cgroup_root,
            mirror=self._manager.mirror,
        )
        self._syncer = PodSyncer(parts, self._manager.record, self._manager.forget)
        folder = Path(config.static_pod_path) if config.static_pod_path else paths.manifests
        self._static = StaticPods(
            folder, self._options.node_name, self._manager.on_static_pods, period=config.file_check_frequency
        )

    # life

    def run(self) -> None:
        """Start every part, then look after the node until `stop`."""
        self._make_qos_cgroups()
        self._statuses.start()
        self._workers.start()
        self._pleg.start()
        self._prober.start()
        self._start_server()
        if self._client is not None:
            self._start_api(self._client)
        else:
            self._bring_network_up(self._config.pod_cidr or first_subnet(self._config.cluster_cidr))
        self._static.start()
        self._end_orphans()
        gc.collect()
        gc.freeze()  # what start-up made lives as long as the process
        while not self._stopping.wait(TICK):
            self._tell(self.tick())

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None:
        """Let go of everything; containers run on."""
        parts = (self._static, self._prober, self._pleg, self._workers, self._statuses)
        for part in (*parts, self._registrar, self._server):
            if part is not None:
                part.stop()
        self._runtime.close()
        log.info("Stopped agent node=%s", self._options.node_name)

    def _start_api(self, client: RestClient) -> None:
        name = self._options.node_name
        assert self._services is not None
        own = f"metadata.name={name}"
        self._node_informer = Informer(client, NODES, field_selector=own, on_event=self._on_node_event)
        mine = f"spec.nodeName={name}"
        self._pods = Informer(client, PODS, field_selector=mine, on_event=self._manager.on_api_event)
        self._registrar = Registrar(
            client,
            name=name,
            labels=node_status.labels(self._machine, name, self._config),
            config=self._config,
            report=self._report,
            on_node=self._on_node,
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
        self._end_orphans()

    def _keep_mirrors(self) -> None:
        assert self._pods is not None
        while not self._stopping.is_set():
            self._manager.mirrors_due.wait()
            self._manager.mirrors_due.clear()
            self._pods.wait_synced()
            self._manager.keep_mirrors()

    def _start_server(self) -> None:
        from kubelet_py.server.app import KubeletServer

        pki = self._paths.pki
        if not (pki / "kubelet.crt").exists():
            log.info("Started without a server on port %d (no serving certificate)", self._config.port)
            return
        self._server = KubeletServer(
            AgentBackend(self._manager, self._pleg, self._runtime),
            address=self._config.address,
            port=self._config.port,
            cert_file=str(pki / "kubelet.crt"),
            key_file=str(pki / "kubelet.key"),
            client_ca_file=str(pki / "ca.crt"),
            authorize=self._authorize,
        )
        self._server.start()

    def _make_qos_cgroups(self) -> None:
        root = f"{self._paths.cgroup_root}/kubepods"
        self._cgroups.create(f"{root}/burstable")
        self._cgroups.create(f"{root}/besteffort", {"cpu": {"shares": 2}})

    # the loop

    def tick(self) -> str:
        """A look at the whole: refresh what has to be fresh; one sentence on how things are."""
        now = time.monotonic()
        records = self._manager.records()
        if now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = now
            for record in records:
                self._syncer.refresh_volumes(record)
        if now - self._looked >= ORPHAN_SECONDS:
            self._looked = now
            self._end_orphans()
        running = sum(1 for r in records if (r.status or {}).get("phase") == "Running")
        problem = self._network_problem()
        if problem is not None:
            return f"waiting for the network: {problem}"
        if self._client is not None and self._pods is not None and not self._pods.synced():
            return "waiting for the API server"
        ending = sum(1 for r in records if r.ends)
        pending = len(records) - running - ending
        return f"running {running} pods, {pending} not running, {ending} ending"

    def _tell(self, sentence: str) -> None:
        if sentence != self._sentence:
            log.info("Looked after node state=%s", sentence)
            self._sentence = sentence

    def _end_orphans(self) -> None:
        known = self._pods is not None and self._pods.synced()
        try:
            sandboxes = self._runtime.list_sandboxes()
            self._manager.end_orphans(sandboxes, self._paths.pods, self._volumes, static_only=not known)
        except (NodeError, OSError) as error:
            log.warning("Failed to remove orphans error=%s", error)

    # the network

    def _on_node_event(self, kind: str, new: Object, old: Object | None) -> None:
        if kind != "DELETED":
            self._on_node(new)
        elif self._registrar is not None:
            self._registrar.refresh()

    def _on_node(self, node: Object) -> None:
        cidr = node["spec"].get("podCIDR") or self._config.pod_cidr
        if cidr and cidr != self._cidr:
            self._bring_network_up(cidr)

    def _bring_network_up(self, cidr: str) -> None:
        with self._network_lock:
            if cidr == self._cidr:
                return
            try:
                problems = self._network.start(
                    python=sys.executable,
                    pod_cidr=cidr,
                    cluster_cidr=self._config.cluster_cidr,
                    service_cidr=self._config.service_cidr,
                )
            except (CniError, OSError) as error:
                self._problem = str(error)
                log.warning("Failed to bring the network up error=%s", error)
                threading.Timer(1.0, self._bring_network_up, (cidr,)).start()
                return
            self._cidr = cidr
            for problem in problems:
                log.warning("Went on without kernel setting problem=%s", problem)
            log.info("Brought the network up pod_cidr=%s", cidr)
            self._network_up.set()
        if self._registrar is not None:
            self._registrar.refresh()
        for record in self._manager.records():
            self._workers.wake(record.uid)

    def _network_problem(self) -> str | None:
        if not self._network_up.is_set():
            return self._problem
        return self._network.invoker.ready()

    # the node

    def _node_uid(self) -> str:
        node = self._registrar.node() if self._registrar is not None else None
        return str(node["metadata"]["uid"]) if node is not None else ""

    def _report(self, now: float, node: Object) -> Object:
        addresses = [{"type": "InternalIP", "address": ip} for ip in self._node.ips]
        before = (node.get("status") or {}).get("conditions") or ()
        return {
            "capacity": node_status.capacity(self._machine, self._config),
            "allocatable": node_status.allocatable(self._machine, self._config),
            "addresses": [*addresses, {"type": "Hostname", "address": self._options.node_name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._config.port}},
            "nodeInfo": node_status.node_info(self._machine),
            "images": node_status.images(self._images.list()),
            "conditions": node_status.conditions(
                before,
                network_problem=self._network_problem(),
                degraded=self._cgroups.missing_features(),
                now=now,
            ),
        }

    def _list_services(self) -> Sequence[Object] | None:
        if self._services is None:
            return []
        return self._services.list() if self._services.synced() else None

    # words

    def _event(self, pod: Object, container: str, kind: str, reason: str, message: str) -> None:
        """An event about a pod, or about one of its containers."""
        if self._recorder is None:
            log.info("Event pod=%s reason=%s message=%s", pod["metadata"]["name"], reason, message)
            return
        where = None
        if container:
            init = any(c["name"] == container for c in pod["spec"].get("initContainers") or ())
            known = any(c["name"] == container for c in every_container(pod))
            field = "initContainers" if init else "containers"
            where = f"spec.{field}{{{container}}}" if known else None
        shown = self._manager.mirror(pod) or pod
        self._recorder.event(shown, kind, reason, message, field_path=where)

    def _probe_event(self, pod: Object, container: Object, kind: str, reason: str, message: str) -> None:
        self._event(pod, container["name"], kind, reason, message)

    def _authorize(self, user: str, groups: Sequence[str], verb: str, path: str) -> bool:
        """Ask the API server whether a client may (nodes/proxy and its siblings)."""
        from kubelet_py.server.app import subresource

        if self._client is None:
            return False
        attributes = {
            "verb": verb,
            "resource": "nodes",
            "subresource": subresource(path),
            "name": self._options.node_name,
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": list(groups), "resourceAttributes": attributes},
        }
        try:
            answer = self._client.create(SUBJECT_ACCESS_REVIEWS, body)
        except ApiError as error:
            log.warning("Failed to authorize user=%s path=%s error=%s", user, path, error)
            return False
        return bool((answer.get("status") or {}).get("allowed"))


def first_subnet(cluster_cidr: str) -> str:
    """The /24 that a node without an API server gives its pods."""
    network = ipaddress.ip_network(cluster_cidr)
    return str(next(network.subnets(new_prefix=max(24, network.prefixlen))))


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    sys.setswitchinterval(SWITCH_INTERVAL)
    threading.stack_size(512 * 1024)
    try:
        agent = Agent(parse_arguments(sys.argv[1:] if argv is None else argv))
    except (ConfigError, NoAddress, RuntimeFailure, OSError) as error:
        print(f"kubelet_py.agent: {error}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    try:
        agent.run()
    except (RuntimeFailure, OSError) as error:
        print(f"kubelet_py.agent: {error}", file=sys.stderr)
        return 1
    finally:
        agent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
