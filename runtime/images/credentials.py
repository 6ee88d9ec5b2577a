"""Who we are to a registry: the files that `docker login` writes and Kubernetes pull secrets carry.

`~/.docker/config.json` and secrets of type kubernetes.io/dockerconfigjson hold `{"auths": {key: entry}}`;
the older kubernetes.io/dockercfg is the bare map. A key is a host, with an optional path and wildcards;
the kubelet matches it against the image name glob by glob and tries the longest key first
(pkg/credentialprovider/keyring.go). Nothing here is ever logged: `repr` hides the secrets.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.images.errors import ImageError
from runtime.images.reference import DEFAULT_DOMAIN, Reference

_DOCKER_HUB_KEYS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class InvalidCredentials(ImageError):
    """A pull secret or docker config that cannot be read."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name with a password, or an identity token (an OAuth refresh token)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def empty(self) -> bool:
        return not (self.username or self.password or self.identity_token or self.registry_token)

    def basic(self) -> str:
        """The value of a Basic Authorization header."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


ANONYMOUS = Credentials()


@dataclass(frozen=True, slots=True)
class Keyring:
    """Credentials by registry key, most specific key first."""

    entries: tuple[tuple[str, Credentials], ...] = ()

    def lookup(self, reference: Reference) -> list[Credentials]:
        """All credentials that match the image, best first; [] means anonymous."""
        return [credentials for key, credentials in self.entries if _matches(key, reference)]

    def __add__(self, other: Keyring) -> Keyring:
        return Keyring(_ordered([*self.entries, *other.entries]))


def parse_docker_config(data: bytes) -> Keyring:
    """Read a docker config.json, `.dockerconfigjson` or `.dockercfg`; raises InvalidCredentials."""
    try:
        document = json.loads(data)
    except ValueError as error:
        # The text is a secret: the parser's message would quote it.
        raise InvalidCredentials("Could not read registry credentials: not JSON") from error
    if not isinstance(document, dict):
        raise InvalidCredentials("Could not read registry credentials: not a JSON object")
    auths = document.get("auths", document if "credsStore" not in document else {})
    if not isinstance(auths, dict):
        raise InvalidCredentials("Could not read registry credentials: auths is not an object")
    found = [
        (_normal_key(key), _entry(key, entry)) for key, entry in auths.items() if isinstance(entry, dict)
    ]
    return Keyring(_ordered([(key, credentials) for key, credentials in found if not credentials.empty]))


def _entry(key: str, entry: Mapping[str, Any]) -> Credentials:
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    encoded = entry.get("auth")
    if isinstance(encoded, str) and encoded:
        try:
            text = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InvalidCredentials(f"Could not read credentials of {key}: auth is not base64") from error
        username, colon, password = text.partition(":")
        if not colon:
            raise InvalidCredentials(f"Could not read credentials of {key}: auth is not user:password")
    return Credentials(
        username,
        password.rstrip("\x00"),
        str(entry.get("identitytoken") or ""),
        str(entry.get("registrytoken") or ""),
    )


def _normal_key(key: str) -> str:
    bare = key.split("://", 1)[-1].rstrip("/")
    host, _, path = bare.partition("/")
    if path in ("v1", "v2"):
        path = ""
    if host in _DOCKER_HUB_KEYS:
        host = DEFAULT_DOMAIN
    return f"{host}/{path}" if path else host


def _ordered(entries: list[tuple[str, Credentials]]) -> tuple[tuple[str, Credentials], ...]:
    return tuple(sorted(entries, key=lambda item: (-item[0].count("/"), -len(item[0]), item[0])))


def _matches(key: str, reference: Reference) -> bool:
    host, _, path = key.partition("/")
    pattern, name = host.split("."), reference.domain.split(".")
    if len(pattern) != len(name):
        return False
    if not all(fnmatch.fnmatchcase(part, glob) for glob, part in zip(pattern, name, strict=True)):
        return False
    return not path or reference.path == path or reference.path.startswith(f"{path}/")
