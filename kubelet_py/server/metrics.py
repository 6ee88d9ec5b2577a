"""The kubelet's own numbers in Prometheus' text format; names are upstream's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any


def exposition(pods: Sequence[Mapping[str, Any]]) -> str:
    """A few series: how many pods and containers run, and what this process uses."""
    statuses = [status for pod in pods for status in pod.get("status", {}).get("containerStatuses") or ()]
    running_pods = sum(1 for pod in pods if pod.get("status", {}).get("phase") == "Running")
    states = {
        state: sum(1 for s in statuses if state in (s.get("state") or {})) for state in ("running", "waiting")
    }
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    usage = os.times()
    lines = [
        "# HELP kubelet_running_pods Number of pods that have a running pod sandbox",
        "# TYPE kubelet_running_pods gauge",
        f"kubelet_running_pods {running_pods}",
        "# HELP kubelet_running_containers Number of containers by state",
        "# TYPE kubelet_running_containers gauge",
        *(
            f'kubelet_running_containers{{container_state="{name}"}} {count}'
            for name, count in states.items()
        ),
        "# TYPE process_resident_memory_bytes gauge",
        f"process_resident_memory_bytes {resident}",
        "# TYPE process_cpu_seconds_total counter",
        f"process_cpu_seconds_total {usage.user + usage.system:.2f}",
    ]
    return "\n".join(lines) + "\n"
