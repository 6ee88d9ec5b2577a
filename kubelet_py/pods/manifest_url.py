"""Static pods from an address (`staticPodURL`): asked again every httpCheckFrequency.

Whatever is not a good answer changes nothing: pods of a server that is away go on, and an agent that has come
anew leaves what runs of them alone until the server has answered.
Source: upstream's pkg/kubelet/config/http.go.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from kubelet_py.errors import ConfigError
from kubelet_py.pods import manifests
from kubelet_py.pods.manifests import Manifest
from kubelet_py.pods.model import HTTP_SOURCE

log = logging.getLogger(__name__)

TIMEOUT = 10.0
LARGEST = 10 * 1024 * 1024
LOUD_FAILURES = 3

Fetch = Callable[[str, Mapping[str, Sequence[str]]], bytes]
"""(address, headers) → the body of a 200; OSError tells why there is none."""


def fetch(url: str, headers: Mapping[str, Sequence[str]]) -> bytes:
    """GET, as the node's own proxy settings and certificate authorities have it."""
    import http.client
    import urllib.request  # late: 3 MB that only nodes with such an address need

    request = urllib.request.Request(url)
    for name, values in headers.items():
        request.add_header(name, ", ".join(values))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            body: bytes = answer.read(LARGEST + 1)
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    if len(body) > LARGEST:
        raise OSError(f"the answer is larger than {LARGEST} bytes")
    return body


class ManifestUrl:
    """`changed(manifest)` gets all that the address says: at the first good answer, then when it differs."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, Sequence[str]],
        node_name: str,
        changed: Callable[[Manifest], None],
        *,
        period: float,
        fetch: Fetch = fetch,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url, self._headers, self._node_name = url, headers, node_name
        self._changed, self._period, self._fetch, self._clock = changed, period, fetch, clock
        self._body: bytes | None = None
        self._failures = 0
        self._stop = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="manifest-url", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while True:
            self.look()
            if self._stop.wait(self._period):
                return

    def look(self) -> None:
        """Ask once."""
        try:
            body = self._fetch(self._url, self._headers)
            if body == self._body:
                return
            if not body:
                raise ConfigError(f"Could not use {self._url}: zero-length data received")
            text = body.decode("utf-8", "replace")
            manifest = manifests.parse(text, self._url, self._node_name, self._clock(), HTTP_SOURCE)
        except (OSError, ConfigError) as error:
            self._failures += 1
            level = logging.WARNING if self._failures <= LOUD_FAILURES else logging.DEBUG
            log.log(level, "Failed to read pods from url=%s error=%s", self._url, error)
            return
        self._failures = 0
        self._body = body
        self._changed(manifest)
