"""`sudo ./hack/isolate .venv/bin/python -m tests.bench.lab [ROW…]`: labs of several sizes.

    up     labs of 3 and of 10 nodes: from nothing to all Ready, memory (PSS) per node without pods, down
    many   a lab of 50 nodes with 10 pods each: how long until all run, memory, CPU at rest

Seconds count only on a machine that has nothing else to do, so CPU seconds (cpuacct, or v2 cpu.stat) and the
load average at the start stand beside them: all of a lab's processes are in its cgroups.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "e2e")]

from e2e_node import pod  # noqa: E402
from lab_cluster import LabCluster  # noqa: E402

from kubelet_py.cli.lab.layout import LabPaths  # noqa: E402

SIZES = (3, 10)
MANY_NODES, PODS_EACH = 50, 10
SETTLE_SECONDS = 10.0
IDLE_SECONDS = 60.0
LONGEST = 900.0


def main() -> int:
    parser = argparse.ArgumentParser(description="labs of several sizes")
    parser.add_argument("rows", nargs="*", default=["up"], help="up, many (default up)")
    parser.add_argument("--rounds", type=int, default=3, help="labs of each size (default 3)")
    parser.add_argument("--nodes", type=int, default=MANY_NODES, help="nodes of `many` (default 50)")
    args = parser.parse_args()
    for row in args.rows:
        if row == "up":
            for size in SIZES:
                show(f"{size} nodes", [up_and_down(size) for _ in range(args.rounds)])
        elif row == "many":
            print(json.dumps(many(args.nodes), indent=1), flush=True)
        else:
            parser.error(f"no row {row}")
    return 0


def show(title: str, found: list[dict[str, float]]) -> None:
    middle = {name: round(statistics.median(each[name] for each in found), 2) for name in found[0]}
    best = round(min(each["up_seconds"] for each in found), 2)
    print(f"{title}: median of {len(found)} {json.dumps(middle)}; fastest up {best} s", flush=True)


@contextmanager
def cluster() -> Iterator[LabCluster]:
    root = Path(tempfile.mkdtemp(prefix="kpy-bench-", dir="/tmp"))
    made = LabCluster(root)
    try:
        yield made
    finally:
        made.cli("down")
        shutil.rmtree(root)


def up_and_down(size: int) -> dict[str, float]:
    load = os.getloadavg()[0]
    with cluster() as made:
        began = time.monotonic()
        made.cli("up", "--nodes", str(size), "--timeout", str(LONGEST), timeout=LONGEST)
        up = time.monotonic() - began
        cpu = cpu_seconds(made)
        time.sleep(SETTLE_SECONDS)
        memory = node_memory(made)
        began = time.monotonic()
        made.cli("down")
        down = time.monotonic() - began
    return {
        "up_seconds": up,
        "cpu_seconds": cpu,
        "node_mb": statistics.mean(memory),
        "node_mb_most": max(memory),
        "down_seconds": down,
        "load_before": load,
    }


def many(nodes: int) -> dict[str, Any]:
    with cluster() as made:
        began = time.monotonic()
        made.cli("up", "--nodes", str(nodes), "--timeout", str(LONGEST), timeout=LONGEST)
        up = time.monotonic() - began
        made.give_busybox()
        empty = node_memory(made)
        began = time.monotonic()
        names = [f"node{i}" for i in range(1, nodes + 1)]
        made.apply(*(pod(f"p{i}-{n}", nodeName=n) for n in names for i in range(PODS_EACH)))
        while (running := phases(made).get("Running", 0)) < nodes * PODS_EACH:
            if time.monotonic() - began > LONGEST:
                raise SystemExit(f"only {running} of {nodes * PODS_EACH} pods run after {LONGEST:g} s")
            time.sleep(1.0)
        pods = time.monotonic() - began
        time.sleep(SETTLE_SECONDS)
        full = node_memory(made)
        before = cpu_seconds(made)
        time.sleep(IDLE_SECONDS)
        idle = (cpu_seconds(made) - before) / IDLE_SECONDS
        control = made.machines()["control"]["memory"] / 1e6
        began = time.monotonic()
        made.cli("down", timeout=LONGEST)
        down = time.monotonic() - began
    return {
        "nodes": nodes, "pods": nodes * PODS_EACH, "up_seconds": round(up, 1), "pods_seconds": round(pods, 1),
        "node_mb_empty": round(statistics.mean(empty), 1), "node_mb_full": round(statistics.mean(full), 1),
        "control_mb": round(control, 1), "idle_cores": round(idle, 2), "down_seconds": round(down, 2),
    }  # fmt: skip


def phases(made: LabCluster) -> dict[str, int]:
    found: dict[str, int] = {}
    for phase in made.kubectl("get", "pods", "-o", "jsonpath={.items[*].status.phase}").out.split():
        found[phase] = found.get(phase, 0) + 1
    return found


def node_memory(made: LabCluster) -> list[float]:
    """MB of each node, its pods' containers not counted."""
    return [m["memory"] / 1e6 for name, m in made.machines().items() if name != "control"]


def cpu_seconds(made: LabCluster) -> float:
    """What everything in the lab has used so far."""
    name = LabPaths(made.lab_root).cgroup
    v1 = Path("/sys/fs/cgroup/cpuacct", name, "cpuacct.usage")
    if v1.exists():
        return int(v1.read_text()) / 1e9
    fields = dict(line.split() for line in Path("/sys/fs/cgroup", name, "cpu.stat").read_text().splitlines())
    return int(fields["usage_usec"]) / 1e6


if __name__ == "__main__":
    sys.exit(main())
