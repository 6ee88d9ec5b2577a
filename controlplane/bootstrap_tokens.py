"""Bootstrap tokens: the short secrets by which a machine that has nothing else may ask to become a node.

A token `abcdef.0123456789abcdef` is a Secret of type bootstrap.kubernetes.io/token in kube-system: the part
before the dot is public and names the Secret, the rest is the secret. It serves two purposes, each to be
allowed by itself: logging in (as system:bootstrap:<id>), and signing the ConfigMap cluster-info, so that the
machine can tell the true cluster from another. All functions are pure. Source: upstream's
cluster-bootstrap/token and plugin/pkg/auth/authenticator/token/bootstrap.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]

SECRET_TYPE = "bootstrap.kubernetes.io/token"
SECRET_PREFIX = "bootstrap-token-"
NAMESPACE = "kube-system"
USER_PREFIX = "system:bootstrap:"
GROUP = "system:bootstrappers"
DEFAULT_GROUP = "system:bootstrappers:kubeadm:default-node-token"
USAGES = ("authentication", "signing")
JWS_PREFIX = "jws-kubeconfig-"
CLUSTER_INFO, CLUSTER_INFO_NAMESPACE = "cluster-info", "kube-public"

_TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
_GROUP = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


class BadBootstrapToken(Exception):
    """The text or Secret is no bootstrap token that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class BootstrapToken:
    """What a Secret says. `expires` is in seconds since 1970, None for never."""

    id: str
    secret: str
    expires: float | None = None
    usages: tuple[str, ...] = USAGES
    groups: tuple[str, ...] = (DEFAULT_GROUP,)
    description: str = ""

    @property
    def text(self) -> str:
        return f"{self.id}.{self.secret}"

    def expired(self, now: float) -> bool:
        return self.expires is not None and now >= self.expires


def split(text: str) -> tuple[str, str]:
    """(id, secret). Raises BadBootstrapToken."""
    found = _TOKEN.fullmatch(text)
    if found is None:
        raise BadBootstrapToken(
            "a bootstrap token has the form abcdef.0123456789abcdef (6 and 16 of a-z, 0-9)"
        )
    return found[1], found[2]


def generate() -> str:
    """A new random token."""
    letters = [secrets.choice(_LETTERS) for _ in range(22)]
    return f"{''.join(letters[:6])}.{''.join(letters[6:])}"


def check_groups(groups: Sequence[str]) -> None:
    """Raises BadBootstrapToken."""
    for group in groups:
        if not _GROUP.fullmatch(group):
            raise BadBootstrapToken(f"group {group!r} does not match {_GROUP.pattern}")


def of_secret(secret: Object) -> BootstrapToken:
    """The token that a Secret holds. Raises BadBootstrapToken."""
    name = secret["metadata"]["name"]
    if secret.get("type") != SECRET_TYPE or not name.startswith(SECRET_PREFIX):
        raise BadBootstrapToken(f"Secret {name} is not of type {SECRET_TYPE}")
    try:
        data = {key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items()}
        found = split(f"{data.get('token-id', '')}.{data.get('token-secret', '')}")
        expires = _epoch(data["expiration"]) if data.get("expiration") else None
    except (ValueError, binascii.Error) as error:
        raise BadBootstrapToken(f"Secret {name} cannot be read: {error}") from error
    if name != SECRET_PREFIX + found[0]:
        raise BadBootstrapToken(f"Secret {name} holds the token of another name, {found[0]}")
    groups = tuple(part.strip() for part in data.get("auth-extra-groups", "").split(",") if part.strip())
    check_groups(groups)
    usages = tuple(usage for usage in USAGES if data.get(f"usage-bootstrap-{usage}") == "true")
    return BootstrapToken(*found, expires, usages, groups, data.get("description", ""))


def to_secret(token: BootstrapToken) -> Object:
    """The Secret to create for a token."""
    data = {"token-id": token.id, "token-secret": token.secret}
    data |= {f"usage-bootstrap-{usage}": "true" for usage in token.usages}
    if token.expires is not None:
        data["expiration"] = datetime.fromtimestamp(int(token.expires), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if token.groups:
        data["auth-extra-groups"] = ",".join(token.groups)
    if token.description:
        data["description"] = token.description
    metadata = {"name": SECRET_PREFIX + token.id, "namespace": NAMESPACE}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": SECRET_TYPE, "data": encoded}


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text.upper().replace("Z", "+00:00")).timestamp()


def sign(content: str, token: BootstrapToken) -> str:
    """A detached JWS (HS256) over `content`: head..signature, as kubeadm expects it."""
    head = _encode(json.dumps({"alg": "HS256", "kid": token.id}, separators=(",", ":")).encode())
    signed = f"{head}.{_encode(content.encode())}".encode()
    return f"{head}..{_encode(hmac.digest(token.secret.encode(), signed, hashlib.sha256))}"


def verify(content: str, signature: str, token: BootstrapToken) -> bool:
    """Whether the holder of this very token signed `content`."""
    return hmac.compare_digest(signature.encode(), sign(content, token).encode())


def signatures(content: str, tokens: Sequence[BootstrapToken], now: float) -> Mapping[str, str]:
    """The entries of cluster-info beside `kubeconfig`: one for each token that may sign."""
    good = [token for token in tokens if "signing" in token.usages and not token.expired(now)]
    return {JWS_PREFIX + token.id: sign(content, token) for token in good}


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
