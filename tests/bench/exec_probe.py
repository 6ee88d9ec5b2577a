"""What one exec probe costs: CPU of the agent, of the shim that starts the command, and of the command.

Run as root: `hack/isolate .venv/bin/python -m tests.bench.exec_probe [count]` (200 unless told). One pod has
one container; the probe is kubelet_py/pods/probes.py's, its command busybox's `true`, one after another.
Then PODS pods are probed once a second each, as on a node: a shim that rests between two events pays for it.
CPU is the kernel's count of user and system time, so it holds on a busy machine; the time a probe takes does
not. `commands` are the processes that the shim has waited for.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil

from kubelet_py.pods import probes
from runtime.cgroups import detect
from tests.bench.shim_memory import SLEEPER, make_rootfs
from tests.privileged.runtime_service.harness import ROOT_CGROUP, Node, shims, wait_for

WARM_UP, PODS, ROUNDS = 10, 20, 10
SETTLE_SECONDS = 4.0  # a new shim does not rest


def spent(shim: psutil.Process) -> tuple[float, float, float]:
    """CPU seconds of this process, of the shim, and of what it has waited for."""
    own, times = os.times(), shim.cpu_times()
    return (
        own.user + own.system,
        times.user + times.system,
        times.children_user + times.children_system,
    )


class Probed:
    """Pods of one container, and their shims."""

    def __init__(self, node: Node, pods: int) -> None:
        self._node = node
        before = shims(node.folder)
        self._containers = [node.run(node.sandbox(), SLEEPER) for _ in range(pods)]
        self._shims = [psutil.Process(pid) for pid in shims(node.folder) - before]
        for _ in range(WARM_UP):
            self.probe()

    def probe(self) -> None:
        """Each of them once."""
        for container in self._containers:
            outcome = probes.exec_command(self._node.service, container, ["true"], 10.0)
            assert outcome.success, outcome.text

    def cost(self, rounds: int, pause: float) -> str:
        """Of one probe, as cells of a table."""
        before, begun = self._spent(), time.perf_counter()
        for _ in range(rounds):
            self.probe()
            time.sleep(pause)
        count = rounds * len(self._containers)
        span = time.perf_counter() - begun - rounds * pause
        each = [(after - first) / count * 1e3 for first, after in zip(before, self._spent(), strict=True)]
        return " | ".join(f"{ms:.2f}" for ms in (*each, sum(each), span / count * 1e3))

    def _spent(self) -> tuple[float, float, float]:
        all_of_them = [spent(shim) for shim in self._shims]
        return all_of_them[0][0], sum(each[1] for each in all_of_them), sum(each[2] for each in all_of_them)


def measure(node: Node, count: int) -> None:
    print("| per exec probe, ms of CPU | agent's side | shim | commands | all | ms of time |")
    print("|---|---|---|---|---|---|")
    print(f"| {count} of `true`, one after another | {Probed(node, 1).cost(count, 0.0)} |")
    many = Probed(node, PODS)
    time.sleep(SETTLE_SECONDS)
    many.cost(2, 1.0)
    print(f"| {ROUNDS} in each of {PODS} pods, once a second | {many.cost(ROUNDS, 1.0)} |")


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    folder = Path(tempfile.mkdtemp(prefix="kubelet-py-bench-"))
    driver = detect()
    node = Node(folder, make_rootfs(folder), driver, None)  # type: ignore[arg-type]
    node.service = node.fresh()
    node.service.start()
    try:
        measure(node, count)
    finally:
        node.service.close()
        node.fresh().remove_everything()
        wait_for(lambda: not shims(folder))
        if driver.exists(ROOT_CGROUP):
            driver.remove(ROOT_CGROUP, recursive=True)
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
