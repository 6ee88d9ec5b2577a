"""`python -m proxy`: kube-proxy in iptables mode for one node.

Waits quietly for its kubeconfig and the API server, so that all processes of a node may start at once.
On SIGTERM it ends within a second and leaves the rules: connections go on while it is restarted.
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.changes import Changes
from proxy.config import ProxyConfig, parse_address, read_file
from proxy.conntrack import Conntrack
from proxy.dns.records import Names
from proxy.dns.running import DnsThread
from proxy.errors import ProxyError
from proxy.healthcheck import Health, HealthServer
from proxy.iptables import Iptables
from proxy.proxier import Proxier, bridge_netfilter_problem, clean_up

if TYPE_CHECKING:
    from kubeclient.informer import Handler, Informer

log = logging.getLogger("proxy")


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s %(message)s"
    )
    args = _parser().parse_args(argv)
    try:
        if args.cleanup:
            clean_up(Iptables())
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
    parser.add_argument("--cluster-cidr", help="range of pod addresses; other senders are masqueraded")
    parser.add_argument(
        "--healthz-bind-address", help="host:port of /healthz (default 127.0.0.1:10256, '' is off)"
    )
    parser.add_argument("--service-cidr", default="", help="range of Services' addresses (for DNS)")
    parser.add_argument(
        "--dns-address", action="append", default=[], help="answer cluster DNS here; may be repeated"
    )
    parser.add_argument("--dns-port", type=int, default=10053, help="port of --dns-address (default 10053)")
    parser.add_argument(
        "--dns-service-address", action="append", default=[], help="ClusterIP of the DNS Service"
    )
    parser.add_argument("--cluster-domain", default="cluster.local", help="domain of the cluster's names")
    parser.add_argument("--cleanup", action="store_true", help="remove all rules of the proxy, and exit")
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
    if args.healthz_bind_address is not None:
        config = replace(config, healthz=parse_address(args.healthz_bind_address))
    config = replace(
        config,
        dns_addresses=tuple(args.dns_address),
        dns_port=args.dns_port,
        dns_service_addresses=tuple(args.dns_service_address),
        cluster_domain=args.cluster_domain,
        service_cidr=args.service_cidr,
    )
    if not config.hostname:
        config = replace(config, hostname=socket.gethostname().lower())
    if not config.kubeconfig:
        raise ProxyError("Could not start: no kubeconfig (use --kubeconfig or clientConnection.kubeconfig)")
    return config.check()


def _run(config: ProxyConfig) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    backend = Iptables()
    problem = bridge_netfilter_problem()
    if problem:
        log.warning("Found bridged packets hidden from iptables reason=%s", problem)
    health = Health(2 * config.sync_period)
    server = HealthServer(config.healthz, health) if config.healthz else None
    if server:
        server.start()
    changes = Changes(config.hostname)
    names = Names() if config.dns_addresses else None
    proxier = Proxier(config, changes, backend, Conntrack(), health)
    informers = _informers(config, changes, names, stop)
    failed = False
    if _wait_synced(informers, stop):
        log.info("Started proxy node=%s variant=%s", config.hostname, backend.variant)
        worker = _Worker(proxier, stop)
        worker.start()
        if names is not None:
            DnsThread(config, names, stop).start()
        stop.wait()
        proxier.stop()
        failed = worker.failed
    for informer in informers:
        informer.stop()
    if server:
        server.stop()
    log.info("Stopped proxy")
    return 1 if failed else 0


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


def _informers(
    config: ProxyConfig, changes: Changes, names: Names | None, stop: threading.Event
) -> list[Informer]:
    """All informers, started; empty when we are told to stop before there is a kubeconfig."""
    # Imported here: --cleanup and every refusal to start can do without an HTTP client.
    from kubeclient.errors import ConfigError as ClientConfigError
    from kubeclient.informer import Informer
    from kubeclient.kubeconfig import load
    from kubeclient.resources import NAMESPACES, SERVICES
    from kubeclient.rest import RestClient
    from proxy.slice_version import endpoint_slices

    path = Path(config.kubeconfig)
    waited = False
    while not path.exists():
        if not waited:
            log.info("Waiting for kubeconfig path=%s", path)
            waited = True
        if stop.wait(0.05):
            return []
    try:
        client = RestClient(load(path), user_agent="kube-proxy")
    except ClientConfigError as error:
        raise ProxyError(str(error)) from error
    slices = endpoint_slices(client, stop)
    if slices is None:
        return []
    of_services, of_slices = [changes.service_event], [changes.slice_event]
    if names is not None:
        of_services.append(names.service_event)
        of_slices.append(names.slice_event)
    informers = [
        Informer(client, SERVICES, on_event=_each(of_services)),
        Informer(client, slices, on_event=_each(of_slices)),
    ]
    if names is not None:
        informers.append(Informer(client, NAMESPACES, on_event=names.namespace_event))
    for informer in informers:
        informer.start()
    return informers


def _each(handlers: Sequence[Handler]) -> Handler:
    """One handler that calls several."""

    def call(kind: str, new: dict[str, Any], old: dict[str, Any] | None) -> None:
        for handler in handlers:
            handler(kind, new, old)

    return call


def _wait_synced(informers: Sequence[Informer], stop: threading.Event) -> bool:
    """True when the first lists are in; rules made from half of the objects would refuse the other half."""
    for informer in informers:
        while not informer.wait_synced(0.1):
            if stop.is_set():
                return False
    return bool(informers) and not stop.is_set()


if __name__ == "__main__":
    sys.exit(main())
