"""One blob on its way from registries into a file, resumed where it broke off and believed when it is hashed.

A transfer that ends too soon is either a bad line, and then the rest is asked for, or a registry that has
fewer bytes than the manifest says, and then asking again is of no use. HTTP tells them apart: by a length
that was announced and not sent, or by the end of the chunks (RFC 9112 section 8); where a server tells
neither, by its 416 for the rest.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from typing import BinaryIO

import requests

from runtime.images import manifest as documents
from runtime.images.errors import DigestMismatch, PullError, RegistryUnavailable
from runtime.images.transport import BROKEN, SENSELESS, Channel

Progress = Callable[[str, int, int], None]
"""Called with a blob's digest, the bytes that are here, and the bytes that it has; from several threads."""

_ATTEMPTS = 5
_CHUNK = 1 << 16  # what requests loses of a line that breaks is less than that
_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)(?!\d)")


class Download:
    """What the file has already is hashed first, and only what is missing fetched."""

    def __init__(
        self,
        descriptor: documents.Descriptor,
        handle: BinaryIO,
        progress: Progress | None,
        stop: threading.Event,
    ) -> None:
        """Raises DigestMismatch where the file is the whole blob, and not of the size that it should have."""
        self._descriptor, self._handle, self._progress = descriptor, handle, progress
        self._stop = stop
        self._what = f"blob {descriptor.digest}"
        self._sha, self._done = hashlib.new(descriptor.digest.partition(":")[0]), 0
        self._refused_at = -1  # where a server refused to go on: if it ends there again, it has no more
        handle.seek(0)
        while chunk := handle.read(_CHUNK):  # what an earlier pull had got
            self._sha.update(chunk)
            self._done += len(chunk)
        self._inherited = self._done > 0
        if self._done != descriptor.size and self._digest() == descriptor.digest:
            # The manifest is wrong. Another pull may be unpacking this very file: it stays as it is.
            what = f"Could not accept {self._what}"
            raise DigestMismatch(f"{what}: it has {self._done} bytes, the manifest says {descriptor.size}")
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
            self._restart()
            self._fetch(channel)

    def _fetch(self, channel: Channel) -> None:
        size = self._descriptor.size
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                reason = self._read(channel)
                if self._done == size:
                    break
            except BROKEN as error:
                reason = type(error).__name__
            except SENSELESS as error:
                raise channel.senseless(self._what, error) from error
            if self._done == self._refused_at:
                raise self._wrong_size(channel, self._done)
            if attempt == _ATTEMPTS:
                broken = f"stopped at {self._done} of {size} bytes, {attempt} times ({reason})"
                raise RegistryUnavailable(f"{channel.what}: {self._what} {broken}")
            channel.sleep(0.2 * 2**attempt)
        if (actual := self._digest()) != self._descriptor.digest:
            self._restart()
            raise DigestMismatch(f"Could not accept {self._what}: it is {actual}")

    def _read(self, channel: Channel) -> str:
        """One request; what is wrong where bytes are still missing."""
        start = self._done
        if start == self._descriptor.size and start:
            self._tell()
            return ""
        headers = {"Range": f"bytes={start}-"} if start else {}
        url = channel.url(f"blobs/{self._descriptor.digest}")
        with channel.send("GET", url, self._what, headers=headers) as response:
            if response.status_code not in (200, 206, 416):
                raise channel.refused(response, self._what)
            first, total = _place(response)
            if total is not None and total != self._descriptor.size:
                raise self._wrong_size(channel, total)
            if response.status_code == 416 or (response.status_code == 206 and first != start):
                self._refused_at = start
                self._restart()
                return "it did not go on where it was asked to"
            skip = start if response.status_code == 200 else 0  # a server without ranges starts over
            for chunk in response.iter_content(_CHUNK):
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                self._take(chunk[skip:])
                skip = 0
            if self._done < self._descriptor.size and _told_its_end(response):
                raise self._wrong_size(channel, self._done)
        return "the connection ended early"

    def _wrong_size(self, channel: Channel, size: int) -> DigestMismatch:
        wanted = self._descriptor.size
        return DigestMismatch(
            f"{channel.what}: the registry's {self._what} has {size} bytes, the manifest says {wanted}"
        )

    def _take(self, chunk: bytes) -> None:
        if self._stop.is_set():
            raise PullError(f"Could not pull {self._what}: the pull was given up")
        self._done += len(chunk)
        if self._done > self._descriptor.size:
            self._restart()
            raise DigestMismatch(f"Could not accept {self._what}: over its {self._descriptor.size} bytes")
        self._sha.update(chunk)
        self._handle.write(chunk)
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._descriptor.digest, self._done, self._descriptor.size)

    def _digest(self) -> str:
        """Of what has come."""
        return f"{self._descriptor.digest.partition(':')[0]}:{self._sha.hexdigest()}"

    def _restart(self) -> None:
        self._sha, self._done = hashlib.new(self._descriptor.digest.partition(":")[0]), 0
        self._handle.seek(0)
        self._handle.truncate()


def _place(response: requests.Response) -> tuple[int | None, int | None]:
    """Where the answer's bytes begin, and how many the whole blob has; None where it does not say."""
    if response.status_code == 200:
        length = _length(response)
        return 0, None if "Content-Encoding" in response.headers else length
    found = _RANGE.match(response.headers.get("Content-Range", ""))
    if found is None:
        return None, None
    first, total = found.groups()
    return int(first) if first else None, None if total == "*" else int(total)


def _told_its_end(response: requests.Response) -> bool:
    """Whether the body that has been read ended where the server said, and not with the connection."""
    if response.headers.get("Transfer-Encoding", "").lower() == "chunked":
        return True  # else reading had failed
    return response.raw.tell() == _length(response)


def _length(response: requests.Response) -> int | None:
    """Content-Length, None where it is no number: int() raises ValueError for one of thousands of digits."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and len(text) < 20 else None
