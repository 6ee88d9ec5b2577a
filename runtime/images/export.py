"""Images to files: the archives that `docker load`, `podman load`, skopeo and our own `import` read.

Both kinds are written front to back, so that they may go into a pipe; layers are played back from the store
as plain tars, which makes their digest in an OCI layout the diffID itself. The bytes depend on nothing but
the images: no time, no owner, no order of the machine.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from runtime.images import manifest as documents
from runtime.images.errors import ArchiveError, ImageNotFound
from runtime.images.reference import parse
from runtime.images.store import Image, ImageStore

FORMATS = ("docker-archive", "oci-archive")


def export_images(store: ImageStore, names: Sequence[str], out: BinaryIO, form: str) -> list[Image]:
    """Write the images as one archive of `form` (docker-archive or oci-archive).

    A name gives the archive that tag; an id gives all the image's tags. Raises ImageNotFound, ArchiveError,
    DigestMismatch, UnpackError; then what was written is of no use.
    """
    tags: dict[str, tuple[Image, list[str]]] = {}
    for name in names:
        image, named = _choose(store, name)
        tags.setdefault(image.id, (image, []))[1].extend(named)
    chosen = [(image, list(dict.fromkeys(named))) for image, named in tags.values()]
    writer = _Writer(store, out)
    if form == "docker-archive":
        _write_docker(writer, store, chosen)
    elif form == "oci-archive":
        _write_layout(writer, store, chosen)
    else:
        raise ArchiveError(f"Could not export as {form!r}: the formats are {', '.join(FORMATS)}")
    writer.finish()
    return [image for image, _ in chosen]


def oci_manifest(config: bytes, layers: Sequence[tuple[str, str, int]]) -> bytes:
    """An OCI manifest over a config and layers given as (media type, digest, size), bottom first."""
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": documents.OCI_MANIFEST,
            "config": _pointer(documents.OCI_CONFIG, documents.digest_of(config), len(config)),
            "layers": [_pointer(*layer) for layer in layers],
        }
    )


def encode(document: Any) -> bytes:
    """Compact JSON, the same bytes for the same document."""
    return json.dumps(document, separators=(",", ":")).encode()


def _pointer(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _choose(store: ImageStore, name: str) -> tuple[Image, list[str]]:
    image = store.lookup(name)
    if image is None:
        text = f"Could not export {name}: no such image (kubelet-py image ls shows what there is)"
        raise ImageNotFound(text)
    if name == image.id or image.id.removeprefix("sha256:").startswith(name.removeprefix("sha256:")):
        return image, list(image.repo_tags)
    full = str(parse(name))
    return image, [full] if full in image.repo_tags else []


class _Writer:
    """Members of a tar, each name once."""

    def __init__(self, store: ImageStore, out: BinaryIO) -> None:
        self._store, self._out = store, out
        self._written: set[str] = set()

    def document(self, name: str, data: bytes) -> None:
        if self._new(name):
            self._member(name, len(data), iter((data,)))

    def layer(self, name: str, diff_id: str) -> int:
        size = self._store.layer_length(diff_id)
        if self._new(name):
            self._member(name, size, self._store.read_layer(diff_id))
        return size

    def finish(self) -> None:
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))

    def _new(self, name: str) -> bool:
        if name in self._written:
            return False
        self._written.add(name)
        return True

    def _member(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._out.write(info.tobuf(tarfile.GNU_FORMAT))  # whose sizes go beyond the 8 GiB of ustar
        for chunk in chunks:
            self._out.write(chunk)
        self._out.write(bytes(-size % tarfile.BLOCKSIZE))


def _write_docker(writer: _Writer, store: ImageStore, chosen: Sequence[tuple[Image, list[str]]]) -> None:
    listed: dict[str, dict[str, Any]] = {}
    for image, tags in chosen:
        config_name = f"{image.id.partition(':')[2]}.json"
        if config_name in listed:
            listed[config_name]["RepoTags"] = sorted({*listed[config_name]["RepoTags"], *tags})
            continue
        writer.document(config_name, store.document(image.id))
        names = []
        for diff_id in store.diff_ids(image.id):
            names.append(f"{diff_id.partition(':')[2]}.tar")
            writer.layer(names[-1], diff_id)
        listed[config_name] = {"Config": config_name, "RepoTags": tags, "Layers": names}
    writer.document("manifest.json", encode(list(listed.values())))


def _write_layout(writer: _Writer, store: ImageStore, chosen: Sequence[tuple[Image, list[str]]]) -> None:
    writer.document("oci-layout", encode({"imageLayoutVersion": "1.0.0"}))
    tops: list[dict[str, Any]] = []
    for image, tags in chosen:
        config = store.document(image.id)
        layers = []
        for diff_id in store.diff_ids(image.id):
            size = writer.layer(_blob_name(diff_id), diff_id)
            layers.append((documents.OCI_LAYER, diff_id, size))
        manifest = oci_manifest(config, layers)
        writer.document(_blob_name(image.id), config)
        writer.document(_blob_name(documents.digest_of(manifest)), manifest)
        pointer = _pointer(documents.OCI_MANIFEST, documents.digest_of(manifest), len(manifest))
        parsed = documents.parse_config(config)
        pointer["platform"] = {"architecture": parsed.architecture, "os": parsed.os}
        for tag in tags:
            # containerd and docker read the first name, skopeo and podman the second.
            names = {"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": tag}
            tops.append({**pointer, "annotations": names})
        if not tags:
            tops.append(pointer)
    index = {"schemaVersion": 2, "mediaType": documents.OCI_INDEX, "manifests": tops}
    writer.document("index.json", encode(index))


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"
