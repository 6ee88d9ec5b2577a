"""Requests to port 10250, counted as upstream counts them (pkg/kubelet/server/metrics).

A path counts by its first part (the pages of metrics by two), and an unknown one as "other": what anyone may
ask for must not make series without end. A request that takes the connection over lasts as long as its
streams do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kubelet_py.instruments import Histogram, Instrument, Number

OTHER = "other"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
METRICS = ("cadvisor", "probes", "resource", "slis")
LONG_RUNNING = ("exec", "attach", "portForward")
LABELS = ("method", "path", "server_type", "long_running")


class HttpCounts:
    """Thread-safe, as its instruments are."""

    def __init__(self) -> None:
        self._total = Number(
            "kubelet_http_requests_total",
            "Number of the http requests received since the server started",
            *LABELS,
        )
        self._durations = Histogram(
            "kubelet_http_requests_duration_seconds", "Duration in seconds to serve http requests", *LABELS
        )
        self._inflight = Number(
            "kubelet_http_inflight_requests", "Number of the inflight http requests", *LABELS, kind="gauge"
        )
        self.instruments: tuple[Instrument, ...] = (self._total, self._durations, self._inflight)

    @contextmanager
    def request(self, method: str, parts: Sequence[str], *, known: bool) -> Iterator[None]:
        """Around one request to the path with these parts."""
        labels = labels_of(method, parts, known=known)
        self._total.add(*labels)
        self._inflight.add(*labels)
        try:
            with self._durations.timed(*labels):
                yield
        finally:
            self._inflight.add(*labels, by=-1)


def labels_of(method: str, parts: Sequence[str], *, known: bool) -> tuple[str, str, str, str]:
    """The values of LABELS; `known`: there is such a page."""
    head = parts[0] if parts and known else OTHER
    path = "/".join(parts[:2]) if head == "metrics" and set(parts[1:2]) & set(METRICS) else head
    long_running = "true" if head in LONG_RUNNING else "false"
    return method if method in METHODS else OTHER, path, "readwrite", long_running
