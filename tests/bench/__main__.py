"""`sudo ./hack/isolate .venv/bin/python -m tests.bench`: the whole node's figures, beside upstream's.

One node below a temporary root, in the network namespace of hack/isolate. Latencies are seen by a watch of
the official Python protocol (our own client, one connection), from the moment before the POST leaves. The
upstream column is quoted from ../shared/BASELINE.md (same kind of machine, not the same run): kubelet,
containerd and etcd together cannot be installed from packages here.

The goals speak of an idle node, so each row begins when the node has `settled`: events come up to three
seconds after what they tell of, and what is left of removed pods is taken away behind their deletion.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "e2e")]

from e2e_node import Node, make_uplink, pod, sh  # noqa: E402

from kubeclient import kubeconfig  # noqa: E402
from kubeclient.errors import ServerUnavailable  # noqa: E402
from kubeclient.resources import PODS  # noqa: E402
from kubeclient.rest import RestClient  # noqa: E402

OBEDIENT = "trap 'exit 0' TERM; sleep 600 & wait"
TIMEOUT = 60.0
DAEMONS = ("supervisor", "controlplane", "agent", "proxy")
LOOK, QUIET_LOOKS = 0.5, 3
QUIET_SHARE = 0.04  # of a core; 30 standing pods take a tenth of it
SETTLES_WITHIN = 20.0


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    measured: str
    goal: str
    upstream: str


class PodWatch:
    """Watches all pods and remembers when each was first seen Running, and when it was gone."""

    def __init__(self, client: RestClient) -> None:
        self._events: queue.Queue[tuple[float, str, dict[str, Any]]] = queue.Queue()
        self._client = client
        self._version = client.list(PODS)["metadata"]["resourceVersion"]
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while True:  # a watch ends after five minutes
                for event in self._client.watch(PODS, resource_version=self._version, bookmarks=False):
                    self._version = event.object["metadata"]["resourceVersion"]
                    self._events.put((time.perf_counter(), event.type, event.object))
        except ServerUnavailable:
            return  # the node was stopped

    def until(
        self,
        names: set[str],
        condition: Callable[[str, dict[str, Any]], bool],
        timeout: float = TIMEOUT,
    ) -> dict[str, float]:
        """Name → moment at which the watch first showed `condition`; raises when not all within `timeout`."""
        seen: dict[str, float] = {}
        deadline = time.perf_counter() + timeout
        while set(seen) != names:
            moment, kind, obj = self._events.get(timeout=max(0.01, deadline - time.perf_counter()))
            name = obj["metadata"]["name"]
            if name in names and name not in seen and condition(kind, obj):
                seen[name] = moment
        return seen


def running(kind: str, obj: dict[str, Any]) -> bool:
    return bool(obj.get("status", {}).get("phase") == "Running")


def ready(kind: str, obj: dict[str, Any]) -> bool:
    return any(
        c["type"] == "Ready" and c["status"] == "True" for c in obj.get("status", {}).get("conditions", [])
    )


def gone(kind: str, obj: dict[str, Any]) -> bool:
    return kind == "DELETED"


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def settle(node: Node) -> None:
    """Wait until the node's processes have had next to nothing to do for a while, or for SETTLES_WITHIN."""
    import psutil

    own = [psutil.Process(node.pid(name)) for name in DAEMONS]
    quiet, deadline = 0, time.perf_counter() + SETTLES_WITHIN
    before = sum(sum(p.cpu_times()[:2]) for p in own)
    while quiet < QUIET_LOOKS and time.perf_counter() < deadline:
        time.sleep(LOOK)
        after = sum(sum(p.cpu_times()[:2]) for p in own)
        quiet = quiet + 1 if after - before <= LOOK * QUIET_SHARE else 0
        before = after
    if quiet < QUIET_LOOKS:
        print(f"The node was still busy after {SETTLES_WITHIN:.0f} s.", file=sys.stderr)


def start_up(node: Node, times: int) -> Row:
    """`up --detach` from nothing (certificates included) until it says Ready."""
    spans = []
    for _ in range(times):
        node.cli("reset", "--yes")
        node.import_busybox()
        begun = time.perf_counter()
        node.cli("up", "--detach")
        spans.append(time.perf_counter() - begun)
    return Row(
        "up to node Ready, certificates included",
        f"{statistics.median(spans):.2f} s (worst of {times}: {max(spans):.2f})",
        "≤ 2 s",
        "15.8 s",
    )


