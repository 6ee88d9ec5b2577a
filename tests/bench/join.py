"""`sudo ./hack/isolate .venv/bin/python -m tests.bench.join`: how long a prepared machine takes to be a node.

The machine is one of the lab's: network, mount, PID, UTS, IPC and cgroup namespaces, a disk and an address
of its own, on one segment with the control plane's machine. The package is installed, and nothing of a node
is on it. In it the very command that `token create --print-join-command` prints is typed; what is timed goes
from that process's start until a watch of Nodes shows Ready, with token, request, approval and certificate
between. Afterwards `kubelet-py leave` makes the machine a stranger again. CPU is that of all in the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from kubeclient import kubeconfig
from kubeclient.resources import NODES
from kubeclient.rest import RestClient, Watch
from kubelet_py.cli.lab import state
from kubelet_py.cli.lab.branch import Branch
from kubelet_py.cli.lab.layout import LabPaths
from kubelet_py.cli.lab.machines import Machines
from kubelet_py.cli.readiness import condition
from tests.bench.lab import cluster

NAME = "node2"
NAMESPACES = ("--mount", "--net", "--uts", "--ipc", "--cgroup", "--pid")
PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds from the command's start: until Ready in the watch, until it returned; and the CPU of all."""

    ready: float
    returned: float
    cpu: float


def main() -> int:
    parser = argparse.ArgumentParser(description="join of a prepared machine, from the command to Ready")
    parser.add_argument("--rounds", type=int, default=5, help="joins (default 5)")
    args = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.2f}", flush=True)
    with cluster() as made:
        made.cli("up", "--nodes", "1", "--timeout", str(PATIENCE * 2), timeout=PATIENCE * 3)
        machine = Prepared(LabPaths(made.lab_root))
        found = [machine.round() for _ in range(args.rounds)]
    for name in Round.__dataclass_fields__:
        values = [getattr(each, name) for each in found]
        middle, worst = statistics.median(values), max(values)
        print(f"{name}: p50 {middle:.2f} s, worst {worst:.2f} s {json.dumps([round(v, 2) for v in values])}")
    return 0


class Prepared:
    """A machine beside the lab's node, switched on, without a node on it."""

    def __init__(self, paths: LabPaths) -> None:
        lab = state.load(paths)
        assert lab is not None
        lab = lab.grown(2)
        state.save(paths, lab)  # so that `lab exec` knows it, and `lab down` takes it away
        self._paths = paths
        self._branch = Branch.of_host(paths.cgroup)
        self._machines = Machines(paths, self._branch)
        self._machines.finish([self._machines.boot(lab, lab.machine(NAME), None)])

    def round(self) -> Round:
        """Join, time it, leave. A machine that did not become Ready ends the benchmark with its words."""
        words = self._type("control", "kubelet-py", "token", "create", "--print-join-command").split()
        client = RestClient(kubeconfig.load(self._paths.kubeconfig), user_agent="bench-join")
        version = client.list(NODES)["metadata"]["resourceVersion"]
        watch = client.watch(NODES, resource_version=version, timeout_seconds=int(PATIENCE))
        ready: list[float] = []
        watcher = threading.Thread(target=self._wait_ready, args=(watch, ready))
        watcher.start()
        before, began = self._cpu(), time.monotonic()
        try:
            self._type(NAME, *words)
            returned = time.monotonic()
            watcher.join(PATIENCE)
        finally:
            watch.close()
            watcher.join()
        cpu = self._cpu() - before
        client.close()
        self._type(NAME, "kubelet-py", "leave")
        left = self._type(NAME, "ls", "-A", "/etc/kubelet-py", "/var/lib/kubelet-py", check=False)
        if not ready or left:
            raise SystemExit(f"{NAME} was not seen Ready, or left something: {left}")
        return Round(ready[0] - began, returned - began, cpu)

    @staticmethod
    def _wait_ready(watch: Watch, ready: list[float]) -> None:
        for event in watch:
            node = event.object
            if node["metadata"].get("name") == NAME and condition(node, "Ready") == "True":
                ready.append(time.monotonic())
                return

    def _type(self, name: str, *words: str, check: bool = True) -> str:
        """As `lab exec` does, but for a Python of its own on the way, which would be counted."""
        first = self._machines.identity(name)
        assert first is not None
        command = ["nsenter", "--target", str(first.pid), *NAMESPACES, "--", *words]
        done = subprocess.run(
            command,
            preexec_fn=lambda: self._branch.enter_running(name),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            cwd="/",
            env=os.environ | {"PATH": f"{os.environ['PATH']}:{Path(sys.executable).parent}"},
        )
        if check and done.returncode != 0:
            raise SystemExit(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def _cpu(self) -> float:
        """CPU seconds that the machine has used so far."""
        for mount in self._branch.mounts:
            usage = Path(self._branch.folder(mount, NAME), "cpuacct.usage")
            if usage.exists():
                return int(usage.read_text()) / 1e9
        lines = Path(self._branch.folder(self._branch.unified, NAME), "cpu.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6


if __name__ == "__main__":
    sys.exit(main())
