"""A kubeconfig file → the address and credentials of its current context.

Every process of a node logs in with a kubeconfig, the format that kubectl and every other client read.
Certificates are taken inline (`…-data`, base64) or from files, whose relative names count from the
kubeconfig's own folder. Ways to log in that we do not implement (exec plugins, auth providers) are refused
by name, because ignoring them would end in an unexplained 401.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from kubeclient.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Where the API server is and who we are; certificates and key are PEM bytes.

    `ca_data` (or the file `ca_file`) signs the server's certificate; with neither, the system's store
    counts. `cert_file` and `key_file` are where `cert` and `key` came from, or where newer ones will be:
    connections that are made after the files changed use what they hold then. `username` and `password`
    mean HTTP basic authentication.
    """

    server: str
    ca_data: bytes | None = None
    ca_file: str | None = None
    cert: bytes | None = None
    key: bytes | None = None
    token: str | None = None
    token_file: str | None = None
    insecure: bool = False
    server_name: str | None = None
    namespace: str = "default"
    username: str | None = None
    password: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


def load(path: str | Path, context: str | None = None) -> ClientConfig:
    """Read the kubeconfig at `path`, its `context` or the current one; ConfigError says what is wrong."""
    path = Path(path)
    document = _read(path)
    name = context or document.get("current-context") or ""
    if not name:
        raise ConfigError(f"Could not use kubeconfig {path}: no current-context (set one)")
    chosen = _entry(document, "contexts", "context", name, path)
    cluster = _entry(document, "clusters", "cluster", chosen.get("cluster", ""), path)
    user = _entry(document, "users", "user", chosen["user"], path) if chosen.get("user") else {}
    for unsupported in ("exec", "auth-provider"):
        if unsupported in user:
            raise ConfigError(
                f"Could not use kubeconfig {path}: user {chosen['user']!r} logs in by {unsupported} "
                "(use a client certificate or a token)"
            )
    if not cluster.get("server"):
        raise ConfigError(f"Could not use kubeconfig {path}: cluster {chosen.get('cluster')!r} has no server")
    return ClientConfig(
        server=str(cluster["server"]).rstrip("/"),
        ca_data=_pem(cluster, "certificate-authority", path),
        cert=_pem(user, "client-certificate", path),
        key=_pem(user, "client-key", path),
        token=user.get("token") or None,
        token_file=str(path.parent / user["tokenFile"]) if user.get("tokenFile") else None,
        insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
        server_name=cluster.get("tls-server-name") or None,
        namespace=chosen.get("namespace") or "default",
        username=user.get("username") or None,
        password=user.get("password") or None,
        cert_file=_file(user, "client-certificate", path),
        key_file=_file(user, "client-key", path),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Could not read kubeconfig {path}: {error.strerror}") from error
    document: Any
    if text.lstrip().startswith(b"{"):
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"Could not parse kubeconfig {path}: {error}") from error
    else:
        import yaml  # 15 ms and 2 MB that a JSON kubeconfig need not pay

        try:
            document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as error:
            raise ConfigError(f"Could not parse kubeconfig {path}: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"Could not parse kubeconfig {path}: it is not a mapping")
    return document


def _entry(document: dict[str, Any], section: str, key: str, name: str, path: Path) -> dict[str, Any]:
    for entry in document.get(section) or []:
        if entry.get("name") == name:
            return dict(entry.get(key) or {})
    raise ConfigError(f"Could not use kubeconfig {path}: {section} has no entry named {name!r}")


def _file(section: dict[str, Any], key: str, path: Path) -> str | None:
    """The file of a field that is not inline; what is inline counts first."""
    if section.get(f"{key}-data") or not section.get(key):
        return None
    return str(path.parent / section[key])


def _pem(section: dict[str, Any], key: str, path: Path) -> bytes | None:
    inline = section.get(f"{key}-data")
    if inline:
        try:
            return base64.b64decode(inline, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError(f"Could not decode {key}-data in kubeconfig {path}: {error}") from error
    if section.get(key):
        file = path.parent / section[key]
        try:
            return bytes(file.read_bytes())
        except OSError as error:
            raise ConfigError(f"Could not read {key} {file}: {error.strerror}") from error
    return None
