"""`kubelet-py token`: the bootstrap tokens by which machines join, as `kubeadm token` has them."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane import bootstrap_tokens
from controlplane.bootstrap_tokens import BadBootstrapToken, BootstrapToken
from kubelet_py.cli.errors import CommandError
from kubelet_py.paths import NodePaths

if TYPE_CHECKING:
    from kubeclient.kubeconfig import ClientConfig
    from kubeclient.rest import RestClient

DEFAULT_TTL = "24h"
LONGEST_TTL = float(2**63 // 10**9)  # what Go's time.Duration holds, in which kubeadm counts
OUTPUT_VERSION = "output.kubeadm.k8s.io/v1alpha3"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    token = subparsers.add_parser(
        "token",
        help="make, list and delete the tokens by which machines join",
        description="Bootstrap tokens: short-lived secrets by which a machine joins the cluster. They are "
        "made where the control plane runs.",
        epilog="Example: kubelet-py token create --ttl 1h --print-join-command",
    )
    actions = token.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser(
        "create",
        help="make a token and print it",
        description="Make a token and print it, or with --print-join-command all that is typed on the new "
        "machine.",
    )
    create.add_argument("token", nargs="?", help="the token, instead of a random one")
    create.add_argument("--ttl", default=DEFAULT_TTL, help="how long it is good, 0 for ever (default 24h)")
    create.add_argument(
        "--usages", default="signing,authentication", help="what it is for (default signing,authentication)"
    )
    create.add_argument("--groups", default=bootstrap_tokens.DEFAULT_GROUP, help="groups of who logs in")
    create.add_argument("--description", default="", help="what it was made for")
    create.add_argument(
        "--print-join-command", action="store_true", help="print the whole command for the new machine"
    )
    create.set_defaults(handler=run_create)
    listed = actions.add_parser(
        "list", help="list the tokens", description="List the tokens, and until when they are good."
    )
    listed.add_argument("--output", "-o", choices=("text", "json"), default="text", help="form of the answer")
    listed.set_defaults(handler=run_list)
    delete = actions.add_parser(
        "delete",
        help="delete tokens: nobody can join with them any more",
        description="Delete tokens. Nodes that joined with them stay: they have certificates of their own.",
    )
    delete.add_argument("tokens", nargs="+", metavar="TOKEN", help="a token, or its first six letters")
    delete.set_defaults(handler=run_delete)
    for action in (create, listed, delete):
        action.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
        action.add_argument("--kubeconfig", type=Path, help="the administrator's (default: that of --root)")
    generate = actions.add_parser(
        "generate",
        help="print a random token, without a cluster",
        description="Print a random token, for `token create TOKEN` later; no cluster knows it yet.",
    )
    generate.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    generate.set_defaults(handler=run_generate)


def run_generate(args: argparse.Namespace) -> int:
    print(bootstrap_tokens.generate())
    return 0


def run_create(args: argparse.Namespace) -> int:
    token = _wanted(args, time.time())
    with _client(args) as (client, config):
        _create(client, token)
        print(join_command(config, token) if args.print_join_command else token.text)
    return 0


def run_list(args: argparse.Namespace) -> int:
    with _client(args) as (client, _):
        tokens = _tokens(client)
    if args.output == "json":
        for token in tokens:  # kubeadm's output: one object after another
            print(json.dumps(_object(token), indent=4))
        return 0
    rows: list[tuple[str, ...]] = [("TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS")]
    rows += [_row(token, time.time()) for token in tokens]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def run_delete(args: argparse.Namespace) -> int:
    from kubeclient.errors import NotFound
    from kubeclient.resources import SECRETS

    names = _ids(args.tokens)
    with _client(args) as (client, _):
        for name in names:
            try:
                client.delete(SECRETS, bootstrap_tokens.SECRET_PREFIX + name, bootstrap_tokens.NAMESPACE)
            except NotFound as error:
                raise CommandError(f"there is no token {name} (see `kubelet-py token list`)") from error
            print(f"Deleted bootstrap token {name}")
    return 0


def _ids(texts: Sequence[str]) -> list[str]:
    """PURE. The ids of tokens that were named by id or whole. Raises CommandError for what is neither."""
    for text in texts:
        if not re.fullmatch(r"[a-z0-9]{6}(\.[a-z0-9]{16})?", text):
            raise CommandError(
                f"{text!r} is no token: give its id, abcdef, or all of it, abcdef.0123456789abcdef"
            )
    return [text.partition(".")[0] for text in texts]


def join_command(config: ClientConfig, token: BootstrapToken) -> str:
    """What to type on the new machine."""
    if config.ca_data is None:
        raise CommandError("the kubeconfig has no certificate-authority-data to pin the cluster's CA by")
    return (
        f"kubelet-py join --server {config.server} --token {token.text} "
        f"--discovery-token-ca-cert-hash {ca_hash(config.ca_data)}"
    )


def ca_hash(ca: bytes) -> str:
    """kubeadm's pin: the SHA-256 of the CA's public key. Raises ValueError."""
    from kubelet_py.node import x509

    return f"sha256:{hashlib.sha256(x509.read(ca).public_key).hexdigest()}"


def _wanted(args: argparse.Namespace, now: float) -> BootstrapToken:
    from kubelet_py.config import parse_duration
    from kubelet_py.errors import ConfigError

    usages = tuple(part for part in args.usages.split(",") if part)
    unknown = sorted(set(usages) - set(bootstrap_tokens.USAGES))
    if unknown or not usages:
        raise CommandError(f"--usages {args.usages!r}: use signing, authentication, or both")
    groups = tuple(part for part in args.groups.split(",") if part)
    try:
        name, secret = bootstrap_tokens.split(args.token or bootstrap_tokens.generate())
        bootstrap_tokens.check_groups(groups)
        seconds = parse_duration(args.ttl)
        if seconds > LONGEST_TTL:
            raise CommandError(f"--ttl {args.ttl}: at most {LONGEST_TTL // 3600:.0f}h; 0 is for ever")
    except (BadBootstrapToken, ConfigError) as error:
        raise CommandError(str(error)) from error
    expires = now + seconds if seconds else None
    return BootstrapToken(name, secret, expires, usages, groups, args.description)


def _create(client: RestClient, token: BootstrapToken) -> None:
    from kubeclient.errors import AlreadyExists
    from kubeclient.resources import SECRETS

    try:
        client.create(SECRETS, bootstrap_tokens.to_secret(token))
    except AlreadyExists as error:
        text = f"a token {token.id} is there already (delete it: kubelet-py token delete {token.id})"
        raise CommandError(text) from error


def _tokens(client: RestClient) -> list[BootstrapToken]:
    from kubeclient.resources import SECRETS

    selector = f"type={bootstrap_tokens.SECRET_TYPE}"
    found = []
    for secret in client.list(SECRETS, bootstrap_tokens.NAMESPACE, field_selector=selector)["items"]:
        try:
            found.append(bootstrap_tokens.of_secret({"type": bootstrap_tokens.SECRET_TYPE, **secret}))
        except BadBootstrapToken as error:
            raise CommandError(f"{error} (delete it with kubectl -n kube-system)") from error
    return found


def _object(token: BootstrapToken) -> dict[str, Any]:
    """PURE. As kubeadm writes it; what is empty is left out."""
    found = {
        "kind": "BootstrapToken",
        "apiVersion": OUTPUT_VERSION,
        "token": token.text,
        "description": token.description,
        "expires": _stamp(token.expires) if token.expires is not None else "",
        "usages": sorted(token.usages),
        "groups": list(token.groups),
    }
    return {name: value for name, value in found.items() if value}


def _stamp(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _row(token: BootstrapToken, now: float) -> tuple[str, ...]:
    ttl, expires = "<forever>", "<never>"
    if token.expires is not None:
        left = int(token.expires - now)
        ttl = (
            "<invalid>" if left <= 0 else f"{left // 3600}h" if left >= 7200 else f"{left // 60}m{left % 60}s"
        )
        expires = _stamp(token.expires)
    usages, groups = ",".join(token.usages) or "<none>", ",".join(token.groups) or "<none>"
    return token.text, ttl, expires, usages, token.description or "<none>", groups


@contextmanager
def _client(args: argparse.Namespace) -> Iterator[tuple[RestClient, ClientConfig]]:
    """The administrator's client; what goes wrong with it becomes a CommandError."""
    from kubeclient import kubeconfig
    from kubeclient.errors import KubeClientError
    from kubeclient.rest import RestClient

    file = args.kubeconfig or NodePaths(args.root.resolve()).kubeconfig("admin")
    if not file.exists():
        raise CommandError(
            f"there is no {file} (tokens are made where the control plane runs, or --kubeconfig)"
        )
    try:
        config = kubeconfig.load(file)
        client = RestClient(config, user_agent="kubelet-py-token", timeout=10.0)
        yield client, config
        client.close()
    except KubeClientError as error:
        raise CommandError(str(error)) from error
