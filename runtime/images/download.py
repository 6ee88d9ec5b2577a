"""One blob on its way from registries into a file, resumed where it broke off and believed when it is hashed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import BinaryIO

from runtime.images import manifest as documents
from runtime.images.errors import DigestMismatch, PullError, RegistryUnavailable
from runtime.images.transport import BROKEN, CHUNK, Channel

Progress = Callable[[str, int, int], None]
"""Called with a blob's digest, the bytes that are here, and the bytes that it has; from several threads."""

_ATTEMPTS = 5


class Download:
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