def one_by_one(client: RestClient, watch: PodWatch, count: int) -> list[Row]:
    starts, ends = [], []
    for number in range(count):
        body = pod(f"seq-{number}", OBEDIENT)
        begun = time.perf_counter()
        client.create(PODS, body, "default")
        starts.append(watch.until({f"seq-{number}"}, running)[f"seq-{number}"] - begun)
        # The trap must be set before the signal comes, else the shell, being PID 1, ignores it.
        time.sleep(0.05)
        begun = time.perf_counter()
        client.delete(PODS, f"seq-{number}", "default", grace_period_seconds=1)
        ends.append(watch.until({f"seq-{number}"}, gone)[f"seq-{number}"] - begun)
    p50, p99 = statistics.median(starts) * 1e3, percentile(starts, 0.99) * 1e3
    d50, d99 = statistics.median(ends) * 1e3, percentile(ends, 0.99) * 1e3
    return [
        Row(
            f"POST to Running, one by one ({count}), p50 / p99",
            f"{p50:.0f} / {p99:.0f} ms",
            "≤ 80 / ≤ 250 ms",
            "840–1,090 / 1,400 ms",
        ),
        Row(
            "DELETE with grace 1, obeys SIGTERM, to gone, p50 / p99",
            f"{d50:.0f} / {d99:.0f} ms",
            "≤ 300 ms",
            "6.9–8.1 s (one that ignores SIGTERM)",
        ),
    ]


def at_once(client: RestClient, watch: PodWatch, count: int) -> tuple[Row, set[str]]:
    names = {f"burst-{number}" for number in range(count)}
    begun = time.perf_counter()
    for name in sorted(names):
        client.create(PODS, pod(name, OBEDIENT), "default")
    moments = watch.until(names, running)
    span = max(moments.values()) - begun
    return Row(f"{count} pods at once, all Running", f"{span:.2f} s", "≤ 1.5 s", "2.9 s"), names


def memory_and_idle(node: Node, pods: int) -> list[Row]:
    """PSS and CPU of our processes while `pods` pods stand still for 20 s."""
    import psutil

    own = {name: psutil.Process(node.pid(name)) for name in DAEMONS}
    forkserver = [p for p in own["agent"].children() if "forkserver" in " ".join(p.cmdline())]
    daemons = [*own.values(), *forkserver]
    records = [json.loads(f.read_text()) for f in node.root.glob("run/kubelet-py/sandboxes/*/state.json")]
    shims = [psutil.Process(record["shim"]["pid"]) for record in records]
    pauses = [psutil.Process(record["pause"]["pid"]) for record in records]
    before = sum(sum(p.cpu_times()[:2]) for p in [*daemons, *shims])
    time.sleep(20)
    after = sum(sum(p.cpu_times()[:2]) for p in [*daemons, *shims])
    pss = {name: p.memory_full_info().pss / 1e6 for name, p in own.items()}
    pss["forkserver"] = sum(p.memory_full_info().pss for p in forkserver) / 1e6
    per_pod = sum(p.memory_full_info().pss for p in [*shims, *pauses]) / max(1, len(shims)) / 1e6
    parts = ", ".join(f"{name} {value:.0f}" for name, value in pss.items())
    return [
        Row(
            f"PSS of the node's processes, {pods} pods",
            f"{sum(pss.values()):.0f} MB ({parts})",
            "≤ 150 MB (idle)",
            "825 MB with 100 pods",
        ),
        Row(
            f"PSS per pod, shim and pause, {len(shims)} pods",
            f"{per_pod:.2f} MB",
            "≤ 1 MB",
            "3.0 MB (containerd-shim)",
        ),
        Row(
            f"idle CPU with {pods} pods",
            f"{(after - before) / 20 * 100:.1f} % of a core",
            "≤ 2 %",
            "10.6 % with 100 pods",
        ),
    ]


def table(rows: list[Row]) -> str:
    lines = ["| what | measured | goal | upstream, quoted |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {r.what} | {r.measured} | {r.goal} | {r.upstream} |" for r in rows)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--pods", type=int, default=50, help="pods made one by one (default 50)")
    parser.add_argument("--starts", type=int, default=3, help="how often the node is started (default 3)")
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("this needs root: sudo ./hack/isolate .venv/bin/python -m tests.bench")
    outside = f"kpybench{os.getpid()}"
    make_uplink(outside)
    root = Path(tempfile.mkdtemp(prefix="kpy-", dir="/tmp"))
    node = Node(root, outside)
    try:
        rows = [start_up(node, args.starts)]
        settle(node)
        rows += memory_and_idle(node, 0)[:1]
        client = RestClient(kubeconfig.load(node.kubeconfig), user_agent="bench")
        watch = PodWatch(client)
        rows += one_by_one(client, watch, args.pods)
        settle(node)
        row, names = at_once(client, watch, 30)
        rows.append(row)
        settle(node)
        rows += memory_and_idle(node, len(names))
    finally:
        node.cli("reset", "--yes", check=False)
        sh("ip", "link", "del", "up0")
        sh("ip", "netns", "del", outside)
        shutil.rmtree(root)
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    print(
        f"{date.today()}, revision {revision}, {os.cpu_count()} cores ({cpu}), Linux {platform.release()}\n"
    )
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
