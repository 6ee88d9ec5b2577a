"""How fast a container's output becomes a log: our shim, conmon, and a loop in C; one interleaved run.

Run as root: `hack/isolate .venv/bin/python -m tests.bench.log_pump [megabytes [rounds]]`. One program writes
100-byte lines in writes of 64 kB and says on stderr when it began and when its last write was taken:
the same pump must put these words into the log, so they are read from there. conmon is given a runtime that
only starts the program, and its k8s-file driver; the loop is tests/bench/log_pump.c, compiled here. All
logs lie on a tmpfs, and every one of them is checked: each line, once, in order.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.cgroups import detect
from runtime.linux import LinuxKernel
from tests.privileged.runtime_service.harness import ROOT_CGROUP, Node, shims, wait_for

SOURCE = Path(__file__).with_suffix(".c")
LINES_PER_MEGABYTE = 10_000
LONGEST_SECONDS = 120


def build(folder: Path) -> Path:
    """The program of log_pump.c, compiled into `folder`."""
    program = folder / "log_pump"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(SOURCE)], check=True)
    return program


def contents(log: Path) -> Iterator[tuple[bytes, bytes]]:
    """(stream, content) of each line; conmon writes P pieces wherever one of its reads has ended."""
    pieces: dict[bytes, bytes] = {}
    with log.open("rb") as file:
        for line in file:
            _, stream, tag, content = line.rstrip(b"\n").split(b" ", 3)
            content = pieces.pop(stream, b"") + content
            if tag == b"P":
                pieces[stream] = content
            else:
                yield stream, content


def speed(log: Path, megabytes: int) -> float:
    """MB/s of the program's output, from a log that is whole."""
    times: dict[bytes, int] = {}
    number = 0
    for stream, content in contents(log):
        if stream == b"stderr":
            what, moment = content.split()
            times[what] = int(moment)
        else:
            assert int(content[:10]) == number and len(content) == 99, content
            number += 1
    assert number == megabytes * LINES_PER_MEGABYTE, number
    return number * 100 / 1e6 / ((times[b"end"] - times[b"begin"]) / 1e9)


def c_loop(folder: Path, program: Path, megabytes: int) -> Path:
    log = folder / "c.log"
    argv = [str(program), "copy", str(log), str(program), "write", str(megabytes)]
    subprocess.run(argv, check=True, timeout=LONGEST_SECONDS)
    return log


def conmon(folder: Path, program: Path, megabytes: int) -> Path:
    """Its own process, in the foreground (--sync), with a bundle that nobody reads."""
    bundle, log = folder / "bundle", folder / "conmon.log"
    (bundle / "exits").mkdir(parents=True)
    argv = ["conmon", "--api-version", "1", "--sync", "--cid", "bench", "--cuuid", "bench", "--name", "bench"]
    argv += ["--runtime", str(program), "--bundle", str(bundle), "--container-pidfile", str(bundle / "pid")]
    argv += ["--socket-dir-path", str(bundle), "--exit-dir", str(bundle / "exits")]
    argv += ["--log-path", f"k8s-file:{log}", "--no-sync-log"]
    environment = {**os.environ, "LOG_PUMP_MEGABYTES": str(megabytes)}
    subprocess.run(argv, check=True, env=environment, timeout=LONGEST_SECONDS)
    shutil.rmtree(bundle)
    return log


def shim(node: Node, megabytes: int) -> Path:
    """A whole container of the runtime service."""
    sandbox = node.sandbox()
    container = node.run(sandbox, ["/bin/log_pump", "write", str(megabytes)])
    assert node.ended(container, LONGEST_SECONDS).exit_code == 0
    log = Path(node.service.container(container).config.log_path)
    node.service.remove_pod_sandbox(sandbox.id)
    return log


def measure(folder: Path, program: Path, megabytes: int, rounds: int) -> dict[str, list[float]]:
    """MB/s of each, in turn."""
    driver = detect()
    rootfs = folder / "rootfs"
    for name in ("bin", "proc", "dev"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy(program, rootfs / "bin/log_pump")
    node = Node(folder, rootfs, driver, None)  # type: ignore[arg-type]
    node.service = node.fresh()
    node.service.start()
    rows: dict[str, Callable[[], Path]] = {"loop in C": lambda: c_loop(folder, program, megabytes)}
    if shutil.which("conmon"):
        rows["conmon"] = lambda: conmon(folder, program, megabytes)
    rows["our shim"] = lambda: shim(node, megabytes)
    found: dict[str, list[float]] = {name: [] for name in rows}
    try:
        for _ in range(rounds):
            for name, run in rows.items():
                log = run()
                found[name].append(speed(log, megabytes))
                log.unlink()
    finally:
        node.service.close()
        node.fresh().remove_everything()
        wait_for(lambda: not shims(folder))
        if driver.exists(ROOT_CGROUP):
            driver.remove(ROOT_CGROUP, recursive=True)
    return found


def report(found: dict[str, list[float]]) -> None:
    reference = statistics.median(found["loop in C"])
    print("| log pump, MB/s | median | p10 | p90 | of the loop in C |\n|---|---|---|---|---|")
    for name, values in found.items():
        values.sort()
        low, high = values[len(values) // 10], values[len(values) * 9 // 10]
        middle = statistics.median(values)
        print(f"| {name} | {middle:.0f} | {low:.0f} | {high:.0f} | {middle / reference:.2f} |")


def main() -> int:
    megabytes, rounds = [int(word) for word in sys.argv[1:]] + [300, 7][len(sys.argv) - 1 :]
    folder = Path(tempfile.mkdtemp(prefix="kubelet-py-bench-"))
    kernel = LinuxKernel()
    kernel.mount("tmpfs", str(folder), "tmpfs", 0, "")
    try:
        report(measure(folder, build(folder), megabytes, rounds))
    finally:
        kernel.umount(str(folder), 2)
        folder.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
