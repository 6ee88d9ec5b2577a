"""Pulling images over the OCI distribution API.

A pull is: the manifest by tag or digest (through an index, by platform), its config, then the layers that
are not on disk yet. Each may come from another server: the mirrors of hosts.toml are asked in order, the
registry itself last, and a transfer that breaks off goes on where it was, with the next server if need be, or
with the next pull (partial.py, download.py). Pulls that want the same blob fetch it once.

What is never done: fetching from `urls` in a manifest (CVE-2020-15157); trusting a size or a digest that was
not counted. Credentials are for the registry that the image's name has: mirrors are not given them.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

from runtime.images import hosts
from runtime.images import manifest as documents
from runtime.images.credentials import ANONYMOUS, Credentials
from runtime.images.download import Download, Progress
from runtime.images.errors import DigestMismatch, ImageError, ManifestError, PullError
from runtime.images.reference import Reference, parse
from runtime.images.store import Image, ImageStore, LayerSource
from runtime.images.transport import Channel, Session

log = logging.getLogger(__name__)

_PARALLEL = 3
_LOOK_SECONDS = 0.1  # between looks at a download that another pull has in hand
_END_SECONDS = 1.0  # for downloads to end when a pull is given up; one that waits for a server is left behind
_MAX_INDEX_DEPTH = 3
_Found = TypeVar("_Found")


def pull(
    store: ImageStore,
    name: str,
    *,
    credentials: Credentials | None = None,
    progress: Progress | None = None,
    waiting: Progress | None = None,
    insecure: Collection[str] = (),
    ca_file: str | None = None,
    hosts_dir: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Image:
    """Pull an image into the store and return it.

    `insecure` are hosts (with port, as in the image name) that may be asked without TLS or with an unknown
    certificate; `hosts_dir` holds <host>/hosts.toml files (see hosts.py). Layers that are present are not
    fetched again. While another pull fetches a blob, `waiting` is called instead of `progress`. Raises the
    PullError tree, InvalidReference, InvalidHosts, ManifestError, DigestMismatch, UnpackError.
    """
    reference, stop = parse(name), threading.Event()
    with open_channels(
        reference,
        "pull",
        stop=stop,
        credentials=credentials,
        insecure=reference.domain in insecure,
        ca_file=ca_file,
        hosts_dir=hosts_dir,
        sleep=sleep,
    ) as channels:
        source = _Source(reference, channels, progress, waiting, stop)
        kept, top_digest = _manifests(source, reference)
        found = documents.parse_manifest(kept[-1])
        config = source.document(found.config, documents.MAX_CONFIG)
        diff_ids = documents.parse_config(config).diff_ids
        if len(diff_ids) != len(found.layers):
            raise ManifestError(f"Could not pull {reference}: manifest and config disagree about the layers")
        with store.ingest() as folder, _Blobs(source, store, found, diff_ids) as blobs:
            blobs.fetch()
            layers = [
                LayerSource(diff_id, layer.size, blobs.opener(layer))
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
    stop: threading.Event | None = None,
) -> Iterator[list[Channel]]:
    """Channels to the servers that may be asked for this repository, in order; nothing after `stop`."""
    with ExitStack() as stack:
        session = stack.enter_context(Session())
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
                    stop=stop,
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


class _Blobs:
    """The layers of one image on their way through the store's shared downloads.

    Leaving the block closes the files. What the pull got is then of no use, or, where it broke off, for the
    next one.
    """

    def __init__(
        self, source: _Source, store: ImageStore, found: documents.Manifest, diff_ids: tuple[str, ...]
    ) -> None:
        self._source, self._store = source, store
        self._layers = list(zip(found.layers, diff_ids, strict=True))
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> _Blobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        digests = {layer.digest for layer, _ in self._layers}
        if isinstance(error, (PullError, KeyboardInterrupt, SystemExit)):
            self._store.partials.keep(digests)
        else:
            self._store.partials.forget(digests)

    def fetch(self) -> None:
        """Download, some at a time, the layers that the store lacks."""
        missing = {
            layer.digest: (layer, diff_id)
            for layer, diff_id in self._layers
            if not self._store.has_layer(diff_id)
        }
        waiting: queue.SimpleQueue[tuple[documents.Descriptor, str]] = queue.SimpleQueue()
        over: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for item in missing.values():
            waiting.put(item)
        # Daemons: a process that was told to stop does not wait for a server that says nothing.
        threads = [
            threading.Thread(target=self._work, args=(waiting, over), name="image-pull", daemon=True)
            for _ in range(min(_PARALLEL, len(missing)))
        ]
        try:
            for thread in threads:
                thread.start()
            for _ in missing:
                error = over.get()
                if error is not None:
                    raise error  # the first one that fails ends the pull, whichever it is
        except BaseException:
            self._source.stop.set()
            deadline = time.monotonic() + _END_SECONDS
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, deadline - time.monotonic()))
            raise

    def _work(
        self,
        waiting: queue.SimpleQueue[tuple[documents.Descriptor, str]],
        over: queue.SimpleQueue[BaseException | None],
    ) -> None:
        """Fetch what waits until nothing does; what became of each goes to `over`."""
        while not self._source.stop.is_set():
            try:
                layer, diff_id = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._fetch(layer, diff_id)
            except BaseException as error:
                over.put(error)  # raised by the pull
            else:
                over.put(None)

    def opener(self, layer: documents.Descriptor) -> Callable[[], BinaryIO]:
        """How the store opens the layer."""

        def open_layer() -> BinaryIO:
            # A layer that was present may have been removed in the meantime: fetch it after all.
            if layer.digest not in self._files:
                self._fetch(layer)
            return open(f"/proc/self/fd/{self._files[layer.digest].fileno()}", "rb")

        return open_layer

    def _fetch(self, layer: documents.Descriptor, diff_id: str | None = None) -> None:
        """Have the blob's file, whole and checked, unless its layer has come by another pull."""
        with self._store.partials.writing(layer.digest, lambda got: self._source.wait(layer, got)) as file:
            come = diff_id is not None and self._store.has_layer(diff_id)
            if not come:
                self._source.blob(layer, file)
        if come:
            self._source.tell(layer)
        if come or self._source.stop.is_set():
            file.close()
        else:
            self._files[layer.digest] = file


