"""`kubelet-py join` and `kubelet-py leave`: make this machine a node of a cluster elsewhere, and undo that.

Joining is three things: find out that the server is the right one (discovery.py), write down what the node's
processes need, start them. The agent itself turns the token into a certificate. A join that was cut off is
simply typed again; the token does not stay on the disk once the node was seen Ready (readiness.py).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane import bootstrap_tokens
from controlplane.bootstrap_tokens import BadBootstrapToken, BootstrapToken
from kubelet_py.cli import discovery, installation, login, unit, up
from kubelet_py.cli import settings as node_settings
from kubelet_py.cli.cleanup import down, remove_state, stop_processes
from kubelet_py.cli.discovery import NEW_TOKEN, Cluster
from kubelet_py.cli.errors import AddressRefused, CommandError
from kubelet_py.cli.settings import NodeSettings, SettingsError
from kubelet_py.cli.systemd import Systemd
from kubelet_py.node import peers
from kubelet_py.paths import NodePaths

if TYPE_CHECKING:
    from kubeclient.rest import RestClient

Object = dict[str, Any]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    join = subparsers.add_parser(
        "join",
        help="make this machine a node of a cluster",
        description="Make this machine a node of a cluster: check that the server is the one that the "
        "token was made for, get a certificate from it, start kubelet and proxy, and return when the node is "
        "Ready.",
        epilog="On the control plane, `kubelet-py token create --print-join-command` prints the command.",
    )
    join.add_argument("--server", required=True, help="address of the API server, https://host:port")
    join.add_argument("--token", required=True, help="bootstrap token, abcdef.0123456789abcdef")
    join.add_argument(
        "--discovery-token-ca-cert-hash", action="append", default=[], dest="pins", metavar="sha256:HEX",
        help="SHA-256 of the public key of the cluster's CA; may be repeated",
    )  # fmt: skip
    join.add_argument(
        "--discovery-token-unsafe-skip-ca-verification", action="store_true", dest="unpinned",
        help="let the token alone vouch for the CA: whoever has the token could pretend to be the cluster",
    )  # fmt: skip
    join.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    join.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for Ready (default 60)")
    join.add_argument("--node-name", help="name of the Node object (default: the host name)")
    up.add_address_options(join)
    join.add_argument("--kubelet-port", type=int, help="port of the kubelet (default 10250)")
    join.add_argument("--proxy-healthz-port", type=int, help="port of the proxy's healthz (default 10256)")
    join.add_argument("--cluster-cidr", help="range of the pods' addresses (default: as the cluster says)")
    join.add_argument("--service-cidr", help="range of the Services (default: as the cluster says)")
    join.add_argument(
        "--proxy-mode", choices=("iptables", "nftables", "auto"),
        help="how Services get into the kernel (default iptables; auto: nftables where it can be)",
    )  # fmt: skip
    up.add_nodeport_option(join)
    join.add_argument(
        "--pod-routes", type=peers.mode, metavar=peers.CHOICES,
        help="how to reach pods of other nodes (default auto: by VXLAN where a router lies between; "
        "wireguard: encrypted, to nodes that have it, too)",
    )  # fmt: skip
    join.add_argument("--wireguard-port", type=peers.port, help="UDP port of the tunnel (default 51820)")
    up.add_gso_option(join)
    join.add_argument("--kubelet-config", help="a KubeletConfiguration file")
    join.add_argument(
        "--cni-bin-dir", action="append", dest="cni_bin_dirs",
        help="folder searched for CNI plugins before our own; may be repeated",
    )  # fmt: skip
    join.add_argument(
        "--install", action="store_true", help="have systemd run the node, at boot too (as `install` does)"
    )
    join.set_defaults(handler=run_join)
    leave = subparsers.add_parser(
        "leave",
        help="take this machine out of its cluster",
        description="End the pods of a joined node, delete its Node object, and remove what `join` made, so "
        "that the machine is as before.",
    )
    leave.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    leave.set_defaults(handler=run_leave)


def run_join(args: argparse.Namespace) -> int:
    up.require_root("join")
    paths = NodePaths(args.root.resolve())
    systemd = Systemd()
    if args.install:
        systemd.require()
    settings = prepare(args, paths)
    with _writable(paths):
        try:
            if args.install:
                installation.start(paths, settings, systemd, args.timeout)
            else:
                up.start_detached(paths, settings, args.timeout)
        except AddressRefused:
            _undo(paths, settings, systemd)
            raise
    return 0


def _undo(paths: NodePaths, settings: NodeSettings, systemd: Systemd) -> None:
    """Not a member after all: what `join` made goes, images stay, and `join` can be typed again."""
    from kubeclient.errors import KubeClientError
    from kubeclient.resources import LEASES
    from kubelet_py.cli.readiness import LEASE_NAMESPACE

    systemd.remove(unit.name(paths))
    stop_processes(paths)
    try:
        client = login.client(paths, "join")
        client.delete(LEASES, settings.node_name, LEASE_NAMESPACE)
        client.close()
    except KubeClientError:
        pass  # there may be none yet; a heartbeat of no node means nothing
    down(paths, say=lambda words: None)
    shutil.rmtree(paths.certificates, ignore_errors=True)
    conf = (paths.kubeconfig(user) for user in ("kubelet", "bootstrap-kubelet"))
    for file in (paths.pki / "ca.crt", node_settings.file(paths), *conf):
        file.unlink(missing_ok=True)
    for folder in (paths.pki, paths.manifests, paths.config):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def prepare(args: argparse.Namespace, paths: NodePaths) -> NodeSettings:
    """All but starting: find the true server, ask it, write what the processes need. Raises CommandError."""
    server = discovery.server_url(args.server)
    name = args.node_name or socket.gethostname().lower()
    unfinished = _refuse_a_node(paths, server, name)
    token = _token(args)
    print(f"Looking at {server}", flush=True)
    cluster = discovery.discover(server, token, args.pins)
    print("The server is the one that the token was made for", flush=True)
    configuration = _ask(cluster, token, "" if unfinished else name)
    with _writable(paths):
        settings = _settings(args, server, name, configuration)
        stop_processes(paths)  # of an attempt that did not get as far as Ready
        up.check_host(paths, settings)
        _write(paths, settings, cluster, token)
    return settings


def forget_token(paths: NodePaths) -> None:
    """Once there is a certificate the token has done its work."""
    paths.kubeconfig("bootstrap-kubelet").unlink(missing_ok=True)


@contextlib.contextmanager
def _writable(paths: NodePaths) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, str(error))
        raise CommandError(
            f"Could not use {error.filename or paths.root}: {code} (give a writable folder by --root)"
        ) from error


def _refuse_a_node(paths: NodePaths, server: str, name: str) -> bool:
    """Whether a join of this very node got its certificate, but not as far as Ready before it gave up: its
    token is still there. Raises CommandError for any other node."""
    root = "" if paths.root == Path("/") else f" --root {paths.root}"
    known = node_settings.load(paths)
    if known is not None and not known.server:
        raise CommandError(f"This machine is a cluster of its own already (end it: kubelet-py reset{root})")
    if known is not None and paths.kubeconfig("kubelet").exists():
        waits = paths.kubeconfig("bootstrap-kubelet").exists()
        if waits and (known.server, known.node_name) == (server, name):
            return True
        raise CommandError(
            f"This machine is node {known.node_name} of {known.server} already (start it: kubelet-py "
            f"up{root}; or take it out first: kubelet-py leave{root})"
        )
    return False


def _token(args: argparse.Namespace) -> BootstrapToken:
    try:
        token = BootstrapToken(*bootstrap_tokens.split(args.token))
    except BadBootstrapToken as error:
        raise CommandError(f"--token: {error}") from error
    if not args.pins and not args.unpinned:
        raise CommandError(
            "give --discovery-token-ca-cert-hash sha256:… (kubelet-py token create --print-join-command "
            "prints it), or --discovery-token-unsafe-skip-ca-verification"
        )
    for pin in args.pins:
        kind, _, digest = pin.partition(":")
        if kind != "sha256" or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise CommandError(f"--discovery-token-ca-cert-hash {pin}: it must be sha256: and 64 hex digits")
    return token


def _ask(cluster: Cluster, token: BootstrapToken, name: str) -> Object:
    """What the cluster says about its networks; refuses a name that is in use ("": it is our own). Logs in
    with the token."""
    from kubeclient.errors import ApiError, Forbidden, NotFound, Unauthorized
    from kubeclient.kubeconfig import ClientConfig
    from kubeclient.resources import CONFIG_MAPS, NODES
    from kubeclient.rest import RestClient
    from kubelet_py.cli.readiness import condition

    config = ClientConfig(cluster.server, ca_data=cluster.ca, token=token.text)
    client = RestClient(config, user_agent="kubelet-py-join", timeout=discovery.TIMEOUT)
    try:
        try:
            if name and condition(client.get(NODES, name), "Ready") == "True":
                raise CommandError(
                    f"There is a node {name} already, and it is Ready (choose another --node-name, or delete "
                    f"it: kubectl delete node {name})"
                )
        except (NotFound, Forbidden):
            pass  # free; or a cluster that shows joining machines no nodes
        try:
            found = client.get(CONFIG_MAPS, "kubeadm-config", "kube-system")
        except (NotFound, Forbidden):
            return {}
        return _networking((found.get("data") or {}).get("ClusterConfiguration", ""))
    except Unauthorized as error:
        raise CommandError(
            f"{cluster.server} does not let the token {token.id} log in: it has expired, or is not for "
            f"authentication ({NEW_TOKEN})"
        ) from error
    except ApiError as error:
        raise CommandError(str(error)) from error
    finally:
        client.close()


def _networking(text: str) -> Object:
    """PURE. The `networking` part of a ClusterConfiguration."""
    document: Any
    if text.lstrip().startswith("{"):
        document = json.loads(text)
    else:
        import yaml

        document = yaml.safe_load(text)
    return dict((document or {}).get("networking") or {})


def _settings(args: argparse.Namespace, server: str, name: str, networking: Object) -> NodeSettings:
    from kubelet_py.node.addresses import NoAddress

    given = node_settings.given(vars(args)) | {"server": server, "node_name": name}
    for key, field in (("cluster_cidr", "podSubnet"), ("service_cidr", "serviceSubnet")):
        if key not in given and networking.get(field):
            given[key] = str(networking[field])
    try:
        cidr = given.get("cluster_cidr") or node_settings.CLUSTER_CIDR
        given |= up.address_for(args, None, cidr, alone=False)
        settings = NodeSettings(**given)
        settings.check()
    except (NoAddress, SettingsError) as error:
        raise CommandError(str(error)) from error
    return settings


def _write(paths: NodePaths, settings: NodeSettings, cluster: Cluster, token: BootstrapToken) -> None:
    from kubelet_py.node.bootstrap import write_private

    settings.save(paths, synced=True)
    paths.manifests.mkdir(parents=True, exist_ok=True)
    paths.pki.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(paths.pki / "ca.crt", cluster.ca)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "kubernetes",
                "cluster": {"server": cluster.server, "certificate-authority": str(paths.pki / "ca.crt")},
            }
        ],
        "users": [{"name": "tls-bootstrap-token-user", "user": {"token": token.text}}],
        "contexts": [
            {"name": "bootstrap", "context": {"cluster": "kubernetes", "user": "tls-bootstrap-token-user"}}
        ],
        "current-context": "bootstrap",
    }
    write_private(paths.kubeconfig("bootstrap-kubelet"), json.dumps(document, indent=1).encode() + b"\n")


def run_leave(args: argparse.Namespace) -> int:
    up.require_root("leave")
    paths = NodePaths(args.root.resolve())
    settings = node_settings.load(paths)
    if settings is None:
        raise CommandError("this machine is no node (join one: kubelet-py join)")
    if not settings.server:
        raise CommandError("this machine is a cluster of its own (end it: kubelet-py reset)")
    leave(paths, settings)
    return 0


def _give_up_pods(client: RestClient, node: str) -> None:
    """Delete the node's pods for good: nobody else can say that they ended; without that they stay 40 s."""
    from kubeclient.errors import Conflict, NotFound
    from kubeclient.resources import PODS

    for pod in client.list(PODS, field_selector=f"spec.nodeName={node}")["items"]:
        metadata = pod["metadata"]
        with contextlib.suppress(NotFound, Conflict):
            client.delete(
                PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"], grace_period_seconds=0
            )


def leave(paths: NodePaths, settings: NodeSettings) -> None:
    """End the node, delete its Node object, remove its state; CommandError where the object may remain."""
    from kubeclient.errors import KubeClientError, NotFound
    from kubeclient.resources import NODES

    down(paths, say=print)
    problem = ""
    try:
        client = login.client(paths, "leave")
        _give_up_pods(client, settings.node_name)
        client.delete(NODES, settings.node_name)
        client.close()
        print(f"Deleted node {settings.node_name} from {settings.server}")
    except NotFound:
        pass
    except KubeClientError as error:
        problem = str(error)
    remove_state(paths)
    print("Removed the node's state from the disk")
    if problem:
        print(f"kubelet-py leave: {problem}", file=sys.stderr)
        text = f"kubectl delete node {settings.node_name}"
        raise CommandError(f"the Node object may still be there (delete it elsewhere: {text})")
