"""Where a registry's images may be fetched from: mirrors, plain HTTP, own certificates.

The files are containerd's (docs/hosts.md there), so that those of an existing node can be copied:

    registries/docker.io/hosts.toml         for that registry; `_default` for all that have none of their own
    server = "https://registry-1.docker.io" the registry itself, asked last
    [host."http://mirror.lan:5000"]         asked in the order of the file
      capabilities = ["pull", "resolve", "push"]  may give blobs / say what a tag means / take images
      ca = "ca.pem"                         or a list; relative to the file's folder
      client = [["cert.pem", "key.pem"]]    or one file with both
      skip_verify = true
      override_path = true                  the URL already has the API's path; else /v2 is appended
      [host."http://mirror.lan:5000".header]
        x-token = "text or a list"

The same keys at the top level, beside `server`, are for the registry itself. A mirror is asked with `?ns=`
and the registry's name. Unlike containerd's, unknown keys are errors: a misspelt mirror would go unnoticed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runtime.images.errors import ImageError
from runtime.images.reference import DEFAULT_DOMAIN

ALL = frozenset({"pull", "resolve", "push"})
_KEYS = {"capabilities", "ca", "client", "skip_verify", "override_path", "header", "dial_timeout"}


class InvalidHosts(ImageError):
    """A hosts.toml that cannot be used."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server that may be asked. `base` ends before /<repository>/manifests, e.g. https://host/v2.

    An empty `base` means the registry named in the image, https or (loopback, insecure) what it speaks.
    `ca` are files with certificates, `client` a certificate file and a key file.
    """

    base: str = ""
    capabilities: frozenset[str] = ALL
    ca: tuple[str, ...] = ()
    client: tuple[str, str] | None = None
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    mirror_of: str = ""
    connect_seconds: float = 10.0


def endpoints(folder: Path | None, domain: str) -> list[Endpoint]:
    """The servers for a registry's images in the order to ask; the registry itself where nothing is said.

    `folder` is etc/kubelet-py/registries, or None. Raises InvalidHosts.
    """
    for name in _folder_names(domain) if folder is not None else ():
        assert folder is not None
        file = folder / name / "hosts.toml"
        try:
            text = file.read_text()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidHosts(f"Could not read {file}: {error}") from error
        return parse(text, domain, file)
    return [Endpoint()]


def _folder_names(domain: str) -> list[str]:
    host, colon, port = domain.rpartition(":")
    # A colon in a folder's name troubles some tools, so containerd allows localhost_5000_ as well.
    return [*([f"{host}_{port}_"] if colon else []), domain, "_default"]


def parse(text: str, domain: str, file: Path) -> list[Endpoint]:
    """Read a hosts.toml for `domain`; `file` is for messages and relative paths. Raises InvalidHosts."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidHosts(f"Could not parse {file}: {error}") from error
    server, mirrors = document.pop("server", ""), document.pop("host", {})
    if not isinstance(server, str) or not isinstance(mirrors, dict):
        raise InvalidHosts(f"Could not use {file}: server is a text, host a table of URLs")
    found = []
    for url, settings in mirrors.items():
        if not isinstance(settings, dict):
            raise InvalidHosts(f'Could not use {file}: host."{url}" is not a table')
        found.append(_endpoint(url, settings, file, domain))
    return [*found, _endpoint(server, document, file, domain)]


def _endpoint(url: str, settings: Mapping[str, Any], file: Path, domain: str) -> Endpoint:
    where = f"Could not use {file}: {url or 'server'}"
    unknown = sorted(set(settings) - _KEYS)
    if unknown:
        raise InvalidHosts(f"{where}: unknown keys {', '.join(unknown)}")
    for key in ("skip_verify", "override_path"):
        if not isinstance(settings.get(key, False), bool):
            raise InvalidHosts(f"{where}: {key} is true or false")
    capabilities = settings.get("capabilities", sorted(ALL))
    if not isinstance(capabilities, list) or not set(map(str, capabilities)) <= ALL:
        raise InvalidHosts(f"{where}: capabilities is a list of pull, resolve and push")
    base = _base(url, settings.get("override_path", False), where)
    own = {"", domain, "registry-1.docker.io" if domain == DEFAULT_DOMAIN else domain}
    return Endpoint(
        base=base,
        capabilities=frozenset(capabilities),
        ca=tuple(str(file.parent / name) for name in _texts(settings.get("ca", []), f"{where}: ca")),
        client=_client(settings.get("client"), file.parent, where),
        skip_verify=settings.get("skip_verify", False),
        headers=_headers(settings.get("header", {}), where),
        mirror_of="" if urlsplit(base).netloc in own else domain,
        connect_seconds=_seconds(settings.get("dial_timeout", "10s"), where),
    )


def _base(url: str, override_path: bool, where: str) -> str:
    if not url:
        return ""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise InvalidHosts(f"{where}: not a http or https URL (headers carry credentials, URLs do not)")
    path = parts.path.rstrip("/")
    if not override_path and not path.endswith("/v2"):
        path += "/v2"
    host = "registry-1.docker.io" if parts.netloc == DEFAULT_DOMAIN else parts.netloc
    return f"{parts.scheme}://{host}{path}"


def _texts(value: Any, where: str) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise InvalidHosts(f"{where} is a text or a list of texts")
    return values


def _client(value: Any, folder: Path, where: str) -> tuple[str, str] | None:
    """A file with both, or a list of such files or of [cert, key] pairs, of which the first is used."""
    first = value[0] if isinstance(value, list) and value else value
    if not first:
        return None
    names = _texts(first, f"{where}: client")
    if len(names) > 2:
        raise InvalidHosts(f"{where}: client is a file, or a list of pairs of certificate and key")
    return str(folder / names[0]), str(folder / (names[-1] or names[0]))


def _headers(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise InvalidHosts(f"{where}: header is a table")
    # A header given several times is one with its values joined by commas (RFC 9110, 5.3).
    return tuple((name, ", ".join(_texts(text, f"{where}: header"))) for name, text in value.items())


def _seconds(value: Any, where: str) -> float:
    units = {"ms": 1e-3, "s": 1.0, "m": 60.0}
    for unit, factor in units.items():
        number = str(value).removesuffix(unit)
        if number != value and number.replace(".", "", 1).isdigit():
            return float(number) * factor
    raise InvalidHosts(f"{where}: dial_timeout is a duration like 3s")
