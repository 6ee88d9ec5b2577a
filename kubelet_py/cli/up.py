"""`kubelet-py up`: check the host, make the certificates, start the node, say when it is Ready.

The process that runs the node is the supervisor (supervisor.py). In the foreground that is the command
itself; with --detach it is a process of its own, and the command ends when the node is Ready.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cni.veth import GSO_LARGE
from kubelet_py.cli import notify, unit
from kubelet_py.cli import settings as node_settings
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.readiness import NotReady, report_until_ready
from kubelet_py.cli.settings import NodeSettings, SettingsError
from kubelet_py.cli.supervisor import (
    AlreadyRunning,
    ChildSpec,
    Process,
    Supervisor,
    read_state,
    start_program,
)
from kubelet_py.cli.systemd import Systemd
from kubelet_py.node import modules, peers, segments
from kubelet_py.paths import NodePaths

SECOND_UP = "(see `kubelet-py status`, or stop it with `kubelet-py down`)"
LEAST_FREE_BYTES = 128 * 1024 * 1024
# Until the API server answers it could only wait; meanwhile its imports would take a processor from that.
PROXY_AFTER = 0.7


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "up",
        help="start the node",
        description="Start a one-node cluster on this machine: API server, scheduler, controllers, kubelet "
        "and proxy. Options are remembered below the root for the next `up`, until `reset`.",
        epilog="Stopping the foreground command, or killing it, leaves running pods alone; "
        "`kubelet-py down` stops the pods too.",
    )
    parser.add_argument("--detach", "-d", action="store_true", help="return once the node is Ready")
    add_options(parser)
    parser.set_defaults(handler=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a node can be told when it starts; also `install`'s options."""
    parser.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for Ready (default 60)")
    parser.add_argument("--node-name", help="name of the Node object (default: the host name)")
    add_address_options(parser)
    parser.add_argument("--bind-address", help="address the API server listens on (default 0.0.0.0)")
    parser.add_argument("--secure-port", type=int, help="port of the API server (default 6443)")
    parser.add_argument("--kubelet-port", type=int, help="port of the kubelet (default 10250)")
    parser.add_argument("--proxy-healthz-port", type=int, help="port of the proxy's healthz (default 10256)")
    parser.add_argument(
        "--proxy-mode",
        choices=("iptables", "nftables", "auto"),
        help="how Services get into the kernel (default iptables; auto: nftables where it can be)",
    )
    add_nodeport_option(parser)
    parser.add_argument(
        "--cluster-cidr",
        help="range of the pods' addresses (default 10.244.0.0/16); dual stack: one of IPv4 and one of IPv6 "
        "with a comma, for --service-cidr as well",
    )
    parser.add_argument("--service-cidr", help="range of the Services' addresses (default 10.96.0.0/12)")
    parser.add_argument(
        "--node-cidr-mask-size",
        type=int,
        help="the node's part of --cluster-cidr (default 24: 253 pods; more also need maxPods of "
        "--kubelet-config, 110)",
    )
    for version, usual in (("ipv4", 24), ("ipv6", 64)):
        told = f"the same where there are two (default {usual})"
        parser.add_argument(f"--node-cidr-mask-size-{version}", type=int, help=told)
    parser.add_argument(
        "--cluster-dns",
        action=argparse.BooleanOptionalAction,
        help="answer the cluster's names at the tenth Service address (default yes)",
    )
    parser.add_argument("--cluster-domain", help="domain of the cluster's names (default cluster.local)")
    parser.add_argument(
        "--load-balancer-addresses",
        help="what Services of type LoadBalancer get: nodes, or ranges with commas (default: they wait)",
    )
    parser.add_argument(
        "--pod-routes",
        type=peers.mode,
        metavar=peers.CHOICES,
        help="how to reach pods of other nodes (default auto: by VXLAN where a router lies between; "
        "wireguard: encrypted, to nodes that have it, too)",
    )
    parser.add_argument("--wireguard-port", type=peers.port, help="UDP port of the tunnel (default 51820)")
    add_gso_option(parser)
    parser.add_argument("--kubelet-config", help="a KubeletConfiguration file")
    parser.add_argument(
        "--cni-bin-dir",
        action="append",
        dest="cni_bin_dirs",
        help="folder searched for CNI plugins before our own; may be repeated",
    )


