"""Pushing images over the OCI distribution API, so that a lab can feed its own registry.

The store keeps layers unpacked; the compressed blobs that a registry once had are gone, and gzip gives other
bytes with every implementation. So a push first asks whether the registry has the blobs of the manifest under
which the image came, in this repository or in another one of the same registry (from which they are mounted):
then that very manifest is put, digest and all. Otherwise layers are played back, packed with gzip and put
under a manifest of our own. The image's id, which is the digest of its config, is the same in both cases.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

import requests

from runtime.images import manifest as documents
from runtime.images.credentials import Credentials
from runtime.images.download import Progress
from runtime.images.errors import ImageNotFound, ManifestError, PullError, RegistryUnavailable
from runtime.images.export import oci_manifest
from runtime.images.reference import Reference, is_digest, parse
from runtime.images.registry import open_channels
from runtime.images.store import Image, ImageStore
from runtime.images.transport import Channel

log = logging.getLogger(__name__)

_PIECE = 8 << 20  # smaller blobs travel in one PUT, larger ones in pieces of this size
_ATTEMPTS = 5
_LEVEL = 6


@dataclass(frozen=True, slots=True)
class Pushed:
    """What the registry has now: the manifest's digest, and how many blobs were sent, mounted or there."""

    digest: str
    sent: int
    mounted: int
    present: int


