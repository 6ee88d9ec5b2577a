"""What a kube-proxy counts, by upstream's names, in Prometheus' text format.

Written by the syncing thread, read by the status server's. Source: pkg/proxy/metrics/metrics.go (names,
help, buckets).
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping

_SYNC = tuple(0.001 * 2**n for n in range(15))
_PROGRAMMING = (
    *(0.25, 0.5),
    *(float(n) for n in range(1, 60)),
    *(float(n) for n in range(60, 110, 5)),
    *(float(n) for n in range(120, 330, 30)),
)

_FAMILIES: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "sync_proxy_rules_duration_seconds": ("histogram", "SyncProxyRules latency in seconds", _SYNC),
    "sync_full_proxy_rules_duration_seconds": (
        "histogram",
        "SyncProxyRules latency in seconds for full resyncs",
        _SYNC,
    ),
    "sync_partial_proxy_rules_duration_seconds": (
        "histogram",
        "SyncProxyRules latency in seconds for partial resyncs",
        _SYNC,
    ),
    "network_programming_duration_seconds": (
        "histogram",
        "In Cluster Network Programming Latency in seconds",
        _PROGRAMMING,
    ),
    "sync_proxy_rules_last_timestamp_seconds": ("gauge", "The last time proxy rules were synced", ()),
    "sync_proxy_rules_last_queued_timestamp_seconds": (
        "gauge",
        "The last time a sync of proxy rules was queued",
        (),
    ),
    "sync_proxy_rules_service_changes_total": ("counter", "Cumulative proxy rules Service changes", ()),
    "sync_proxy_rules_iptables_last": (
        "gauge",
        "Number of iptables rules in the last sync (by table)",
        (),
    ),
    "sync_proxy_rules_iptables_restore_failures_total": (
        "counter",
        "Cumulative proxy iptables restore failures",
        (),
    ),
    "sync_proxy_rules_nftables_sync_failures_total": (
        "counter",
        "Cumulative proxy nftables sync failures",
        (),
    ),
    "sync_proxy_rules_nftables_elements": ("gauge", "Number of elements by map of the nftables backend", ()),
    "sync_proxy_rules_repairs_total": ("counter", "Full resyncs because others had changed our rules", ()),
}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """All series of the proxy; names are given without "kubeproxy_"."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[Labels, float]] = defaultdict(dict)
        self._buckets: dict[str, dict[Labels, list[int]]] = defaultdict(dict)
        for name, (kind, _help, _buckets) in _FAMILIES.items():
            if kind == "counter":
                self._values[name][()] = 0.0

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        with self._lock:
            values, key = self._values[name], tuple(labels.items())
            values[key] = values.get(key, 0.0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._values[name][tuple(labels.items())] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        key = tuple(labels.items())
        bounds = _FAMILIES[name][2]
        with self._lock:
            counts = self._buckets[name].setdefault(key, [0] * (len(bounds) + 1))
            counts[next((n for n, bound in enumerate(bounds) if seconds <= bound), len(bounds))] += 1
            self._values[name][key] = self._values[name].get(key, 0.0) + seconds

    def answer(self) -> tuple[int, bytes, Mapping[str, str]]:
        """The page for the status server."""
        return 200, self.page(), {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}

    def page(self) -> bytes:
        """All of it as text."""
        lines: list[str] = []
        with self._lock:
            for name, (kind, help_text, bounds) in _FAMILIES.items():
                full = f"kubeproxy_{name}"
                lines += [f"# HELP {full} [ALPHA] {help_text}", f"# TYPE {full} {kind}"]
                if kind == "histogram":
                    lines += self._histogram(name, full, bounds)
                else:
                    lines += [f"{full}{_labels(k)} {v:.16g}" for k, v in self._values[name].items()]
        lines += _of_process()
        return ("\n".join(lines) + "\n").encode()

    def _histogram(self, name: str, full: str, bounds: Iterable[float]) -> list[str]:
        lines = []
        for key, counts in self._buckets[name].items():
            total = 0
            for bound, count in zip((*bounds, float("inf")), counts, strict=True):
                total += count
                text = "+Inf" if bound == float("inf") else f"{bound:.10g}"
                lines.append(f"{full}_bucket{_labels((*key, ('le', text)))} {total}")
            lines.append(f"{full}_sum{_labels(key)} {self._values[name][key]:.16g}")
            lines.append(f"{full}_count{_labels(key)} {total}")
        return lines

    def rules(self, title: str, family: str, counts: Mapping[str, int]) -> None:
        """How many rules or elements a backend has now."""
        for part, count in counts.items():
            if title.startswith("nftables"):
                self.set("sync_proxy_rules_nftables_elements", count, ip_family=family, map=part)
            else:
                self.set("sync_proxy_rules_iptables_last", count, ip_family=family, table=part)


def _of_process() -> list[str]:
    """What every Prometheus client tells of its process, and dashboards of kube-proxy show (proc(5))."""
    used = sum(os.times()[:2])
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    with open("/proc/stat") as file:
        booted = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    started = booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    resident = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    found = (
        ("cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", used),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident),
        ("start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", started),
    )
    lines = []
    for name, kind, help_text, value in found:
        full = f"process_{name}"
        lines += [f"# HELP {full} {help_text}", f"# TYPE {full} {kind}", f"{full} {value:.16g}"]
    return lines


def _labels(pairs: Labels) -> str:
    if not pairs:
        return ""
    return "{" + ",".join(f'{name}="{value}"' for name, value in pairs) + "}"
