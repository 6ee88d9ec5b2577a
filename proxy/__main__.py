"""`python -m proxy`: kube-proxy for one node, in iptables or nftables mode.

Waits quietly for its kubeconfig and the API server, so that all processes of a node may start at once.
On SIGTERM it ends within a second and leaves the rules: connections go on while it is restarted.
"""

from __future__ import annotations

import argparse
import gc
import logging
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from proxy import own_addresses
from proxy.changes import Changes
from proxy.config import MODES, ProxyConfig, parse_address, read_file
from proxy.conntrack import Conntrack
from proxy.dns.records import Names
from proxy.dns.running import DnsThread
from proxy.errors import ProxyError
from proxy.healthcheck import Health, Page, ServiceHealth, StatusServer
from proxy.iptables import Iptables
from proxy.metrics import Metrics
from proxy.modes import (
    backends,
    choose,
    iptables_forward_policy,
    nftables_refusal,
    remove_iptables,
    remove_nftables,
    remove_other,
    remove_policies,
    versions,
)
from proxy.node_addresses import BY_DEFAULT_SECONDS, Moving, defaulted, settled
from proxy.policy.enforcer import Enforcer
from proxy.policy.gate import Gate
from proxy.policy.rules import NameServer
from proxy.policy.world import World
from proxy.proxier import AddressFamily, Proxier, bridge_netfilter_problem
from proxy.watching import connect, start

log = logging.getLogger("proxy")

