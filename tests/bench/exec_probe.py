"""What one exec probe costs: CPU of the agent, of the shim that starts the command, and of the command.

Run as root: `hack/isolate .venv/bin/python -m tests.bench.exec_probe [count]` (200 unless told). One pod has
one container; the probe is kubelet_py/pods/probes.py's, its command busybox's `true`, one after another. CPU
is the kernel's count of user and system time, so it holds on a busy machine; the time a probe takes does
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

WARM_UP = 10


def spent(shim: psutil.Process) -> tuple[float, float, float]:
    """CPU seconds of this process, of the shim, and of what it has waited for."""
    own, times = os.times(), shim.cpu_times()
    return (
        own.user + own.system,
        times.user + times.system,
        times.children_user + times.children_system,
    )


def measure(node: Node, count: int) -> None:
    sandbox = node.sandbox()
    container = node.run(sandbox, SLEEPER)
    (pid,) = shims(node.folder)
    shim = psutil.Process(pid)

    def probe() -> None:
        outcome = probes.exec_command(node.service, container, ["true"], 10.0)
        assert outcome.success, outcome.text

    for _ in range(WARM_UP):
        probe()
    before, begun = spent(shim), time.perf_counter()
    for _ in range(count):
        probe()
    span = time.perf_counter() - begun
    each = [(after - first) / count * 1e3 for first, after in zip(before, spent(shim), strict=True)]
    print("| per exec probe, ms of CPU | agent's side | shim | commands | all | ms of time |")
    print("|---|---|---|---|---|---|")
    cells = [f"{ms:.2f}" for ms in (*each, sum(each), span / count * 1e3)]
    print(f"| {count} of `true`, one after another | {' | '.join(cells)} |")


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
