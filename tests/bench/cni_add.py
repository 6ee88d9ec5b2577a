"""`sudo ./hack/isolate .venv/bin/python -m tests.bench.cni_add`: a pod's wiring in-process and by programs.

Each round does one ADD of every kind, in an order that turns, on a network namespace of its own that was
made before the clock started: ours in this process, our programs and Debian's as a runtime runs them
(loopback, then bridge with host-local as its delegate). Then pods' wiring is deleted in bulk: namespaces
dropped, DEL for each, until the last link and the last reservation are gone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import network_lab  # noqa: E402
from network_lab import Namespace  # noqa: E402

from cni import conflist, skeleton  # noqa: E402
from cni.invoke import Invoker  # noqa: E402
from cni.netlink import Netlink  # noqa: E402
from cni.warm import WarmPlugins  # noqa: E402
from kubelet_py.node.network import SPARE_ADDRESSES  # noqa: E402

DEBIAN = Path("/usr/lib/cni")
GOALS = "goals: in-process p50 ≤ 4 ms; programs ≤ 3 × Debian's; deleting 250 pods ≤ 0.5 s"


def network(folder: Path, name: str, number: int) -> dict[str, Any]:
    return conflist.bridge_network(
        name=name,
        bridge=f"kpybench{number}",
        subnets=[f"10.244.{number}.0/24"],
        cluster_cidrs=["10.244.0.0/16"],
        data_dir=folder / "leases",
    )


class InProcess:
    """Our plugins in this process, by the invoker that the agent uses, its cache on disk included."""

    def __init__(self, folder: Path, number: int = 1) -> None:
        own = folder / "cni-bin"
        skeleton.write_executables(own, sys.executable)
        conflist.write(folder / "net.d/10.conflist", network(folder, "in-process", number))
        self.invoker = Invoker(
            config_dir=folder / "net.d", bin_dirs=[own], cache_dir=folder / "cache", own_bin_dir=own,
            spare_addresses=SPARE_ADDRESSES,
        )  # fmt: skip
        self.invoker.prepare()

    def add(self, name: str, netns: str) -> None:
        self.invoker.add(name, netns)

    def delete(self, name: str, netns: str) -> None:
        self.invoker.delete(name, netns)


class Programs:
    """loopback and bridge + host-local of one folder, run as a runtime runs them."""

    def __init__(self, folder: Path, programs: Path, number: int) -> None:
        self._programs = programs
        body = network(folder, f"programs{number}", number)
        section = {**body["plugins"][0], "cniVersion": "1.0.0", "name": body["name"]}
        lo = {"type": "loopback", "cniVersion": "1.0.0", "name": "lo"}
        self._chain = [("loopback", "lo", json.dumps(lo)), ("bridge", "eth0", json.dumps(section))]

    def _run(self, command: str, name: str, netns: str) -> None:
        for program, ifname, config in self._chain:
            environment = {
                "PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_CONTAINERID": name,
                "CNI_NETNS": netns, "CNI_IFNAME": ifname, "CNI_PATH": str(self._programs),
            }  # fmt: skip
            subprocess.run(
                [str(self._programs / program)], input=config.encode(), env=environment,
                capture_output=True, check=True,
            )  # fmt: skip

    def add(self, name: str, netns: str) -> None:
        self._run("ADD", name, netns)

    def delete(self, name: str, netns: str) -> None:
        self._run("DEL", name, netns)


class Cold(Programs):
    """The same from another folder, beside which no agent listens."""

    def __init__(self, folder: Path, number: int) -> None:
        alone = folder / "cold-bin"
        skeleton.write_executables(alone, sys.executable)
        super().__init__(folder, alone, number)


def timed(action: Callable[[], None]) -> float:
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1000


def adds(kinds: dict[str, InProcess | Programs], rounds: int) -> dict[str, list[float]]:
    """ms of each ADD; the kinds take turns, and turns at being first."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    order = list(kinds)
    for number in range(rounds + 1):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            with Namespace() as pod:
                container = f"pod{number}"
                took = timed(lambda name=name, c=container, p=pod.path: kinds[name].add(c, p))  # type: ignore[misc]
                kinds[name].delete(container, pod.path)
            if number:  # the first warms caches and makes the bridge
                found[name].append(took)
    return found


def bulk_delete(mine: InProcess, count: int) -> tuple[float, float]:
    """Seconds until all DELs were answered, and until the kernel had no pod's link any more."""
    pods = [Namespace() for _ in range(count)]
    for number, pod in enumerate(pods):
        mine.invoker.add(f"bulk{number}", pod.path)
    begin = time.perf_counter()
    for number, pod in enumerate(pods):
        pod.close()
        mine.invoker.delete(f"bulk{number}", None)
    answered = time.perf_counter() - begin
    with Netlink() as host:
        while any(link.kind == "veth" for link in host.links()):
            if time.perf_counter() - begin > 60:
                raise TimeoutError("the kernel still has links of dropped namespaces")
            time.sleep(0.005)
    return answered, time.perf_counter() - begin


def line(name: str, values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=10)
    return f"{name:<34}{statistics.median(values):8.2f} ms [{cuts[0]:.2f}–{cuts[-1]:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--pods", type=int, default=250)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kpy-cni-bench-") as name, network_lab.node():
        folder = Path(name)
        mine = InProcess(folder)
        warm = WarmPlugins(folder / "cni-bin")
        warm.start()
        kinds: dict[str, InProcess | Programs] = {
            "ours, in-process": mine,
            "ours, programs": Cold(folder, 2),
            "ours, programs beside an agent": Programs(folder, folder / "cni-bin", 4),
        }
        if (DEBIAN / "bridge").exists():
            kinds["Debian's programs"] = Programs(folder, DEBIAN, 3)
        found = adds(kinds, options.rounds)
        print(f"ADD of loopback + bridge + host-local, {options.rounds} rounds, p50 [p10–p90]; {GOALS}")
        for kind, values in found.items():
            print(line(kind, values))
        if "Debian's programs" in found:
            peer = statistics.median(found["Debian's programs"])
            for kind in (name for name in found if name.startswith("ours")):
                print(f"{kind} / Debian's: {statistics.median(found[kind]) / peer:.2f}")
        warm.stop()
        answered, gone = bulk_delete(mine, options.pods)
        print(f"deleting {options.pods} pods' wiring: DELs {answered:.3f} s, links gone {gone:.3f} s")


if __name__ == "__main__":
    main()
