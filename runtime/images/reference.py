"""Image names: from what people type to what registries understand.

`busybox` means `docker.io/library/busybox:latest` everywhere in the Docker and Kubernetes world, and
nothing on the wire says so: each client expands the short form by itself. The grammar and the expansion
are those of github.com/distribution/reference (`ParseDockerRef`): the first path component is a host if it
has a dot or a colon, is `localhost`, or has an upper-case letter; everything else lives on docker.io.
A name with both tag and digest keeps only the digest, which is what is pulled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.images.errors import InvalidReference

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A complete image name: `domain/path` and either a tag or a digest (the other is "")."""

    domain: str
    path: str
    tag: str
    digest: str

    @property
    def repository(self) -> str:
        """`docker.io/library/busybox`"""
        return f"{self.domain}/{self.path}"

    @property
    def selector(self) -> str:
        """What goes into a registry URL: the digest if there is one, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


def is_digest(text: str) -> bool:
    """True for `sha256:<64 hex>` and `sha512:<128 hex>`."""
    return _DIGEST.fullmatch(text) is not None


def parse(text: str) -> Reference:
    """Expand an image name as Docker does; raises InvalidReference.

    `parse("busybox")` is `docker.io/library/busybox:latest`; `parse("localhost:5000/a@sha256:…")` keeps its
    digest. A bare 64-digit hex string is an image id, not a name, and is refused as Docker does.
    """
    if _IDENTIFIER.fullmatch(text):
        raise InvalidReference(f"Could not parse image name {text!r}: 64 hex digits are an id, not a name")
    rest, digest = _split_digest(text)
    domain, remainder = _split_domain(rest)
    path, tag = _split_tag(remainder)
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    if not _PATH.fullmatch(path):
        hint = " (repository names are lower case)" if path != path.lower() else ""
        raise InvalidReference(f"Could not parse image name {text!r}: invalid reference format{hint}")
    if not _DOMAIN.fullmatch(domain):
        raise InvalidReference(f"Could not parse image name {text!r}: {domain!r} is not a registry host")
    if len(domain) + 1 + len(path) > MAX_NAME:
        raise InvalidReference(f"Could not parse image name {text[:40]!r}…: over {MAX_NAME} characters")
    if digest:
        return Reference(domain, path, "", digest)
    return Reference(domain, path, tag or DEFAULT_TAG, "")


def _split_digest(text: str) -> tuple[str, str]:
    rest, separator, digest = text.partition("@")
    if separator and not is_digest(digest):
        raise InvalidReference(f"Could not parse image name {text!r}: {digest!r} is not a digest")
    return rest, digest


def _split_domain(text: str) -> tuple[str, str]:
    head, slash, rest = text.partition("/")
    looks_like_host = "." in head or ":" in head or head == "localhost" or head != head.lower()
    if not slash or not looks_like_host:
        return DEFAULT_DOMAIN, text
    if head == "index.docker.io":
        return DEFAULT_DOMAIN, rest
    return head, rest


def _split_tag(text: str) -> tuple[str, str]:
    path, colon, tag = text.rpartition(":")
    if not colon:
        return text, ""
    if not _TAG.fullmatch(tag):
        raise InvalidReference(f"Could not parse image name {text!r}: {tag!r} is not a tag")
    return path, tag
