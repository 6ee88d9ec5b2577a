"""The control plane's process: API server, scheduler and controllers.

The API server owns the main thread's event loop. Scheduler and controllers are threads that talk to it over
TLS with certificates of their own, like anybody else: nothing here works only because it is in the same
process. The interpreter's switch interval is short, so that a busy controller cannot make requests wait.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from controlplane import node_deadlines
from controlplane.apiserver.app import ApiServer, ServerOptions
from controlplane.errors import ControlPlaneError
from controlplane.event_loop import new_event_loop
from controlplane.flag_values import duration, port_range
from controlplane.storage.sqlite import SqliteStore
from kubeclient.ranges import part_sizes, read_ranges

log = logging.getLogger(__name__)

_SWITCH_INTERVAL = 0.0005  # seconds a thread may hold the interpreter while another waits


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, read."""

    server: ServerOptions
    config_dir: Path
    data_dir: Path
    durable: bool
    cluster_cidr: str
    node_cidr_mask_sizes: Mapping[int, int]
    controllers: bool
    signing_seconds: float
    cluster_dns: str
    load_balancer_addresses: str
    nodes: node_deadlines.Deadlines
    kept_finished_pods: int


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Exits with 2 and one line for flags that make no sense."""
    parser = argparse.ArgumentParser(prog="controlplane.main", description="Run the control plane.")
    parser.add_argument("--config-dir", type=Path, required=True, help="holds pki/ and the kubeconfigs")
    parser.add_argument("--data-dir", type=Path, required=True, help="holds the database")
    parser.add_argument("--bind-address", default="0.0.0.0")
    parser.add_argument("--secure-port", type=int, default=6443)
    parser.add_argument("--advertise-address", default="127.0.0.1")
    parser.add_argument(
        "--service-cluster-ip-range",
        default="10.96.0.0/12",
        help="one range, or one of each IP version with a comma between",
    )
    parser.add_argument("--service-node-port-range", type=port_range, default=(30000, 32767))
    parser.add_argument("--cluster-cidr", default="10.244.0.0/16", help="of the pods; one or two as well")
    parser.add_argument(
        "--node-cidr-mask-size", type=int, default=0, help="of each node's part (default 24, IPv6: 64)"
    )
    for version in ("ipv4", "ipv6"):
        option = f"--node-cidr-mask-size-{version}"
        parser.add_argument(option, type=int, default=0, help="where there are two ranges")
    parser.add_argument("--cluster-dns", default="", help="ClusterIP of the nodes' name servers")
    parser.add_argument(
        "--load-balancer-addresses",
        default="",
        help="what Services of type LoadBalancer get: nodes, or ranges with commas (default: they wait)",
    )
    parser.add_argument("--storage", choices=("sqlite",), default="sqlite")
    parser.add_argument(
        "--storage-sync",
        choices=("normal", "full"),
        default="normal",
        help="full waits for the disk at each write, so that a power cut loses nothing either",
    )
    parser.add_argument(
        "--controllers",
        choices=("all", "none"),
        default="all",
        help="none serves the API only",
    )
    parser.add_argument(
        "--cluster-signing-duration",
        type=duration,
        default=duration("8760h0m0s"),
        help="how long a certificate lives that is signed for a CertificateSigningRequest (default 8760h)",
    )
    node_deadlines.add_flags(parser)
    parser.add_argument("-v", "--verbose", action="store_true")
    found = parser.parse_args(arguments)
    try:
        read_ranges(found.service_cluster_ip_range)
        sizes = part_sizes(
            read_ranges(found.cluster_cidr),
            found.node_cidr_mask_size,
            found.node_cidr_mask_size_ipv4,
            found.node_cidr_mask_size_ipv6,
        )
        if found.load_balancer_addresses:
            from controlplane.controllers.load_balancer import parse_pool

            parse_pool(found.load_balancer_addresses)
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(
        level=logging.DEBUG if found.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    server = ServerOptions(
        pki=found.config_dir / "pki",
        bind_address=found.bind_address,
        secure_port=found.secure_port,
        advertise_address=found.advertise_address,
        service_cluster_ip_range=found.service_cluster_ip_range,
        service_node_port_range=found.service_node_port_range,
        cluster_cidr=found.cluster_cidr,
        not_ready_seconds=found.default_not_ready_toleration_seconds,
        unreachable_seconds=found.default_unreachable_toleration_seconds,
    )
    return Options(
        server,
        found.config_dir,
        found.data_dir,
        found.storage_sync == "full",
        found.cluster_cidr,
        sizes,
        found.controllers == "all",
        found.cluster_signing_duration,
        found.cluster_dns,
        found.load_balancer_addresses,
        node_deadlines.read_flags(found),
        found.terminated_pod_gc_threshold,
    )


class Follower(Protocol):
    """What the scheduler and the controllers are to this module."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Followers:
    """Scheduler and controllers, started beside the loop so that serving does not wait for their imports."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._running: list[Follower] = []
        self._thread = threading.Thread(target=self._start, name="start-controllers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask them to end; they are daemons, so the process does not wait for a slow one."""
        self._thread.join(0.2)
        for follower in self._running:
            threading.Thread(target=follower.stop, daemon=True).start()

    def _start(self) -> None:
        from controlplane.controllers.base import SharedInformers
        from controlplane.controllers.manager import ControllerManager
        from controlplane.issuing import Issuer
        from controlplane.scheduler.scheduler import Scheduler
        from kubeclient.kubeconfig import load
        from kubeclient.rest import RestClient

        folder, pki = self._options.config_dir, self._options.server.pki
        client = RestClient(load(folder / "controller-manager.conf"))
        informers = SharedInformers(client)
        # The scheduler first: somebody waits for its pods.
        scheduler = Scheduler(RestClient(load(folder / "scheduler.conf")), informers)
        manager = ControllerManager(
            client,
            informers,
            root_ca=(pki / "ca.crt").read_text(),
            issuer=Issuer(pki / "ca.crt", pki / "ca.key", self._options.signing_seconds),
            cluster_cidr=self._options.cluster_cidr,
            node_cidr_mask_sizes=self._options.node_cidr_mask_sizes,
            cluster_dns=self._options.cluster_dns,
            load_balancer_addresses=self._options.load_balancer_addresses,
            node_deadlines=self._options.nodes,
            kept_finished_pods=self._options.kept_finished_pods,
        )
        followers: tuple[Follower, ...] = (manager, scheduler)
        for follower in followers:
            follower.start()
            self._running.append(follower)
        gc.collect()
        gc.freeze()


async def serve(options: Options) -> None:
    """Run until SIGTERM or SIGINT. Raises ControlPlaneError when it cannot start."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = ApiServer(options.server, SqliteStore(options.data_dir, durable=options.durable))
    try:
        await server.start()
    except ControlPlaneError:
        await server.stop()
        raise
    gc.collect()
    gc.freeze()  # what start-up made is there to stay: no collection need look at it again
    followers = Followers(options) if options.controllers else None
    if followers:
        followers.start()
    await stopped.wait()
    if followers:
        followers.stop()
    await server.stop()
    log.info("Stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m controlplane.main`."""
    options = parse_options(arguments)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(options))
    except ControlPlaneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
