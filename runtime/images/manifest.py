"""The documents that describe an image: index, manifest, config.

Registries and archives speak two dialects with the same shape, Docker's schema 2 and OCI's image spec 1.1.
An index lists manifests by platform; a manifest names one config and its layers by digest; the config
carries the process defaults and the digests of the *uncompressed* layers (`rootfs.diff_ids`).
Everything here comes from strangers, so sizes are capped, kinds are checked, and a document that could be
read as two kinds at once is refused (CVE-2021-41190).
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.images.errors import DigestMismatch, ManifestError, NoMatchingPlatform
from runtime.images.reference import is_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
ACCEPT = ", ".join((OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST))

# Upstream registries accept 4 MiB manifests; configs of real images stay far below 8 MiB.
MAX_MANIFEST = 4 << 20
MAX_CONFIG = 8 << 20
MAX_LAYERS = 500

_TEXTS = frozenset(("User", "WorkingDir", "StopSignal"))
_LISTS = frozenset(("Env", "Entrypoint", "Cmd"))
_LAYERS = frozenset(
    {OCI_LAYER, f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+zstd"}
    | {f"application/vnd.docker.image.rootfs.diff.tar{suffix}" for suffix in ("", ".gzip", ".zstd")}
)
_SPELLINGS = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
}


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and variant in Go's words: linux, arm64, v8."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content: what it is, its digest, its size in bytes, and for whom."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform; layers bottom first, as in the document."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of an image config that decide how it is stored and checked.

    `process` is the document's `config` object (Env, Cmd, Entrypoint …) with upstream's names; `diff_ids`
    are bottom first.
    """

    process: Mapping[str, Any]
    diff_ids: tuple[str, ...]
    architecture: str
    os: str
    created: str


def host_platform(machine: str | None = None) -> Platform:
    """The platform of this machine, from uname's machine name."""
    name = machine or platform.machine()
    architecture, variant = _ARCHITECTURES.get(name, (name, ""))
    return Platform("linux", architecture, variant)