class _Source:
    """The servers that may have the repository."""

    def __init__(
        self,
        reference: Reference,
        channels: Sequence[Channel],
        progress: Progress | None,
        waiting: Progress | None,
        stop: threading.Event,
    ) -> None:
        self._reference, self._channels = reference, channels
        self._progress, self._waiting = progress, waiting
        self.stop = stop  # set when the pull is given up: its downloads then end soon

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
            if len(data) != descriptor.size:
                raise DigestMismatch(
                    f"Could not pull {self._reference}: {what} has {len(data)} bytes, not {descriptor.size}"
                )
            return data

        return self._first("pull", what, ask)

    def blob(self, descriptor: documents.Descriptor, handle: BinaryIO) -> None:
        """Download a blob into the file, resuming broken transfers, and check it."""
        download = Download(descriptor, handle, self._progress, self.stop)
        self._first("pull", f"blob {descriptor.digest}", download.run)

    def tell(self, descriptor: documents.Descriptor) -> None:
        """All of the blob has come, by another pull."""
        if self._progress is not None:
            self._progress(descriptor.digest, descriptor.size, descriptor.size)

    def wait(self, descriptor: documents.Descriptor, got: int) -> None:
        """A moment, while another pull has `got` bytes of the blob; PullError when the pull is given up."""
        if self._waiting is not None:
            self._waiting(descriptor.digest, got, descriptor.size)
        if self.stop.wait(_LOOK_SECONDS):
            raise PullError(f"Could not pull blob {descriptor.digest}: the pull was given up")

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
