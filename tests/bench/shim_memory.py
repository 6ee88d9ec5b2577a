"""What a pod costs in memory: the proportional set size (PSS) of its shim and its pause process.

Run as root: `hack/isolate .venv/bin/python -m tests.bench.shim_memory [--quiet] [pods …]` (30 and 100 unless
told). Each pod has one container, which writes a line every second unless --quiet; the container itself is
the user's and not counted. A shim's pages are counted from /proc/<pid>/smaps by kind of mapping: `picture`
is what runtime/pages.py has moved onto its file (all that was writable in the forkserver), `arenas` the
anonymous maps since, `python` the interpreter's file.
PSS divides what is shared by the number of its sharers, so it falls as pods are added; `private` is what a
shim has for itself and never falls. The start times are here because they are what one would pay with.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from runtime.cgroups import detect
from tests.privileged.runtime_service.harness import APPLETS, BUSYBOX, ROOT_CGROUP, Node, shims, wait_for

TALKER = ["sh", "-c", "while :; do echo tick; sleep 1; done"]
SLEEPER = ["sleep", "1000"]
SETTLE_SECONDS = 5.0
Sizes = dict[str, dict[str, int]]


def kind(path: str, inode: str) -> str:
    """Which of the rows a mapping belongs to."""
    if path.startswith("["):
        return path.strip("[]")
    if inode == "0":
        return "arenas"
    if path.startswith("/memfd:"):
        return "picture"
    return "python" if path == "/" or Path(path).name.startswith("python") else "libraries"


def smaps(pid: int) -> Sizes:
    """kB by kind of mapping: Pss, Private_Dirty, and the rest of what the kernel says."""
    sizes: Sizes = defaultdict(lambda: defaultdict(int))
    row = "?"
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            row = kind(words[5] if len(words) > 5 else "", words[4])
        elif words[-1] == "kB":
            sizes[row][words[0][:-1]] += int(words[1])
    return sizes


def start_pods(node: Node, count: int, argv: list[str]) -> list[tuple[float, float, int]]:
    """(ms for the sandbox, ms for its container, pid of pause) of each pod."""
    pods = []
    for _ in range(count):
        begin = time.perf_counter()
        sandbox = node.sandbox()
        middle = time.perf_counter()
        node.run(sandbox, argv)
        end = time.perf_counter()
        pods.append(((middle - begin) * 1000, (end - middle) * 1000, sandbox.pid))
    return pods


def report(pods: list[tuple[float, float, int]], found: set[int]) -> None:
    """One table: PSS and private memory per shim by mapping, and pause."""
    rows: dict[str, list[dict[str, int]]] = defaultdict(list)
    for pid in found:
        for name, sizes in smaps(pid).items():
            rows[name].append(sizes)
    count = len(found)
    pause = sum(one["Pss"] for _, _, pid in pods for one in smaps(pid).values()) / count
    print(f"\n| {count} pods, kB per pod | PSS | private | huge |\n|---|---|---|---|")
    totals = [0.0, 0.0, 0.0]
    for name in sorted(rows):
        fields = ("Pss",), ("Private_Dirty", "Private_Clean"), ("AnonHugePages",)
        values = [sum(sizes[f] for sizes in rows[name] for f in group) / count for group in fields]
        totals = [total + value for total, value in zip(totals, values, strict=True)]
        if values[0] >= 0.5:
            print(f"| {name} | {values[0]:.0f} | {values[1]:.0f} | {values[2]:.0f} |")
    print(f"| shim | {totals[0]:.0f} | {totals[1]:.0f} | {totals[2]:.0f} |")
    print(f"| pause | {pause:.0f} | | |\n| pod | {totals[0] + pause:.0f} | | |")
    for what, values in (("sandbox", [p[0] for p in pods]), ("container", [p[1] for p in pods])):
        values.sort()
        high = values[len(values) * 9 // 10]
        print(f"{what} start: p50 {statistics.median(values):.1f} ms, p90 {high:.1f} ms")


def make_rootfs(folder: Path) -> Path:
    root = folder / "rootfs"
    for name in ("bin", "proc", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    return root


def measure(count: int, argv: list[str]) -> None:
    """Start `count` pods on a node of their own, look at them, and remove everything."""
    folder = Path(tempfile.mkdtemp(prefix="kubelet-py-bench-"))
    driver = detect()
    node = Node(folder, make_rootfs(folder), driver, None)  # type: ignore[arg-type]
    node.service = node.fresh()
    node.service.start()
    try:
        pods = start_pods(node, count, argv)
        time.sleep(SETTLE_SECONDS)
        report(pods, shims(folder))
    finally:
        node.service.close()
        node.fresh().remove_everything()
        wait_for(lambda: not shims(folder))
        if driver.exists(ROOT_CGROUP):
            driver.remove(ROOT_CGROUP, recursive=True)
        shutil.rmtree(folder)


def main() -> int:
    words = sys.argv[1:]
    argv = SLEEPER if "--quiet" in words else TALKER
    for count in [int(word) for word in words if word.isdigit()] or [30, 100]:
        measure(count, argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