def add_nodeport_option(parser: argparse.ArgumentParser) -> None:
    """For `join` too."""
    parser.add_argument(
        "--nodeport-addresses",
        help="ranges, with commas, of the node's addresses that node ports answer on, or the word primary: "
        "those of its Node object (default: all but loopback; in nftables mode primary)",
    )


def add_gso_option(parser: argparse.ArgumentParser) -> None:
    """For `join` too."""
    parser.add_argument(
        "--pod-gso-size",
        type=segments.size,
        metavar=segments.CHOICES,
        help="bytes of TCP that a pod hands out at a time (default auto: as many as every interface takes "
        f"that a route leads out by, {GSO_LARGE} where none does; more is faster between pods, and costs CPU "
        "on the way out)",
    )


def add_address_options(parser: argparse.ArgumentParser) -> None:
    """Which address the node announces; for `join` too."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--node-ip",
        help="address of this node, or one of each IP version with a comma (default: the default route's "
        "interface)",
    )
    which.add_argument("--node-interface", help="interface whose address is this node's")


def run(args: argparse.Namespace) -> int:
    """Start the node; raises CommandError with what to do where the host does not allow it."""
    require_root("up")
    paths = NodePaths(args.root.resolve())
    try:
        settings = settings_for(args, paths)
        systemd = Systemd()
        if args.detach and systemd.installed(unit.name(paths)):
            refuse_a_second(paths)
            settings.save(paths, synced=True)
            start_unit(paths, settings, args.timeout, systemd)
            return 0
        if args.detach:
            argv = [arg for arg in sys.argv[1:] if arg not in ("--detach", "-d")]
            start_detached(paths, settings, args.timeout, argv)
            return 0
        tell = notify.take(os.environ)
        supervisor = prepare(paths, settings, children(paths, settings), tell=tell)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error))
        raise CommandError(
            f"Could not use {error.filename or paths.root}: {name} (give a writable folder by --root)"
        ) from error
    detached = bool(os.environ.get("KUBELET_PY_DETACHED")) or tell is not None
    if not detached:
        _report_from_a_child(paths, settings, args.timeout)
    supervisor.run()
    if not detached:
        root = "" if paths.root == Path("/") else f" --root {paths.root}"
        print(f"Stopped the node; its pods keep running (`kubelet-py down{root}` stops them too)")
    return 0


def prepare(
    paths: NodePaths,
    settings: NodeSettings,
    specs: Sequence[ChildSpec],
    spawn: Callable[[ChildSpec], Process] = start_program,
    tell: notify.Tell | None = None,
) -> Supervisor:
    """Claim the node, check the host and write what the processes need; the supervisor to run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    supervisor = Supervisor(paths.run, specs, spawn=spawn, tell=tell or (lambda message: None))
    try:
        supervisor.lock()
    except AlreadyRunning as error:
        raise CommandError(f"{error} {SECOND_UP}") from error
    supervisor.end_leftovers()
    check_host(paths, settings)
    settings.save(paths)
    paths.manifests.mkdir(parents=True, exist_ok=True)
    if not settings.server:
        make_authority(paths, settings)
    keep_pods_silent(paths)
    return supervisor


def policy_file(paths: NodePaths) -> Path:
    """Where the proxy remembers over a boot that the cluster has NetworkPolicies."""
    return paths.state / "network-policies.json"


def keep_pods_silent(paths: NodePaths) -> None:
    """After a boot, before anything runs that could start a pod: until the proxy knows the policies."""
    if policy_file(paths).exists():
        from proxy.policy.gate import Gate

        Gate(policy_file(paths)).close()