def digest_of(data: bytes) -> str:
    """The sha256 digest of a document."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check_digest(data: bytes, digest: str, what: str) -> None:
    """Raise DigestMismatch unless the bytes have that digest (sha256 or sha512)."""
    if not is_digest(digest):
        raise DigestMismatch(f"Could not accept {what}: {digest[:200]!r} is not a sha256 or sha512 digest")
    algorithm = digest.partition(":")[0]
    actual = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    if actual != digest:
        raise DigestMismatch(f"Could not accept {what}: its digest is {actual}, announced was {digest}")


def kind_of(data: bytes, content_type: str = "") -> str:
    """`"index"` or `"manifest"`; the header, the document's mediaType and its fields must agree.

    Raises ManifestError for anything else, Docker's schema 1 included.
    """
    document = _load(data, MAX_MANIFEST, "manifest")
    header = content_type.partition(";")[0].strip()
    claimed = str(document.get("mediaType") or header)
    if (
        document.get("schemaVersion") == 1
        or "v1+prettyjws" in header
        or header.endswith("distribution.manifest.v1+json")
    ):
        raise ManifestError("Could not use manifest: Docker schema 1 is obsolete (push the image again)")
    known = INDEXES | MANIFESTS
    if header in known and claimed in known and (header in INDEXES) != (claimed in INDEXES):
        raise ManifestError(f"Could not use manifest: served as {header} but says it is {claimed}")
    has_index, has_manifest = "manifests" in document, "layers" in document or "config" in document
    if has_index and has_manifest:
        raise ManifestError("Could not use manifest: it is an index and a manifest at once")
    if claimed in INDEXES or (claimed not in MANIFESTS and has_index):
        if not has_index:
            raise ManifestError("Could not use index: it lists no manifests")
        return "index"
    if claimed in MANIFESTS or has_manifest:
        return "manifest"
    raise ManifestError(f"Could not use manifest: unknown media type {claimed or 'none'!r}")


def parse_manifest(data: bytes) -> Manifest:
    """Read an OCI or Docker schema 2 manifest; raises ManifestError."""
    if kind_of(data) != "manifest":
        raise ManifestError("Could not use manifest: it is an index")
    document = _load(data, MAX_MANIFEST, "manifest")
    config = _descriptor(document.get("config"), "config")
    if config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
        raise ManifestError(f"Could not use manifest: config {config.media_type!r} is no container image")
    raw = document.get("layers")
    if not isinstance(raw, list) or len(raw) > MAX_LAYERS:
        raise ManifestError(f"Could not use manifest: layers must be a list of at most {MAX_LAYERS}")
    layers = tuple(_descriptor(layer, f"layers[{index}]") for index, layer in enumerate(raw))
    for layer in layers:
        if layer.media_type not in _LAYERS:
            # Foreign (non-distributable) layers name arbitrary hosts to fetch from; they are never followed.
            raise ManifestError(f"Could not use manifest: unsupported layer type {layer.media_type!r}")
    return Manifest(config, layers)


def parse_index(data: bytes) -> tuple[Descriptor, ...]:
    """The entries of an index or manifest list, in order; raises ManifestError."""
    entries = _load(data, MAX_MANIFEST, "index").get("manifests")
    if not isinstance(entries, list):
        raise ManifestError("Could not use index: manifests is not a list")
    return tuple(_descriptor(entry, f"manifests[{index}]") for index, entry in enumerate(entries))


def select(entries: tuple[Descriptor, ...], wanted: Platform) -> Descriptor:
    """The entry that runs best on `wanted`; one without a platform only where there is no other.

    Raises NoMatchingPlatform. Source: containerd's platforms.Only.
    """
    usable = [entry for entry in entries if entry.media_type in MANIFESTS | INDEXES]
    by_platform = {normalized(entry.platform): entry for entry in reversed(usable) if entry.platform}
    anywhere = (entry for entry in usable if entry.platform is None)
    fitting = (by_platform[item] for item in _runnable(wanted) if item in by_platform)
    best = next(fitting, None) or next(anywhere, None)
    if best is None:
        offered = ", ".join(sorted({str(entry.platform) for entry in entries if entry.platform})) or "none"
        raise NoMatchingPlatform(f"Could not use index: no match for platform {wanted} (has {offered})")
    return best


def normalized(platform: Platform) -> Platform:
    """The same with one word for each thing; source: containerd's normalizeArch.

    uname's and Debian's names of architectures become Go's; amd64/v1 and arm64/v8 are what has no variant,
    and arm without one is arm/v7.
    """
    architecture, variant = platform.architecture.lower(), platform.variant.lower()
    architecture, meant = _SPELLINGS.get(architecture, (architecture, ""))
    variant = meant or variant
    if architecture == "arm":
        variant = f"v{variant.removeprefix('v') or 7}"
    elif (architecture, variant.removeprefix("v")) in (("arm64", "8"), ("amd64", "1")):
        variant = ""
    return Platform(platform.os.lower(), architecture, variant)


def _runnable(wanted: Platform) -> list[Platform]:
    """What this machine runs, best first: older ARM variants, and 32 bits on 64."""
    first = normalized(wanted)
    if first.architecture == "amd64":
        return [first, Platform(first.os, "386")]
    limit = {"arm": first.variant, "arm64": "v9"}.get(first.architecture, "")
    older = [Platform(first.os, "arm", item) for item in ("v8", "v7", "v6", "v5") if item < limit]
    return [first, *older]


def parse_config(data: bytes) -> ImageConfig:
    """Read an image config; raises ManifestError."""
    document = _load(data, MAX_CONFIG, "image config")
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(
        isinstance(item, str) and is_digest(item) for item in diff_ids
    ):
        raise ManifestError("Could not use image config: rootfs.diff_ids is not a list of digests")
    process = document.get("config") or {}
    if not isinstance(process, dict):
        raise ManifestError("Could not use image config: config is not an object")
    return ImageConfig(
        process={name: _process_field(name, value) for name, value in process.items()},
        diff_ids=tuple(diff_ids),
        architecture=str(document.get("architecture") or ""),
        os=str(document.get("os") or ""),
        created=str(document.get("created") or ""),
    )


def _process_field(name: str, value: Any) -> Any:
    """One of the process defaults, of the type that the image spec gives it (config.md, "Properties"). As in
    Go, half a character (a lone surrogate), which no process could be given, becomes U+FFFD."""
    if name in _TEXTS and value is not None:
        return _whole(value, f"config.{name}")
    if name in _LISTS and value is not None:
        if not isinstance(value, list):
            raise ManifestError(f"Could not use image config: config.{name} is not a list")
        return [_whole(text, f"config.{name}[{index}]") for index, text in enumerate(value)]
    return value


def _whole(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ManifestError(f"Could not use image config: {where} is not a string")
    return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _load(data: bytes, limit: int, what: str) -> dict[str, Any]:
    if len(data) > limit:
        raise ManifestError(f"Could not use {what}: {len(data)} bytes, more than the {limit} allowed")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"Could not use {what}: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ManifestError(f"Could not use {what}: not a JSON object")
    return document


def _descriptor(raw: Any, where: str) -> Descriptor:
    if not isinstance(raw, dict):
        raise ManifestError(f"Could not use manifest: {where} is not an object")
    digest, size = raw.get("digest"), raw.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise ManifestError(f"Could not use manifest: {where}.digest is not a sha256 or sha512 digest")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ManifestError(f"Could not use manifest: {where}.size is not a number of bytes")
    place, found = raw.get("platform"), None
    if isinstance(place, dict):
        names = (str(place.get(key) or "") for key in ("os", "architecture", "variant"))
        found = Platform(*names)
    annotations = raw.get("annotations")
    return Descriptor(
        str(raw.get("mediaType") or ""),
        digest,
        size,
        found,
        annotations if isinstance(annotations, dict) else None,
    )
