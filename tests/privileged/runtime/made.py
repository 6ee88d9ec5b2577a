"""A container made as the agent makes it, whose start was prepared, or is executed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime import prepared
from runtime.ahead import prepare
from runtime.bare import Bare
from runtime.cgroups import tree_options
from runtime.launch import Process, launch
from runtime.operations import Rootfs, container_plan
from runtime.plan import Plan
from runtime.spec import parse


class Made:
    """Its folders, plan and program. `box` is the fixture; `empty` the path of an empty mount namespace that
    it begins with."""

    def __init__(self, box: Any, name: str, config: dict[str, Any], empty: str = "") -> None:
        self._box = box
        self._bare = Bare(empty, os.uname().release) if empty else None
        self.folder = box.folder / name
        self.fresh()
        self.cgroup = box.driver.create(f"{box.base}/box-{name}", config["linux"]["resources"])
        self.config = config
        self.program = f"{self.folder}/program"

    def fresh(self) -> None:
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        shutil.rmtree(self.folder / "upper", ignore_errors=True)
        for name in ("upper", "work"):
            (self.folder / name).mkdir(parents=True)

    def plan(self) -> Plan:
        rootfs = Rootfs((str(self._box.root),), f"{self.folder}/upper", f"{self.folder}/work")
        return container_plan(
            parse(self.config), rootfs=rootfs, join={}, cgroup=self.cgroup.join(), bare=self._bare,
            tree=tree_options(Path("/proc/self/mountinfo").read_text()),
        )  # fmt: skip

    def prepare(self) -> bool:
        return prepare(self._box.kernel, self.plan(), (str(self._box.root),), self.program)

    def start(self) -> Process | None:
        return self._with_output(lambda stdio: prepared.start(self._box.kernel, self.program, stdio))

    def launch(self) -> Process | None:
        return self._with_output(lambda stdio: launch(self._box.kernel, self.plan(), stdio))

    def begin(self) -> Process | None:
        """As a shim does: by the program, or without it."""
        started = self.start()
        if started is None:
            shutil.rmtree(self.folder / "work")
            started = self.launch()
        return started

    def _with_output(self, work: Callable[[tuple[int, int, int]], Process | None]) -> Process | None:
        self.output = self.folder / "output"
        null = os.open("/dev/null", os.O_RDONLY)
        output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            return work((null, output, output))
        finally:
            os.close(null)
            os.close(output)

    def ended(self, process: Process) -> str:
        """What it wrote."""
        found = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
        os.close(process.pidfd)
        assert found is not None and found.si_status == 0, self.output.read_text()
        return self.output.read_text()