def refuse_a_second(paths: NodePaths) -> None:
    """Before a supervisor is made that would have to give up: its readiness would be the other's."""
    state = read_state(paths.run)
    if state is not None and state.supervisor.alive():
        raise CommandError(f"A node already runs here (pid {state.supervisor.pid}) {SECOND_UP}")


def require_root(command: str) -> None:
    """Raise CommandError unless the caller is root."""
    if os.geteuid() != 0:
        raise CommandError(f"this needs root (try `sudo kubelet-py {command}`)")


def settings_for(args: argparse.Namespace, paths: NodePaths) -> NodeSettings:
    """Options given now over those of the last `up` over the defaults."""
    from kubelet_py.node.addresses import NoAddress

    given = node_settings.given(vars(args))
    known = node_settings.load(paths)
    try:
        cidr = given.get("cluster_cidr") or (known.cluster_cidr if known else node_settings.CLUSTER_CIDR)
        given |= address_for(args, known, cidr, alone=known is None or not known.server)
        if known is None:
            given.setdefault("node_name", socket.gethostname().lower())
            settings = NodeSettings(**given)
        else:
            settings = replace(known, **given)
        settings.check()
    except (SettingsError, NoAddress) as error:
        raise CommandError(str(error)) from error
    return settings


def address_for(
    args: argparse.Namespace, known: NodeSettings | None, cluster_cidr: str, *, alone: bool
) -> dict[str, str]:
    """The address settings: as asked for now or earlier; else a joined node keeps what it joined with as long
    as this machine has it; else the default route decides. One address for each of the cluster's IP versions.
    Raises NoAddress, SettingsError.
    """
    from kubelet_py.node.addresses import NoAddress, choose_node_addresses

    versions = node_settings.versions_of(cluster_cidr)

    asked = (args.node_ip or "", args.node_interface or "")
    if known is not None and not any(asked):
        asked = (known.asked_ip, known.node_interface)
    found = None
    if known is not None and known.server and not any(asked):
        try:
            first, *others = choose_node_addresses(known.node_ip, versions=versions, alone=alone)
            found = replace(first, reason="the node joined with it"), *others
        except NoAddress:
            pass
    found = found or choose_node_addresses(*asked, versions=versions, alone=alone)
    return {
        "node_ip": ",".join(one.address for one in found),
        "address_reason": found[0].reason,
        "asked_ip": asked[0],
        "node_interface": asked[1],
    }


