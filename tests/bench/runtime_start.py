"""How long a container takes to start: ours warm, a C program with the same system calls, ours as a cold
command, crun, runc; and a whole pod. One interleaved run.

Run as root: `hack/isolate .venv/bin/python -m tests.bench.runtime_start [rounds]`. Each container has the
same specification (all namespaces, seccomp, masked paths, cgroup limits, busybox true). "to exec" ends when
the program has replaced the child, "to end" when its cgroups are removed; commands have only the latter.
"prepared" is what pods have: cgroups and the compiled start were made at the creation, and it is compared
with the C program from there on. Eight in flight: the time for all, divided by eight. crun 1.8 refuses hybrid
hosts, so it is run in a mount namespace whose v2 mount point is covered. The cold command is what
hack/quickstart installs.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runtime import cgroups, oci_launcher, prepared
from runtime.ahead import prepare
from runtime.launch import launch
from runtime.linux import LinuxKernel
from runtime.oci_documents import example_config
from runtime.operations import Rootfs, container_plan
from runtime.spec import parse
from tests.bench.c_start import CStart
from tests.bench.pod_start import PodStart

LIMITS = {"memory": {"limit": 64 << 20}, "cpu": {"shares": 100}, "pids": {"limit": 100}}
FLIGHT = 8
ROOT = "kubelet-py-bench"
PREPARED, WITHOUT_CGROUPS = "ours, prepared", "C, cgroups made before"

# Number of the first container and how many → ms to exec (None: unknown) and to end, of all together.
Start = Callable[[int, int], tuple[float | None, float]]


def configuration() -> dict[str, Any]:
    config = example_config()
    config["process"].update(args=["true"], terminal=False, env=["PATH=/bin"])
    config["ociVersion"] = "1.0.2"
    config["root"]["readonly"] = False
    config["linux"]["resources"].update(LIMITS)
    config["mounts"] = [m for m in config["mounts"] if m["type"] != "cgroup"]
    return config


def ours(folder: Path) -> Start:
    """Overlay, as pods have it, from a running process."""
    kernel, driver, config = LinuxKernel(), cgroups.detect(), configuration()
    null = os.open("/dev/null", os.O_RDWR)
    pool = ThreadPoolExecutor(FLIGHT)

    def start(number: int) -> int:
        cgroup = driver.create(f"{ROOT}/{number}", config["linux"]["resources"])
        rootfs = Rootfs((str(folder / "rootfs"),), f"{folder}/upper{number}", f"{folder}/work{number}")
        plan = container_plan(parse(config), rootfs=rootfs, join={}, cgroup=cgroup.join())
        return launch(kernel, plan, (null, null, null)).pidfd

    def run(first: int, count: int) -> tuple[float, float]:
        begin = time.perf_counter()
        numbers = range(first, first + count)
        started = [start(first)] if count == 1 else list(pool.map(start, numbers))
        executed = time.perf_counter()
        for pidfd in started:
            ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            assert ended is not None and ended.si_status == 0
            os.close(pidfd)
        for number in numbers:
            driver.remove(f"{ROOT}/{number}")
        return (executed - begin) * 1000, (time.perf_counter() - begin) * 1000

    return run


def prepared_ahead(folder: Path, spent: list[float]) -> Start:
    """As pods have it: with its cgroups and its program made before, when it is created, which takes the
    milliseconds that are added to `spent`."""
    kernel, driver, config = LinuxKernel(), cgroups.detect(), configuration()
    null = os.open("/dev/null", os.O_RDWR)
    pool = ThreadPoolExecutor(FLIGHT)
    layers = (str(folder / "rootfs"),)

    def create(number: int) -> None:
        begin = time.perf_counter()
        cgroup = driver.create(f"{ROOT}/{number}", config["linux"]["resources"])
        upper, work = folder / f"ahead{number}", folder / f"ahead{number}-work"
        upper.mkdir()
        work.mkdir()
        rootfs = Rootfs(layers, str(upper), str(work))
        plan = container_plan(parse(config), rootfs=rootfs, join={}, cgroup=cgroup.join())
        assert prepare(kernel, plan, layers, f"{folder}/program{number}")
        spent.append((time.perf_counter() - begin) * 1000)

    def start(number: int) -> int:
        process = prepared.start(kernel, f"{folder}/program{number}", (null, null, null))
        assert process is not None
        return process.pidfd

    def run(first: int, count: int) -> tuple[float, float]:
        numbers = range(first, first + count)
        for number in numbers:
            create(number)
        begin = time.perf_counter()
        started = [start(first)] if count == 1 else list(pool.map(start, numbers))
        executed = time.perf_counter()
        for pidfd in started:
            ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            assert ended is not None and ended.si_status == 0
            os.close(pidfd)
        for number in numbers:
            driver.remove(f"{ROOT}/{number}")
        return (executed - begin) * 1000, (time.perf_counter() - begin) * 1000

    return run


class Command:
    """An OCI runtime's command line, driven from a thread that may live in another mount namespace."""

    def __init__(self, argv: list[str], folder: Path, namespace: int = -1) -> None:
        self._argv, self._folder = argv, folder
        self._pool = ThreadPoolExecutor(1, initializer=self._enter, initargs=(namespace,))

    @staticmethod
    def _enter(namespace: int) -> None:
        if namespace >= 0:
            kernel = LinuxKernel()
            kernel.unshare(0x200)  # CLONE_FS: this thread alone
            kernel.setns(namespace, 0x20000)

    def __call__(self, first: int, count: int) -> tuple[None, float]:
        return None, self._pool.submit(self._run, first, count).result()

    def _run(self, first: int, count: int) -> float:
        begin = time.perf_counter()
        running = [
            subprocess.Popen([*self._argv, "run", "--bundle", str(self._folder), f"{ROOT}-{number}"])
            for number in range(first, first + count)
        ]
        codes = [process.wait() for process in running]
        assert not any(codes), f"{self._argv[0]} failed: {codes}"
        return (time.perf_counter() - begin) * 1000