GATHER = {"iptables": 0.01, "nftables": 0.001}
"""Seconds that a change waits for others to go with it: what a sync costs decides."""
PATIENCE_WITH_SYNC = 5.0
DETAILED = 4  # klog's level for debugging


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s %(message)s"
    )
    args = _parser().parse_args(argv)
    if args.v >= DETAILED:
        logging.getLogger().setLevel(logging.DEBUG)
    try:
        if args.cleanup:
            Iptables()  # a clear word where it is missing: its rules could not be seen
            remove_iptables(tables=True)
            remove_nftables()
            remove_policies()
            return 0
        return _run(_configuration(args))
    except ProxyError as error:
        print(f"kube-proxy: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m proxy", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--config", type=Path, help="KubeProxyConfiguration file; flags win over it")
    parser.add_argument("--kubeconfig", help="how to reach the API server")
    parser.add_argument("--hostname-override", help="this node's name (default: the host's)")
    parser.add_argument(
        "--proxy-mode", choices=MODES, help="how Services get into the kernel (default iptables)"
    )
    parser.add_argument(
        "--cluster-cidr",
        help="range of pod addresses, or one per address family with a comma; other senders are masqueraded",
    )
    parser.add_argument(
        "--nodeport-addresses",
        help="ranges, with commas, of this node's addresses that node ports answer on; or the word primary: "
        "those of the Node object alone (default: all but loopback; in nftables mode primary)",
    )
    parser.add_argument(
        "--allow-external-ips",
        help="ranges, with commas, that spec.externalIPs of Services may take (default: none, CVE-2020-8554)",
    )
    parser.add_argument(
        "--healthz-bind-address", help="host:port of /healthz (default 127.0.0.1:10256, '' is off)"
    )
    parser.add_argument("--service-cidr", default="", help="range of Services' addresses (for DNS)")
    parser.add_argument(
        "--policy-file",
        default="",
        help="remembers that there are NetworkPolicies: after a boot, pods are silent until these are known",
    )
    parser.add_argument(
        "--dns-address", action="append", default=[], help="answer cluster DNS here; may be repeated"
    )
    parser.add_argument("--dns-port", type=int, default=10053, help="port of --dns-address (default 10053)")
    parser.add_argument(
        "--dns-service-address", action="append", default=[], help="ClusterIP of the DNS Service"
    )
    parser.add_argument("--cluster-domain", default="cluster.local", help="domain of the cluster's names")
    parser.add_argument(
        "--metrics-bind-address",
        help="host:port of /metrics (default 127.0.0.1:10249, '' is off); may be that of /healthz",
    )
    parser.add_argument("--cleanup", action="store_true", help="remove all rules of the proxy, and exit")
    parser.add_argument("-v", "--v", type=int, default=0, metavar="N", help="from 4 on details are logged")
    return parser


def _configuration(args: argparse.Namespace) -> ProxyConfig:
    config = ProxyConfig()
    if args.config:
        config = read_file(args.config, config)
    if args.kubeconfig:
        config = replace(config, kubeconfig=args.kubeconfig)
    if args.hostname_override:
        config = replace(config, hostname=args.hostname_override)
    if args.cluster_cidr:
        config = replace(config, cluster_cidr=args.cluster_cidr)
    if args.proxy_mode:
        config = replace(config, mode=args.proxy_mode)
    if args.nodeport_addresses:
        config = replace(config, node_port_addresses=tuple(args.nodeport_addresses.split(",")))
    if args.allow_external_ips:
        config = replace(config, external_ip_ranges=tuple(args.allow_external_ips.split(",")))
    if args.healthz_bind_address is not None:
        config = replace(config, healthz=parse_address(args.healthz_bind_address))
    config = replace(
        config,
        dns_addresses=tuple(args.dns_address),
        dns_port=args.dns_port,
        dns_service_addresses=tuple(args.dns_service_address),
        cluster_domain=args.cluster_domain,
        service_cidr=args.service_cidr,
        policy_file=args.policy_file,
    )
    if args.metrics_bind_address is not None:
        config = replace(config, metrics=parse_address(args.metrics_bind_address))
    if not config.hostname:
        config = replace(config, hostname=socket.gethostname().lower())
    if not config.kubeconfig:
        raise ProxyError("Could not start: no kubeconfig (use --kubeconfig or clientConnection.kubeconfig)")
    return config.check()


def _run(config: ProxyConfig) -> int:
    gate = Gate(Path(config.policy_file) if config.policy_file else None)
    gate.close()
    stop = threading.Event()
    end_on_signals(stop)
    families = versions(config)
    choice = choose(config.mode, lambda: nftables_refusal(config, families), iptables_forward_policy)
    health, metrics = Health(2 * config.sync_period), Metrics()
    servers = _servers(config, health, metrics, choice.mode)
    patience = None if config.primary_only else BY_DEFAULT_SECONDS
    config, moving = defaulted(config, choice.mode), None
    if config.primary_only:
        found_config = _with_addresses(config, stop, patience)
        if found_config is None:
            for server in servers:
                server.stop()
            return 0
        config, moving = found_config, Moving(found_config.node_port_addresses, stop)
    changed = threading.Event()
    found = [
        AddressFamily(
            Changes(config.hostname, backend.version, changed, time.time()),
            backend,
            Conntrack(backend.version),
        )
        for backend in backends(choice.mode, config, families)
    ]
    problem = bridge_netfilter_problem()
    if problem:
        log.warning("Found bridged packets hidden from netfilter reason=%s", problem)
    ranges = config.node_port_addresses
    ports = ServiceHealth(health, lambda: own_addresses.chosen(ranges, families, own_addresses.read()))
    proxier = Proxier(
        config,
        found,
        changed,
        health,
        metrics=metrics,
        service_health=ports,
        gather=GATHER[choice.mode],
        after_first=lambda: _settle(choice.mode),
    )
    names = Names() if config.dns_addresses else None
    world = World()
    of_node = [moving.node_event] if moving else []
    watching = start(config, [family.changes for family in found], names, world, stop, of_node)
    policies: Enforcer | None = None
    failed = False
    if watching is not None and watching.wait_synced(stop):
        titles = ",".join(family.backend.title.replace(" ", "/") for family in found)
        reason = choice.reason
        log.info(
            "Started proxy node=%s mode=%s backends=%s reason=%s",
            config.hostname,
            choice.mode,
            titles,
            reason,
        )
        worker = _Worker(proxier, stop)
        worker.start()
        policies = Enforcer(
            world,
            config.hostname,
            watching.policies.synced,
            watching.pods,
            server=_name_server(config),
            gate=gate,
        )
        policies.start()
        if names is not None:
            DnsThread(config, names, stop).start()
        stop.wait()
        proxier.stop()
        worker.join(PATIENCE_WITH_SYNC)
        failed = worker.failed
    if policies is not None:
        policies.stop()
        policies.join(PATIENCE_WITH_SYNC)
    if watching is not None:
        watching.stop()
    ports.stop()
    for family in found:
        family.backend.close()
    for server in servers:
        server.stop()
    log.info("Stopped proxy")
    return 1 if failed or (moving and moving.moved) else 0


def end_on_signals(stop: threading.Event) -> None:
    """Set `stop` when the process is told to end; to be called by the main thread.

    Python runs a handler on that thread, between any two of its steps: also while it holds the lock inside
    the very event, which set() would wait for then. So the handler only writes down that it was called.
    """
    told: queue.SimpleQueue[int] = queue.SimpleQueue()

    def obey() -> None:
        told.get()
        stop.set()

    threading.Thread(target=obey, name="signals", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: told.put(number))


def _with_addresses(
    config: ProxyConfig, stop: threading.Event, patience: float | None
) -> ProxyConfig | None:
    client = connect(config, stop)
    return settled(config, client, stop, patience) if client else None


def _name_server(config: ProxyConfig) -> NameServer:
    port = config.dns_port if config.dns_addresses else 0
    return NameServer(config.dns_service_addresses, config.dns_addresses, port)


def _servers(config: ProxyConfig, health: Health, metrics: Metrics, mode: str) -> list[StatusServer]:
    """/healthz and /metrics, started; one server where both have the same address. As upstream's, the one for
    metrics tells the mode, and that it is there."""
    healthz = {"/healthz": health.answer, "/livez": health.answer}
    plain = {"Content-Type": "text/plain; charset=utf-8"}
    figures: dict[str, Page] = {
        "/metrics": metrics.answer,
        "/proxyMode": lambda: (200, mode.encode(), plain),
        "/healthz": lambda: (200, b"ok", plain),
    }
    pages = [(config.healthz, healthz, "healthz"), (config.metrics, figures, "metrics")]
    if config.healthz == config.metrics:
        pages = [(config.healthz, {**figures, **healthz}, "healthz")]
    servers = [StatusServer(address, found, what) for address, found, what in pages if address]
    for server in servers:
        server.start()
    return servers


def _settle(mode: str) -> None:
    """After the first sync: the other mode's rules go, and what stays for good is no more looked through.

    A garbage collection over ten thousand Services takes longer than a change may take to reach the kernel.
    """
    remove_other(mode)
    gc.collect()
    gc.freeze()


class _Worker(threading.Thread):
    """Runs the loop; should a defect end it, the process ends too, to be started afresh."""

    def __init__(self, proxier: Proxier, stop: threading.Event) -> None:
        super().__init__(name="sync", daemon=True)
        self._proxier = proxier
        self._stopping = stop
        self.failed = False

    def run(self) -> None:
        try:
            self._proxier.run()
        except BaseException:
            self.failed = True
            log.exception("Stopped syncing")
        finally:
            self._stopping.set()


if __name__ == "__main__":
    sys.exit(main())