def children(paths: NodePaths, settings: NodeSettings) -> list[ChildSpec]:
    """The node's processes, in the order of starting; a joined node has no control plane of its own."""
    python = [sys.executable, "-m"]
    s = settings
    control_plane = [
        *python, "controlplane.main",
        "--config-dir", str(paths.config), "--data-dir", str(paths.store),
        "--bind-address", s.api_address, "--secure-port", str(s.secure_port),
        "--service-cluster-ip-range", s.service_cidr, "--cluster-cidr", s.cluster_cidr,
        "--advertise-address", s.node_ips[0], "--node-cidr-mask-size", str(s.node_cidr_mask_size),
        "--node-cidr-mask-size-ipv4", str(s.node_cidr_mask_size_ipv4),
        "--node-cidr-mask-size-ipv6", str(s.node_cidr_mask_size_ipv6),
        *(["--cluster-dns", s.dns_address] if s.dns_address else []),
        *(["--load-balancer-addresses", s.load_balancer_addresses] if s.load_balancer_addresses else []),
    ]  # fmt: skip
    agent = [
        *python, "kubelet_py.agent",
        "--root", str(paths.root), "--node-name", s.node_name, "--node-ip", s.node_ip,
        *(["--node-ip-reason", s.address_reason] if s.address_reason else []),
        "--port", str(s.kubelet_port), "--cluster-cidr", s.cluster_cidr, "--service-cidr", s.service_cidr,
        *(["--config", s.kubelet_config] if s.kubelet_config else []),
        *_kubelet_dns(s), "--pod-routes", s.pod_routes,
        "--wireguard-port", str(s.wireguard_port),
        *(["--pod-gso-size", str(s.pod_gso_size)] if s.pod_gso_size else []),
        *(part for folder in s.cni_bin_dirs for part in ("--cni-bin-dir", folder)),
    ]  # fmt: skip
    if s.server:
        token = str(paths.kubeconfig("bootstrap-kubelet"))
        agent += ["--bootstrap-kubeconfig", token, "--rotate-certificates", "--rotate-server-certificates"]
    login = paths.kubeconfig("kubelet" if s.server else "proxy")
    proxy = [
        *python, "proxy",
        "--kubeconfig", str(login), "--hostname-override", s.node_name,
        "--cluster-cidr", s.cluster_cidr, "--healthz-bind-address", f"127.0.0.1:{s.proxy_healthz_port}",
        "--metrics-bind-address", f"127.0.0.1:{s.proxy_healthz_port}", "--proxy-mode", s.proxy_mode,
        "--policy-file", str(policy_file(paths)), *_proxy_dns(s),
        *(["--nodeport-addresses", s.nodeport_addresses] if s.nodeport_addresses else []),
    ]  # fmt: skip
    own = [] if s.server else [ChildSpec("controlplane", control_plane, paths.logs / "controlplane.log")]
    return [
        *own,
        ChildSpec("agent", agent, paths.logs / "agent.log"),
        ChildSpec("proxy", proxy, paths.logs / "proxy.log", after=0.0 if s.server else PROXY_AFTER),
    ]


def _kubelet_dns(s: NodeSettings) -> list[str]:
    """The kubelet's flags for cluster DNS; what a configuration file says of it stands."""
    if not s.dns_address:
        return []
    said: set[str] = set()
    if s.kubelet_config:
        from kubelet_py.config import load

        config = load(Path(s.kubelet_config))
        said = {name for name in ("cluster_dns", "cluster_domain") if getattr(config, name)}
    flags = {
        "cluster_dns": ["--cluster-dns", s.dns_address],
        "cluster_domain": ["--cluster-domain", s.cluster_domain],
    }
    return [part for name, parts in flags.items() if name not in said for part in parts]


def _proxy_dns(s: NodeSettings) -> list[str]:
    if not s.dns_address:
        return []
    return [
        "--dns-address", s.node_ips[0], "--dns-service-address", s.dns_address,
        "--service-cidr", s.service_cidr, "--cluster-domain", s.cluster_domain,
    ]  # fmt: skip


def check_host(paths: NodePaths, settings: NodeSettings) -> None:
    """Raise CommandError for what would make the node fail later, with what to do about it."""
    for tool, package in (("iptables-restore", "iptables"), ("ip", "iproute2")):
        if shutil.which(tool) is None:
            raise CommandError(f"Could not find {tool} (install it: apt-get install {package})")
    require_overlay()
    if settings.pod_routes == "wireguard":
        require_wireguard()
    paths.state.mkdir(parents=True, exist_ok=True)
    disk = os.statvfs(paths.state)
    if disk.f_bavail * disk.f_frsize < LEAST_FREE_BYTES:
        raise CommandError(f"Less than 128 MiB are free on the disk of {paths.state} (make room, or --root)")
    own = (settings.api_address, settings.secure_port, "the API server", "--secure-port")
    ports = (
        *(() if settings.server else (own,)),
        ("0.0.0.0", settings.kubelet_port, "the kubelet", "--kubelet-port"),
        ("127.0.0.1", settings.proxy_healthz_port, "the proxy's healthz", "--proxy-healthz-port"),
    )
    for address, port, what, option in ports:
        _check_port(address, port, what, option)


