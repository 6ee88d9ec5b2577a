"""warm_start.c, compiled and told what our own start does with cgroups and seccomp."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime import cgroups
from runtime.cgroups import hybrid, v2
from runtime.seccomp.filter import compiled

SOURCE = Path(__file__).with_name("warm_start.c")


class CStart:
    """Starts containers numbered from `first`; see runtime_start.Start. FileNotFoundError without gcc.
    `without_cgroups`: ms to exec of the last call, from when all had their cgroups."""

    without_cgroups = 0.0

    def __init__(self, folder: Path, config: Mapping[str, Any], root: str) -> None:
        program, script, filter_ = (folder / name for name in ("warm_start", "script", "filter"))
        subprocess.run(["gcc", "-O2", "-o", program, SOURCE, "-lpthread"], check=True)
        script.write_text("".join(f"{line}\n" for line in cgroup_script(root, config["linux"]["resources"])))
        filter_.write_bytes(compiled(config["linux"]["seccomp"])[0])
        scratch = folder / "c"
        scratch.mkdir()
        self._process = subprocess.Popen(
            [program, script, filter_, folder / "rootfs", scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, first: int, count: int) -> tuple[float, float]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{first} {count}\n")
        self._process.stdin.flush()
        made, executed, _, removed = (int(text) / 1000 for text in self._process.stdout.readline().split())
        self.without_cgroups = executed - made
        return executed, removed

    def close(self) -> None:
        self._process.communicate()


def cgroup_script(root: str, resources: Mapping[str, Any]) -> list[str]:
    """What `create`, `join` and `remove` of our driver come to, for a cgroup root/%d."""
    driver = cgroups.detect()
    path = f"{root}/%d"
    if isinstance(driver, hybrid.HybridDriver):
        return _hybrid(driver, path, resources)
    assert isinstance(driver, v2.UnifiedDriver)
    folder = f"{driver.root}/{path}"
    return [
        f"mkdir {folder}",
        *(f"write {folder}/{name} {value}" for name, value in v2.other_writes(resources)),
        f"unified {folder}",
        *(f"late {folder}/{name} {value}" for name, value in v2.cpu_writes(resources)),
        f"rmdir {folder}",
    ]


def _hybrid(driver: hybrid.HybridDriver, path: str, resources: Mapping[str, Any]) -> list[str]:
    writes = hybrid.other_writes(resources)
    used = [c for c in driver.controllers if c in hybrid.ALWAYS or c in {w[0] for w in writes}]
    folders = [f"{driver.unified}/{path}", *(driver.folder(controller, path) for controller in used)]
    late = hybrid.cpu_writes(resources)
    return [
        *(f"mkdir {folder}" for folder in folders),
        *(f"write {driver.folder(c, path)}/{name} {value}" for c, name, value in writes),
        f"unified {folders[0]}",
        *(f"tasks {folder}/tasks" for folder in folders[1:]),
        *(f"late {driver.folder(c, path)}/{name} {value}" for c, name, value in late),
        *(f"rmdir {folder}" for folder in dict.fromkeys(folders)),
    ]
