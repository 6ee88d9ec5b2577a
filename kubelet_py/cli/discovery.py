"""Finding out whether a server is the cluster that a token was made for, before trusting it with anything.

A new machine knows an address, a token and the hash of the CA's key. The ConfigMap cluster-info is read first
without any trust; its signature proves that its author knows the token, the hash that its CA is the one that
the administrator saw. Then it is read again, now by TLS under that CA: whoever answers holds the CA's trust.
Only after that is the token itself sent. Source: kubeadm's discovery/token.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from controlplane import bootstrap_tokens
from controlplane.bootstrap_tokens import BootstrapToken
from kubeclient.errors import KubeClientError, ServerUnavailable
from kubeclient.kubeconfig import ClientConfig
from kubeclient.rest import RestClient
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.token import ca_hash

PATH = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
MOST_SKEW = 240.0  # certificates begin five minutes in the past
NEW_TOKEN = "make a new one on the control plane: kubelet-py token create --print-join-command"
TIMEOUT = 10.0

Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A server that is known to be the right one, and its CA (PEM)."""

    server: str
    ca: bytes


def server_url(text: str) -> str:
    """https://host:port of what was typed. Raises CommandError."""
    url = text if "://" in text else f"https://{text}"
    try:
        parts = urlsplit(url)
        port = parts.port or 6443
    except ValueError as error:
        raise CommandError(f"--server {text}: {error} (write it like https://192.0.2.1:6443)") from error
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
        raise CommandError(f"--server {text}: it must look like https://192.0.2.1:6443")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"https://{host}:{port}"


def discover(
    server: str,
    token: BootstrapToken,
    pins: Sequence[str],
    *,
    fetch: Callable[[ClientConfig], Answer] | None = None,
    clock: Callable[[], float] = time.time,
) -> Cluster:
    """`pins` are sha256:… of acceptable CAs; empty: the token alone vouches. Raises CommandError."""
    fetch = fetch or _fetch
    first = read_info(server, fetch(ClientConfig(server, insecure=True)), clock())
    ca = vouched_ca(server, first, token, pins)
    try:
        second = read_info(server, fetch(ClientConfig(server, ca_data=ca)), clock())
    except ServerUnavailable as error:
        raise CommandError(_tls_problem(server, str(error))) from error
    if second.get("kubeconfig") != first.get("kubeconfig"):
        raise CommandError(
            f"{server} told two different things about itself (is somebody listening in between? try again)"
        )
    return Cluster(server, ca)


def read_info(server: str, answer: Answer, now: float) -> dict[str, str]:
    """PURE. The ConfigMap's data of an HTTP answer. Raises CommandError."""
    code, headers, body = answer
    skew = _skew(headers.get("date", ""), now)
    if abs(skew) > MOST_SKEW:
        word = "behind" if skew > 0 else "ahead of"
        raise CommandError(
            f"This machine's clock is {abs(skew):.0f} s {word} that of {server}, and certificates are good "
            "between two times (set it: timedatectl set-ntp true)"
        )
    if code != 200:
        raise CommandError(
            f"{server} does not show the ConfigMap cluster-info: it answered {code} (is it a Kubernetes API "
            "server that nodes can join?)"
        )
    try:
        data = json.loads(body).get("data") or {}
    except (ValueError, AttributeError) as error:
        raise CommandError(
            f"{server} answered something that is no ConfigMap (is the port right?)"
        ) from error
    return dict(data)


def vouched_ca(server: str, data: dict[str, str], token: BootstrapToken, pins: Sequence[str]) -> bytes:
    """PURE. The CA in cluster-info, once signature and hash are right. Raises CommandError."""
    content, signature = data.get("kubeconfig", ""), data.get(bootstrap_tokens.JWS_PREFIX + token.id)
    if signature is None:
        raise CommandError(
            f"The cluster at {server} does not know the token {token.id}, or it has expired ({NEW_TOKEN})"
        )
    if not bootstrap_tokens.verify(content, signature, token):
        raise CommandError(
            f"The signature of {server} does not fit the token {token.id}: the token is mistyped, or this is "
            "not the cluster that it was made for (copy the whole command again)"
        )
    try:
        ca = _ca(content)
        found = ca_hash(ca)
    except (ValueError, LookupError, TypeError) as error:
        raise CommandError(f"cluster-info of {server} holds no usable CA: {error}") from error
    if pins and found not in pins:
        raise CommandError(
            f"The CA of {server} is {found}, not {' or '.join(pins)} (do not join; compare it with what the "
            "control plane says: kubelet-py token create --print-join-command)"
        )
    return ca


def _ca(content: str) -> bytes:
    document: Any
    if content.lstrip().startswith("{"):
        document = json.loads(content)
    else:  # kubeadm writes YAML
        import yaml

        document = yaml.safe_load(content)
    return base64.b64decode(document["clusters"][0]["cluster"]["certificate-authority-data"])


def _fetch(config: ClientConfig) -> Answer:
    """Raises ServerUnavailable where TLS under a known CA fails, CommandError for any other silence."""
    try:
        client = RestClient(config, user_agent="kubelet-py-join", timeout=TIMEOUT)
        try:
            return client.raw("GET", PATH)
        finally:
            client.close()
    except ServerUnavailable as error:
        if not config.insecure:
            raise
        raise CommandError(
            f"{error} (is the control plane up, the address right, and the port open in its firewall?)"
        ) from error
    except KubeClientError as error:
        raise CommandError(str(error)) from error


def _tls_problem(server: str, text: str) -> str:
    lowered = text.lower()
    if "not yet valid" in lowered or "expired" in lowered:
        return f"{text} (look at the clocks of both machines: timedatectl; then at the server's certificate)"
    if "mismatch" in lowered or "not valid for" in lowered:
        host = urlsplit(server).hostname
        return f"{text} (its certificate does not name {host}: use the address that its `up` announced)"
    return f"{text} (the server's certificate is not from the CA in its own cluster-info)"


def _skew(date: str, now: float) -> float:
    """Seconds that our clock is behind; 0 where the server said no time."""
    try:
        return parsedate_to_datetime(date).timestamp() - now
    except (TypeError, ValueError):
        return 0.0