def require_overlay(
    known: Callable[[str], bool] = modules.has_filesystem, load: Callable[[str], str | None] = modules.load
) -> None:
    """Load overlayfs where nobody has yet since the boot; raise CommandError if it cannot be had."""
    if known("overlay"):
        return
    problem = load("overlay")
    if not known("overlay"):
        raise CommandError(f"Could not load overlayfs: {problem or 'not in /proc/filesystems'}")


def require_wireguard(problem: Callable[[], str] | None = None) -> None:
    """Raise CommandError where the kernel cannot encrypt; trying loads its module."""
    from kubelet_py.cli.doctor.observe_kernel import try_link

    found = problem() if problem is not None else try_link("wireguard")
    if found:
        raise CommandError(
            f"Could not use --pod-routes wireguard: this kernel has no WireGuard ({found}; try modprobe "
            "wireguard, or choose auto, direct or vxlan and let the nodes meet on a network that you trust)"
        )


def _check_port(address: str, port: int, what: str, option: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error))
            raise CommandError(
                f"Could not bind {address}:{port} for {what}: {name} (free it, or choose another by {option})"
            ) from error


def make_authority(paths: NodePaths, settings: NodeSettings) -> None:
    """Make the missing certificates and kubeconfigs, in a process of its own: cryptography is large."""
    done = subprocess.run(
        [
            sys.executable, "-m", "controlplane.authority",
            "--config-dir", str(paths.config), "--advertise-address", settings.node_ips[0],
            "--node-name", settings.node_name, "--secure-port", str(settings.secure_port),
            "--service-cluster-ip-range", settings.service_cidr,
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CommandError(f"Could not make the certificates: {lines[-1]}")


def start_detached(
    paths: NodePaths, settings: NodeSettings, timeout: float, argv: Sequence[str] = ()
) -> None:
    """Start the supervisor as a session of its own and wait here until the node is Ready.

    `argv` is the command line of `up` that becomes the supervisor; without one the saved settings count.
    """
    refuse_a_second(paths)
    log_file = paths.logs / "supervisor.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log_file.open("ab") as output:
        offset = output.tell()
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "kubelet_py", *(argv or ["up", "--root", str(paths.root)])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ | {"KUBELET_PY_DETACHED": "1"},
        )
    try:
        report_until_ready(
            paths, settings, started=started, timeout=timeout, alive=lambda: supervisor.poll() is None
        )
    except NotReady as error:
        if supervisor.poll() is not None:
            raise CommandError(_last_words(log_file, offset)) from error
        root = "" if paths.root == Path("/") else f" --root {paths.root}"
        raise CommandError(f"{error}; it goes on trying: kubelet-py status{root}") from error


def start_unit(paths: NodePaths, settings: NodeSettings, timeout: float, systemd: Systemd) -> None:
    """Have systemd start the node's unit (or start it anew), and wait here until the node is Ready."""
    name = unit.name(paths)
    started = time.monotonic()
    systemd.restart(name)
    print(f"Started {name}", flush=True)
    try:
        report_until_ready(paths, settings, started=started, timeout=timeout, alive=lambda: True)
    except NotReady as error:
        raise CommandError(f"{error}; {name} goes on trying") from error


def _last_words(log_file: Path, offset: int) -> str:
    """The message of a supervisor that ended at once, without its own prefix."""
    lines = log_file.read_bytes()[offset:].decode(errors="replace").strip().splitlines()
    if not lines:
        return f"The supervisor ended without a word (see {log_file})"
    return lines[-1].removeprefix("kubelet-py up: ")


def _report_from_a_child(paths: NodePaths, settings: NodeSettings, timeout: float) -> None:
    """Report readiness from a grandchild that ends by itself; the caller goes on as supervisor."""
    started = time.monotonic()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    code = 1
    try:
        if os.fork() == 0:
            report_until_ready(paths, settings, started=started, timeout=timeout, alive=lambda: True)
        code = 0
    except (NotReady, CommandError) as error:
        print(f"kubelet-py up: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(code)
