"""Our requests to the API server, counted under client-go's names (component-base/metrics/…/restclient)."""

from __future__ import annotations

from kubelet_py.instruments import Histogram, Instrument, Number

BOUNDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
FAILED = "<error>"  # the code of a request without an answer


class ApiCounts:
    """`host`: the server's name and port. Thread-safe, as its instruments are."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._total = Number(
            "rest_client_requests_total",
            "Number of HTTP requests, partitioned by status code, method, and host.",
            "code",
            "method",
            "host",
        )
        self._durations = Histogram(
            "rest_client_request_duration_seconds",
            "Request latency in seconds. Broken down by verb, and host.",
            "verb",
            "host",
            bounds=BOUNDS,
        )
        self.instruments: tuple[Instrument, ...] = (self._total, self._durations)

    def observe(self, method: str, code: int, seconds: float) -> None:
        """What RestClient's `observe` is for: `code` is 0 where no answer came."""
        self._total.add(str(code) if code else FAILED, method, self._host)
        self._durations.observe(seconds, method, self._host)
