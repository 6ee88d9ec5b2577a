"""Pulling images over the OCI distribution API.

A pull is: the manifest by tag or digest (through an index, by platform), its config, then the layers that
are not on disk yet. Each may come from another server: the mirrors of hosts.toml are asked in order, the
registry itself last, and a transfer that breaks off goes on where it was, with the next server if need be, or
with the next pull (partial.py).

What is never done: fetching from `urls` in a manifest (CVE-2020-15157); trusting a size or a digest that was
not counted. Credentials are for the registry that the image's name has: mirrors are not given them.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import requests

from runtime.images import hosts
from runtime.images import manifest as documents
from runtime.images.credentials import ANONYMOUS, Credentials
from runtime.images.errors import DigestMismatch, ImageError, ManifestError, PullError, RegistryUnavailable
from runtime.images.partial import Partials, blob_file
from runtime.images.reference import Reference, parse
from runtime.images.store import Image, ImageStore, LayerSource
from runtime.images.transport import BROKEN, CHUNK, Channel

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a blob's digest, the bytes that are here, and the bytes that it has; from several threads."""

_ATTEMPTS = 5
_PARALLEL = 3
_MAX_INDEX_DEPTH = 3
_Found = TypeVar("_Found")


def pull(
    store: ImageStore,
    name: str,
    *,
    credentials: Credentials | None = None,
    progress: Progress | None = None,
    insecure: Collection[str] = (),
    ca_file: str | None = None,
    hosts_dir: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Image:
    """Pull an image into the store and return it.

    `insecure` are hosts (with port, as in the image name) that may be asked without TLS or with an unknown
    certificate; `hosts_dir` holds <host>/hosts.toml files (see hosts.py). Layers that are present are not
    fetched again. Raises the PullError tree, InvalidReference, InvalidHosts, ManifestError, DigestMismatch,
    UnpackError.
    """
    reference = parse(name)
    with open_channels(
        reference,
        "pull",
        credentials=credentials,
        insecure=reference.domain in insecure,
        ca_file=ca_file,
        hosts_dir=hosts_dir,
        sleep=sleep,
    ) as channels:
        source = _Source(reference, channels, store.partials)
        kept, top_digest = _manifests(source, reference)
        found = documents.parse_manifest(kept[-1])
        config = source.document(found.config, documents.MAX_CONFIG)
        diff_ids = documents.parse_config(config).diff_ids
        if len(diff_ids) != len(found.layers):
            raise ManifestError(f"Could not pull {reference}: manifest and config disagree about the layers")
        with store.ingest() as folder:
            files = _fetch_layers(source, store, folder, found, diff_ids, progress)
            layers = [
                LayerSource(diff_id, layer.size, _opener(source, folder, files, layer))
                for diff_id, layer in zip(diff_ids, found.layers, strict=True)
            ]
            image = store.add(
                folder,
                config=config,
                layers=layers,
                tags=[] if reference.digest else [str(reference)],
                digests=[f"{reference.repository}@{top_digest}"],
                documents=kept,
            )
        for layer in found.layers:
            store.partials.forget(layer.digest)
    log.info("Pulled image image=%s id=%s", reference, image.id)
    return image


@contextmanager
def open_channels(
    reference: Reference,
    verb: str,
    *,
    credentials: Credentials | None,
    insecure: bool,
    ca_file: str | None,
    hosts_dir: Path | None,
    sleep: Callable[[float], None],
) -> Iterator[list[Channel]]:
    """Channels to the servers that may be asked for this repository, in order."""
    with ExitStack() as stack:
        session = stack.enter_context(requests.Session())
        channels = []
        for endpoint in hosts.endpoints(hosts_dir, reference.domain):
            try:
                channel = Channel(
                    session,
                    endpoint,
                    reference,
                    ANONYMOUS if endpoint.mirror_of else (credentials or ANONYMOUS),
                    verb=verb,
                    insecure=insecure,
                    ca_file=None if endpoint.ca else ca_file,
                    sleep=sleep,
                )
            except OSError as error:
                raise hosts.InvalidHosts(f"Could not read {error.filename}: {error.strerror}") from error
            stack.callback(channel.close)
            channels.append(channel)
        yield channels


def _manifests(source: _Source, reference: Reference) -> tuple[list[bytes], str]:
    """The documents from the name down to the manifest, and the digest of the first."""
    wanted = documents.host_platform()
    kept: list[bytes] = []
    top_digest, selector, size = "", reference.selector, -1
    for _ in range(_MAX_INDEX_DEPTH):
        data, digest, content_type = source.manifest(selector)
        if 0 <= size != len(data):
            raise DigestMismatch(
                f"Could not pull {reference}: manifest {digest} has {len(data)} bytes, not {size}"
            )
        kept.append(data)
        top_digest = top_digest or digest
        if documents.kind_of(data, content_type) == "manifest":
            return kept, top_digest
        entry = documents.select(documents.parse_index(data), wanted)
        selector, size = entry.digest, entry.size
    raise ManifestError(f"Could not pull {reference}: indexes are nested too deeply")


def _fetch_layers(
    source: _Source,
    store: ImageStore,
    folder: Path,
    found: documents.Manifest,
    diff_ids: tuple[str, ...],
    progress: Progress | None,
) -> dict[str, Path]:
    """Download, some at a time, the layers that the store lacks; files by digest."""
    missing = {
        layer.digest: layer
        for diff_id, layer in zip(diff_ids, found.layers, strict=True)
        if not store.has_layer(diff_id)
    }
    if not missing:
        return {}
    with ThreadPoolExecutor(max_workers=_PARALLEL, thread_name_prefix="image-pull") as pool:
        tasks = [pool.submit(source.blob, layer, folder, progress) for layer in missing.values()]
        try:
            for done in as_completed(tasks):
                done.result()  # the first one that fails ends the pull, whichever it is
        except BaseException:
            source.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        return {digest: task.result() for digest, task in zip(missing, tasks, strict=True)}


def _opener(
    source: _Source, folder: Path, files: dict[str, Path], layer: documents.Descriptor
) -> Callable[[], Any]:
    def open_layer() -> Any:
        # A layer that was present may have been removed in the meantime: fetch it after all.
        if layer.digest not in files:
            files[layer.digest] = source.blob(layer, folder, None)
        return open(files[layer.digest], "rb")

    return open_layer


class _Source:
    """The servers that may have the repository."""

    def __init__(self, reference: Reference, channels: Sequence[Channel], partials: Partials) -> None:
        self._reference, self._channels, self._partials = reference, channels, partials
        self.stop = threading.Event()  # set when the pull is given up: its downloads then end soon

    def manifest(self, selector: str) -> tuple[bytes, str, str]:
        """A manifest or index by tag or digest: its bytes, digest and content type."""
        what = f"manifest {selector}"

        def ask(channel: Channel) -> tuple[bytes, str, str]:
            with channel.get(
                channel.url(f"manifests/{selector}"), what, {"Accept": documents.ACCEPT}
            ) as response:
                data = channel.read_small(response, documents.MAX_MANIFEST, what)
                content_type = response.headers.get("Content-Type", "")
                announced = response.headers.get("Docker-Content-Digest", "")
            digest = selector if ":" in selector else announced
            if digest:
                documents.check_digest(data, digest, what)
            return data, digest or documents.digest_of(data), content_type

        return self._first("pull" if ":" in selector else "resolve", what, ask)

    def document(self, descriptor: documents.Descriptor, limit: int) -> bytes:
        """A small blob, checked."""
        if descriptor.size > limit:
            raise ManifestError(
                f"Could not pull {self._reference}: config of {descriptor.size} bytes (limit {limit})"
            )
        what = f"blob {descriptor.digest}"

        def ask(channel: Channel) -> bytes:
            with channel.get(channel.url(f"blobs/{descriptor.digest}"), what) as response:
                data = channel.read_small(response, limit, what)
            documents.check_digest(data, descriptor.digest, what)
            return data

        return self._first("pull", what, ask)

    def blob(self, descriptor: documents.Descriptor, folder: Path, progress: Progress | None) -> Path:
        """Download a blob into `folder`, resuming broken transfers; returns the checked file."""
        path = blob_file(folder, descriptor.digest)
        self._partials.claim(descriptor.digest, path)
        with open(path, "a+b") as handle:
            download = _Download(descriptor, handle, progress, self.stop)
            self._first("pull", f"blob {descriptor.digest}", download.run)
        return path

    def _first(self, capability: str, what: str, ask: Callable[[Channel], _Found]) -> _Found:
        """The answer of the first server that gives one; the last one's error where none does."""
        last: ImageError = PullError(f"Could not pull {self._reference}: no server may be asked for {what}")
        able = [item for item in self._channels if capability in item.endpoint.capabilities]
        for channel in able:
            try:
                return ask(channel)
            except (PullError, DigestMismatch) as error:
                last = error
                if channel is not able[-1]:
                    log.info("Went on to the next server what=%s error=%s", what, error)
        raise last


class _Download:
    """A blob on its way into a file, from one server after the other."""

    def __init__(
        self,
        descriptor: documents.Descriptor,
        handle: BinaryIO,
        progress: Progress | None,
        stop: threading.Event,
    ) -> None:
        self._descriptor, self._handle, self._progress = descriptor, handle, progress
        self._stop = stop
        self._sha, self._done = hashlib.new(descriptor.digest.partition(":")[0]), 0
        handle.seek(0)
        while chunk := handle.read(CHUNK):  # what an earlier pull had got
            self._sha.update(chunk)
            self._done += len(chunk)
        self._inherited = self._done > 0
        if self._done > descriptor.size:
            self._restart()

    def run(self, channel: Channel) -> None:
        """Fetch what is missing from this server; raises the PullError tree and DigestMismatch."""
        try:
            self._fetch(channel)
        except DigestMismatch:
            if not self._inherited:
                raise
            # It may be what was kept of an earlier pull that is wrong, not the server.
            self._inherited = False
            self._fetch(channel)

    def _fetch(self, channel: Channel) -> None:
        size, what = self._descriptor.size, f"blob {self._descriptor.digest}"
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._read(channel, what)
                if self._done == size:
                    break
                reason = "the connection ended early"
            except BROKEN as error:
                reason = type(error).__name__
            if attempt == _ATTEMPTS:
                broken = f"stopped at {self._done} of {size} bytes, {attempt} times ({reason})"
                raise RegistryUnavailable(f"{channel.what}: {what} {broken}")
            channel.sleep(0.2 * 2**attempt)
        algorithm = self._descriptor.digest.partition(":")[0]
        actual = f"{algorithm}:{self._sha.hexdigest()}"
        if actual != self._descriptor.digest:
            self._restart()
            raise DigestMismatch(f"Could not accept {what}: it is {actual}")

    def _read(self, channel: Channel, what: str) -> None:
        start = self._done
        if start == self._descriptor.size and start:
            self._tell()
            return
        headers = {"Range": f"bytes={start}-"} if start else {}
        with channel.get(channel.url(f"blobs/{self._descriptor.digest}"), what, headers) as response:
            skip = start if response.status_code == 200 else 0  # a server without ranges starts over
            for chunk in response.iter_content(CHUNK):
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                self._take(chunk[skip:])
                skip = 0

    def _take(self, chunk: bytes) -> None:
        if self._stop.is_set():
            raise PullError(f"Could not pull blob {self._descriptor.digest}: the pull was given up")
        self._done += len(chunk)
        if self._done > self._descriptor.size:
            self._restart()
            digest, size = self._descriptor.digest, self._descriptor.size
            raise DigestMismatch(f"Could not accept blob {digest}: over its {size} bytes")
        self._sha.update(chunk)
        self._handle.write(chunk)
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._descriptor.digest, self._done, self._descriptor.size)

    def _restart(self) -> None:
        self._sha, self._done = hashlib.new(self._descriptor.digest.partition(":")[0]), 0
        self._handle.seek(0)
        self._handle.truncate()
