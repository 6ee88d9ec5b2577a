"""A thousand containers made and removed: is the last one as quick as the first, and is anything left?

Run as root: `hack/isolate .venv/bin/python -m tests.bench.many_containers [containers]`. Three shapes: a pod
for each container, one after another (what the agent's side and the forkserver could leak); all in one pod,
one after another (what a shim could); all alive at once, ten to a pod, then removed (what grows with what is
there). A container is `true`, in the last shape `sleep`.

Everything countable is compared with what was there after a first pod was made and removed: descriptors and
threads of this process and of the forkserver, shims, cgroups, mounts, network namespaces, files; and memory.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from runtime.cgroups import detect
from runtime.service import Sandbox
from tests.bench.shim_memory import make_rootfs
from tests.privileged.runtime_service.harness import ROOT_CGROUP, Node, cgroups_made, shims, wait_for

PER_POD = 10
SHARE = 10  # the first and the last tenth are compared
FLAT = 1.2
PATIENCE = 60.0
REST_SECONDS = 1.0
MEMORY_KB = 1024  # what allocators keep between two equal moments


def forkserver_pid() -> int:
    """Our only child that is Python still and no shim."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    [pid] = [int(child) for child in children if "shims" in Path(f"/proc/{child}/comm").read_text()]
    return pid


def pss(pid: int, what: str = "Pss:") -> int:
    """kB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(what))


def private(pid: int) -> int:
    """kB that nobody shares."""
    return pss(pid, "Private_")


def counts(folder: Path) -> dict[str, int]:
    """Everything of ours that can be counted."""
    found = {
        "shims": len(shims(folder)),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "files": sum(
            len(names) + len(folders)
            for part in ("run", "containers")  # logs are the agent's to remove
            for _, folders, names in os.walk(folder / part)
        ),
        "cgroups": len(cgroups_made()),
        "network namespaces": len(network_namespaces()),
    }
    for name, pid in (("agent", os.getpid()), ("forkserver", forkserver_pid())):
        found[f"{name} descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
        found[f"{name} threads"] = len(os.listdir(f"/proc/{pid}/task"))
    return found


def network_namespaces() -> set[str]:
    """Of our own processes' descendants: other people's pods come and go on this machine."""
    found, todo = set(), [os.getpid()]
    while todo:
        pid = todo.pop()
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
            for task in os.listdir(f"/proc/{pid}/task"):
                todo += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except OSError:
            continue  # it has ended meanwhile
    return found


def note(node: Node, times: list[float], begin: float) -> None:
    """The end of one container; the events that the harness keeps for tests are dropped."""
    times.append(time.perf_counter() - begin)
    node.events.clear()


def one_pod_each(node: Node, count: int) -> list[float]:
    """Seconds of each container, from its pod's creation to its removal."""
    times: list[float] = []
    for _ in range(count):
        begin = time.perf_counter()
        sandbox = node.sandbox()
        node.ended(node.run(sandbox, ["true"]), PATIENCE)
        node.service.remove_pod_sandbox(sandbox.id)
        note(node, times, begin)
    return times


def all_in_one_pod(node: Node, count: int) -> list[float]:
    """Seconds of each container, from its creation to its removal; its shim must not grow either."""
    sandbox = node.sandbox()
    node.service.remove_container(node.run(sandbox, ["true"]))
    [shim] = shims(node.folder)
    before = len(os.listdir(f"/proc/{shim}/fd")), len(os.listdir(f"/proc/{shim}/task"))
    times: list[float] = []
    sizes = []
    for number in range(count):
        begin = time.perf_counter()
        container = node.run(sandbox, ["true"])
        node.ended(container, PATIENCE)
        node.service.remove_container(container)
        note(node, times, begin)
        if (number + 1) % max(1, count // SHARE) == 0:
            time.sleep(REST_SECONDS)
            sizes.append(private(shim))
    after = len(os.listdir(f"/proc/{shim}/fd")), len(os.listdir(f"/proc/{shim}/task"))
    memory = " ".join(map(str, sizes))
    print(f"shim: descriptors and threads {before} → {after}, its own memory at rest {memory} kB", flush=True)
    node.service.remove_pod_sandbox(sandbox.id)
    return times


def all_alive(node: Node, count: int) -> list[float]:
    """Seconds of each container's start; they are removed pod by pod."""
    times: list[float] = []
    pods: list[Sandbox] = []
    for number in range(count):
        begin = time.perf_counter()
        if number % PER_POD == 0:
            pods.append(node.sandbox())
        node.run(pods[-1], ["sleep", "3600"])
        note(node, times, begin)
    begin = time.perf_counter()
    for sandbox in pods:
        node.service.remove_pod_sandbox(sandbox.id)
    print(f"all alive: removed in {(time.perf_counter() - begin) / count * 1000:.1f} ms each")
    return times


def slowing(times: list[float], tenth: int) -> tuple[float, float]:
    """The last containers against the first: ratio of medians, and of the fastest tenths. The latter says
    more on a busy machine, because neighbours only ever add time."""
    first, last = sorted(times[:tenth]), sorted(times[-tenth:])
    return statistics.median(last) / statistics.median(first), last[tenth // 10] / first[tenth // 10]


def leaks(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return [f"{name} {before[name]} → {after[name]}" for name in before if after[name] > before[name]]


def measure(node: Node, count: int) -> int:
    """Prints one row per shape; how many of them leak or slow down."""
    shapes: dict[str, Callable[[Node, int], list[float]]] = {
        "a pod each": one_pod_each, "all in one pod": all_in_one_pod, "all alive at once": all_alive
    }  # fmt: skip
    bad = 0
    for name, shape in shapes.items():
        first = node.sandbox()
        node.ended(node.run(first, ["true"]), PATIENCE)  # its pod's cgroups stay, the agent's to remove
        node.service.remove_pod_sandbox(first.id)
        wait_for(lambda: not shims(node.folder), PATIENCE)
        time.sleep(REST_SECONDS)  # until what is made ahead for the next pod is there
        before, memory = counts(node.folder), {pid: pss(pid) for pid in (os.getpid(), forkserver_pid())}
        times = shape(node, count)
        try:
            wait_for(lambda before=before: not leaks(before, counts(node.folder)), PATIENCE)
        except AssertionError:
            bad += 1
            print(f"{name}: left {', '.join(leaks(before, counts(node.folder)))}")
        grown = {pid: pss(pid) - size for pid, size in memory.items()}
        tenth = max(1, count // SHARE)
        ratio, fastest = slowing(times, tenth)
        bad += min(ratio, fastest) > FLAT or max(grown.values()) > MEMORY_KB
        print(
            f"{name}: {count} containers, median {statistics.median(times) * 1000:.1f} ms each; "
            f"the last {tenth} take {ratio:.2f} × the first (fastest tenths {fastest:.2f}, goal ≤ {FLAT}); "
            f"PSS of agent and forkserver {', '.join(f'{kb:+d} kB' for kb in grown.values())}",
            flush=True,
        )
    return bad


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    folder = Path(tempfile.mkdtemp(prefix="kubelet-py-bench-"))
    (folder / "logs").mkdir()
    driver = detect()
    node = Node(folder, make_rootfs(folder), driver, None)  # type: ignore[arg-type]
    node.service = node.fresh()
    node.service.start()
    try:
        return measure(node, count)
    finally:
        node.service.close()
        node.fresh().remove_everything()
        wait_for(lambda: not shims(folder), PATIENCE)
        if driver.exists(ROOT_CGROUP):
            driver.remove(ROOT_CGROUP, recursive=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