def push(
    store: ImageStore,
    name: str,
    *,
    target: str | None = None,
    credentials: Credentials | None = None,
    progress: Progress | None = None,
    insecure: Collection[str] = (),
    ca_file: str | None = None,
    hosts_dir: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Push the image `name` to `target` (its own name by default); the arguments are those of `pull`.

    Raises ImageNotFound, InvalidReference and the PullError tree.
    """
    image = store.lookup(name)
    if image is None:
        raise ImageNotFound(f"Could not push {name}: no such image (kubelet-py image ls shows what there is)")
    reference = parse(target or name)
    if reference.digest:
        raise ManifestError(f"Could not push {reference}: a digest cannot be pushed to (give a tag)")
    with open_channels(
        reference,
        "push",
        credentials=credentials,
        insecure=reference.domain in insecure,
        ca_file=ca_file,
        hosts_dir=hosts_dir,
        sleep=sleep,
    ) as channels:
        # Mirrors may be allowed to take images, but the registry that the name has is the one that is meant.
        able = [item for item in channels if "push" in item.endpoint.capabilities]
        if not able:
            raise PullError(f"Could not push {reference}: hosts.toml has no server with capability push")
        done = _Push(store, image, reference, able[-1], progress).run()
    log.info("Pushed image image=%s digest=%s sent=%d", reference, done.digest, done.sent)
    return done


class _Push:
    """One image on its way to one repository."""

    def __init__(
        self,
        store: ImageStore,
        image: Image,
        reference: Reference,
        channel: Channel,
        progress: Progress | None,
    ) -> None:
        self._store, self._image, self._reference = store, image, reference
        self._channel, self._progress = channel, progress
        self._sent = self._mounted = self._present = 0
        own = f"{reference.domain}/"
        names = (name.partition("@")[0] for name in image.repo_digests)
        self._siblings = sorted(
            {name.removeprefix(own) for name in names if name.startswith(own)} - {reference.path}
        )

    def run(self) -> Pushed:
        config = self._store.document(self._image.id)
        manifest = self._original()
        if manifest is None:
            layers = [self._layer(diff_id) for diff_id in self._store.diff_ids(self._image.id)]
            manifest = oci_manifest(config, layers)
        if not self._there(self._image.id):
            with tempfile.TemporaryFile() as handle:
                handle.write(config)
                self._upload(handle, self._image.id, len(config))
        digest = self._put_manifest(manifest)
        self._store.note_digest(self._image.id, f"{self._reference.repository}@{digest}")
        return Pushed(digest, self._sent, self._mounted, self._present)

    def _original(self) -> bytes | None:
        """The manifest under which the image came, if the registry has all its layers already."""
        for data in self._store.manifests(self._image.id):
            if documents.kind_of(data) != "manifest":
                continue
            found = documents.parse_manifest(data)
            if found.config.digest == self._image.id and all(
                self._there(layer.digest) or self._mount(layer.digest) for layer in found.layers
            ):
                self._present += len(found.layers) - self._mounted
                return data
        return None

    def _layer(self, diff_id: str) -> tuple[str, str, int]:
        """Pack a layer and see to it that the registry has it."""
        with tempfile.TemporaryFile() as handle:
            sha, size = hashlib.sha256(), 0
            for chunk in _packed(self._store.read_layer(diff_id)):
                sha.update(chunk)
                size += handle.write(chunk)
            digest = f"sha256:{sha.hexdigest()}"
            if self._there(digest):
                self._present += 1
            else:
                self._upload(handle, digest, size)
        return f"{documents.OCI_LAYER}+gzip", digest, size

    # -- requests ------------------------------------------------------------------------------------

    def _there(self, digest: str) -> bool:
        what = f"blob {digest}"
        with self._channel.send("HEAD", self._channel.url(f"blobs/{digest}"), what) as response:
            if response.status_code == 404:
                return False
            if response.status_code != 200:
                raise self._channel.refused(response, what)
            return True

    def _mount(self, digest: str) -> bool:
        """Let the registry link a blob of a sibling repository; False when it would rather be sent it."""
        for sibling in self._siblings:
            query = urlencode({"mount": digest, "from": sibling})
            with self._channel.send(
                "POST", self._channel.url(f"blobs/uploads/?{query}"), f"mount of {digest}"
            ) as response:
                if response.status_code == 201:
                    self._mounted += 1
                    return True
                if response.status_code == 202:
                    self._cancel(response)
        return False

    def _cancel(self, response: requests.Response) -> None:
        where = urljoin(response.url, response.headers.get("Location", ""))
        self._channel.send("DELETE", where, "upload").close()

    def _upload(self, handle: IO[bytes], digest: str, size: int) -> None:
        what = f"upload of {digest}"
        with self._channel.send("POST", self._channel.url("blobs/uploads/"), what) as response:
            if response.status_code != 202:
                raise self._channel.refused(response, what)
            where = self._location(response)
        sent = 0
        if size > _PIECE:
            where = self._pieces(handle, where, size, what)
            sent = size
        handle.seek(sent)
        with self._channel.send(
            "PUT",
            _with_query(where, digest),
            what,
            headers={"Content-Type": "application/octet-stream"},
            data=handle.read(size - sent),
        ) as response:
            # When an answer got lost, the repeated PUT meets a finished upload.
            finished = response.status_code in (201, 204)
            if not finished and not (response.status_code == 404 and self._there(digest)):
                raise self._channel.refused(response, what)
        self._sent += 1
        self._tell(digest, size, size)

    def _pieces(self, handle: IO[bytes], where: str, size: int, what: str) -> str:
        """Send in pieces; after a failure, go on where the registry says it is."""
        sent = failures = 0
        while sent < size:
            handle.seek(sent)
            data = handle.read(_PIECE)
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{sent}-{sent + len(data) - 1}",
            }
            try:
                with self._channel.send(
                    "PATCH", where, what, headers=headers, data=data, patient=False
                ) as response:
                    if response.status_code not in (202, 204):
                        raise self._channel.refused(response, what)
                    where, sent, failures = self._location(response), sent + len(data), 0
                    self._tell(what.rpartition(" ")[2], sent, size)
            except RegistryUnavailable:
                failures += 1
                if failures == _ATTEMPTS:
                    raise
                self._channel.sleep(0.2 * 2**failures)
                where, sent = self._position(where, what)
        return where

    def _position(self, where: str, what: str) -> tuple[str, int]:
        """Where an interrupted upload stands: its address and the bytes that arrived."""
        with self._channel.send("GET", where, what) as response:
            if response.status_code != 204:
                raise self._channel.refused(response, what)
            last = response.headers.get("Range", "0-0").rpartition("-")[2]
            # "0-0" is what registries say both of nothing and of a single byte.
            sent = int(last) + 1 if last.isdigit() and last != "0" else 0
            return self._location(response, where), sent

    def _location(self, response: requests.Response, default: str = "") -> str:
        location = response.headers.get("Location", "") or default
        if not location:
            raise PullError(f"{self._channel.what}: the registry did not say where to upload to")
        found = urljoin(response.url, location)
        if urlsplit(found).scheme != "https" and urlsplit(self._channel.base).scheme == "https":
            raise PullError(f"{self._channel.what}: told to upload to {found[:200]}, which is not https")
        return found

    def _put_manifest(self, manifest: bytes) -> str:
        digest = documents.digest_of(manifest)
        found = documents.parse_manifest(manifest)
        kind = documents.OCI_MANIFEST
        if found.config.media_type == documents.DOCKER_CONFIG:
            kind = documents.DOCKER_MANIFEST
        what = f"manifest {self._reference.tag}"
        url = self._channel.url(f"manifests/{self._reference.tag}")
        with self._channel.send("PUT", url, what, headers={"Content-Type": kind}, data=manifest) as response:
            if response.status_code not in (201, 202):
                raise self._channel.refused(response, what)
            told = response.headers.get("Docker-Content-Digest", digest)
        if told != digest and is_digest(told):
            raise ManifestError(f"{self._channel.what}: the registry made {told} of manifest {digest}")
        return digest

    def _tell(self, digest: str, done: int, size: int) -> None:
        if self._progress is not None:
            self._progress(digest, done, size)


def _packed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """gzip without name and time: the same layer gives the same blob, so that it is found again."""
    engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
    for chunk in chunks:
        if data := engine.compress(chunk):
            yield data
    yield engine.flush()


def _with_query(url: str, digest: str) -> str:
    parts = urlsplit(url)
    query = "&".join(filter(None, (parts.query, urlencode({"digest": digest}))))
    return urlunsplit(parts._replace(query=query))
