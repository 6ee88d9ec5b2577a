"""How long a container takes to start and end: ours warm, ours as a command, crun, runc; one interleaved run.

Run as root: `hack/isolate .venv/bin/python -m tests.bench.runtime_start [rounds]`. Each row is the same
specification (all namespaces, seccomp, masked paths, cgroup limits, busybox true). crun 1.8 refuses hybrid
hosts, so it is run in a mount namespace whose v2 mount point is covered.
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
from pathlib import Path
from typing import Any

from runtime import cgroups
from runtime.launch import launch
from runtime.linux import LinuxKernel
from runtime.oci_documents import example_config
from runtime.operations import Rootfs, container_plan
from runtime.spec import parse

LIMITS = {"memory": {"limit": 64 << 20}, "cpu": {"shares": 100}, "pids": {"limit": 100}}


def configuration() -> dict[str, Any]:
    config = example_config()
    config["process"].update(args=["true"], terminal=False, env=["PATH=/bin"])
    config["ociVersion"] = "1.0.2"
    config["root"]["readonly"] = False
    config["linux"]["resources"].update(LIMITS)
    config["mounts"] = [m for m in config["mounts"] if m["type"] != "cgroup"]
    return config


def ours(folder: Path) -> Callable[[], None]:
    """Overlay, as pods have it, from a running process: what a shim does."""
    kernel, driver, config = LinuxKernel(), cgroups.detect(), configuration()
    null = os.open("/dev/null", os.O_RDWR)
    count = 0

    def run() -> None:
        nonlocal count
        count += 1
        path = f"kubelet-py-bench/{count}"
        cgroup = driver.create(path, config["linux"]["resources"])
        rootfs = Rootfs((str(folder / "rootfs"),), f"{folder}/upper{count}", f"{folder}/work{count}")
        plan = container_plan(parse(config), rootfs=rootfs, join={}, cgroup=cgroup.join())
        process = launch(kernel, plan, (null, null, null))
        os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
        os.close(process.pidfd)
        driver.remove(path)

    return run


def command(argv: list[str], folder: Path, prepare: Callable[[], None] | None = None) -> Callable[[], None]:
    count = 0

    def run() -> None:
        nonlocal count
        count += 1
        subprocess.run(
            [*argv, "run", "--bundle", str(folder), f"kubelet-py-bench-{count}"],
            check=True,
            preexec_fn=prepare,
        )

    return run


def covered_v2() -> tuple[Callable[[], None], subprocess.Popen[bytes]]:
    """A mount namespace in which crun sees v1 only."""
    unified = getattr(cgroups.detect(), "unified", "")
    script = f"mount -t tmpfs none {unified} && echo ready && exec sleep 600"
    holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    kernel = LinuxKernel()
    fd = os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY)
    return lambda: kernel.setns(fd, 0x20000), holder


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    folder = Path(tempfile.mkdtemp(prefix="kubelet-py-bench-"))
    kernel = LinuxKernel()
    kernel.mount("tmpfs", str(folder), "tmpfs", 0, "")
    (folder / "rootfs/bin").mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", folder / "rootfs/bin/busybox")
    (folder / "rootfs/bin/true").symlink_to("busybox")
    (folder / "config.json").write_text(json.dumps(configuration()))
    rows: dict[str, Callable[[], None]] = {
        "ours, warm, overlay": ours(folder),
        "kubelet-py-oci run": command(
            [sys.executable, "-m", "runtime.oci_cli", "--root", f"{folder}/state"], folder
        ),
    }
    holder = None
    if shutil.which("crun"):
        hybrid = cgroups.detect().name == "hybrid"
        prepare, holder = covered_v2() if hybrid else (None, None)
        rows["crun run"] = command(["crun", "--root", f"{folder}/crun"], folder, prepare)
    if shutil.which("runc"):
        rows["runc run"] = command(["runc", "--root", f"{folder}/runc"], folder)
    times: dict[str, list[float]] = {name: [] for name in rows}
    try:
        for _ in range(rounds):
            for name, run in rows.items():
                begin = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - begin) * 1000)
    finally:
        if holder is not None:
            holder.kill()
            holder.wait()
        driver = cgroups.detect()
        if driver.exists("kubelet-py-bench"):
            driver.remove("kubelet-py-bench", recursive=True)
        kernel.umount(str(folder), 2)
        folder.rmdir()
    report(times)
    return 0


def report(times: dict[str, list[float]]) -> None:
    reference = statistics.median(times.get("crun run") or next(iter(times.values())))
    print("| start to end, ms | median | p10 | p90 | ratio to crun |\n|---|---|---|---|---|")
    for name, values in times.items():
        values.sort()
        low, high = values[len(values) // 10], values[len(values) * 9 // 10]
        middle = statistics.median(values)
        print(f"| {name} | {middle:.1f} | {low:.1f} | {high:.1f} | {middle / reference:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