def covered_v2() -> tuple[int, subprocess.Popen[bytes] | None]:
    """A mount namespace in which crun sees v1 only; -1 where that is not needed."""
    driver = cgroups.detect()
    if driver.name != "hybrid":
        return -1, None
    script = f"mount -t tmpfs none {getattr(driver, 'unified', '')} && echo ready && exec sleep 3600"
    holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    return os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY), holder


def contenders(folder: Path, spent: list[float]) -> tuple[dict[str, Start], subprocess.Popen[bytes] | None]:
    launcher = folder / "kubelet-py-oci"
    oci_launcher.write(launcher, folder / "code")
    rows: dict[str, Start] = {PREPARED: prepared_ahead(folder, spent), "ours, not prepared": ours(folder)}
    config = configuration()
    try:
        rows["C, same system calls"] = CStart(folder, config, ROOT)
    except FileNotFoundError as error:
        print(f"Left out the C program: {error}", file=sys.stderr)
    rows["kubelet-py-oci run"] = Command([str(launcher), "--root", f"{folder}/state"], folder)
    holder = None
    if shutil.which("crun"):
        namespace, holder = covered_v2()
        rows["crun run"] = Command(["crun", "--root", f"{folder}/crun"], folder, namespace)
    if shutil.which("runc"):
        rows["runc run"] = Command(["runc", "--root", f"{folder}/runc"], folder)
    return rows, holder


def measure(rows: dict[str, Start], pods: PodStart, rounds: int) -> dict[str, list[float]]:
    """ms by "name, what", in one interleaved run; the first round is not counted."""
    times: dict[str, list[float]] = {}
    number = 0
    for turn in range(rounds + 1):
        for name, start in rows.items():
            for count in (1, FLIGHT):
                number += count
                executed, ended = start(number, count)
                place = f"{name}|{count}"
                if turn and executed is not None:
                    times.setdefault(f"{place}|to exec", []).append(executed / count)
                if turn:
                    times.setdefault(f"{place}|to end", []).append(ended / count)
                if turn and isinstance(start, CStart):
                    took = start.without_cgroups / count
                    times.setdefault(f"{WITHOUT_CGROUPS}|{count}|to exec", []).append(took)
        took = pods.one()
        if turn:
            times.setdefault("a whole pod with a container|1|to exec", []).append(took)
    return times


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    folder = Path(tempfile.mkdtemp(prefix="kubelet-py-bench-"))
    kernel = LinuxKernel()
    kernel.mount("tmpfs", str(folder), "tmpfs", 0, "")
    (folder / "rootfs/bin").mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", folder / "rootfs/bin/busybox")
    for applet in ("true", "sleep"):
        (folder / "rootfs/bin" / applet).symlink_to("busybox")
    (folder / "config.json").write_text(json.dumps(configuration()))
    driver = cgroups.detect()
    driver.create(f"{ROOT}/0", configuration()["linux"]["resources"])  # the parents, in every hierarchy
    holder = None
    try:
        # The forkserver is started before there are threads that crun's and ours need.
        with PodStart(folder, configuration(), f"{ROOT}-pods") as pods:
            spent: list[float] = []
            rows, holder = contenders(folder, spent)
            times = measure(rows, pods, rounds)
            times[f"{PREPARED}: its creation before|1|to program"] = spent[FLIGHT + 1 :]
            for start in rows.values():
                if isinstance(start, CStart):
                    start.close()
    finally:
        if holder is not None:
            holder.kill()
            holder.wait()
        for cgroup in (ROOT, f"{ROOT}-pods"):
            if driver.exists(cgroup):
                driver.remove(cgroup, recursive=True)
        kernel.umount(str(folder), 2)
        folder.rmdir()
    report(times)
    return 0


def report(times: dict[str, list[float]]) -> None:
    def reference(name: str, count: str, what: str) -> float | None:
        values = times.get(f"{name}|{count}|{what}")
        return statistics.median(values) if values else None

    print("| ms per container | in flight | | median | p10 | p90 | ÷ C | ÷ crun run | ÷ runc run |")
    print("|---|---|---|---|---|---|---|---|---|")
    for place, values in times.items():
        name, count, what = place.split("|")
        values.sort()
        low, high = values[len(values) // 10], values[len(values) * 9 // 10]
        middle = statistics.median(values)
        same = WITHOUT_CGROUPS if name == PREPARED and what == "to exec" else "C, same system calls"
        peers = [reference(same, count, what)]
        peers += [reference(peer, count, "to end") for peer in ("crun run", "runc run")]
        ratios = " | ".join(f"{middle / peer:.2f}" if peer else "–" for peer in peers)
        print(f"| {name} | {count} | {what} | {middle:.1f} | {low:.1f} | {high:.1f} | {ratios} |")


if __name__ == "__main__":
    sys.exit(main())
