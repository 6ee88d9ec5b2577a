"""A running container that is entered by a program, or by a plan that is executed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from runtime.exec_ahead import compile_exec
from runtime.exec_program import ExecPrograms
from runtime.launch import Process, launch
from runtime.operations import exec_plan
from runtime.plan import Plan
from runtime.spec import parse, parse_process


class Entered:
    """A running container, and execs in it both ways."""

    def __init__(self, box: Any, changes: dict[str, Any]) -> None:
        self.box = box
        self.running = box.start("echo up; exec sleep 60", **changes)
        self.running.read_until("up")
        self.join = self.running.cgroup.join()
        self.programs = ExecPrograms(str(box.folder))

    def plan(self, argv: list[str], **process: Any) -> Plan:
        running = self.running
        return exec_plan(
            parse(running.spec),
            parse_process({**running.spec["process"], "args": argv, **process}),
            init_pid=running.pid,
            cgroup=self.join,
            init_start_time=running.process.start_time_ticks,
        )

    def compile(self, argv: list[str], **process: Any) -> str:
        """The path of the program, "" if there is none."""
        plan = self.plan(argv, **process)
        path = self.programs.place_for(argv) or self.programs.place_for(argv)
        assert path, "it was tried too often"
        root, owner = f"/proc/{self.running.pid}/root", self.running.spec["process"]["user"]["uid"]
        cgroup = self.join.unified
        made = compile_exec(self.box.kernel, plan, path, root=root, cgroup=cgroup, owner=owner)
        assert made == os.path.exists(path)
        return path if made else ""

    def by_program(self, argv: list[str]) -> str | None:
        """What it wrote; None if it has not been started."""
        init, cgroup = self.running.process.pidfd, self.join.unified
        return self._output(
            lambda stdio: self.programs.start(
                self.box.kernel, argv, stdio, init=init, cgroup=cgroup, give=lambda uid: None
            )
        )

    def executed(self, argv: list[str], **process: Any) -> str | None:
        """What it wrote. Raises LaunchError."""
        return self._output(lambda stdio: launch(self.box.kernel, self.plan(argv, **process), stdio))

    def _output(self, start: Callable[[tuple[int, int, int]], Process | None]) -> str | None:
        place = self.box.folder / "output"
        null, output = os.open("/dev/null", os.O_RDONLY), os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            process = start((null, output, output))
        finally:
            os.close(null)
            os.close(output)
        if process is None:
            return None
        found = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
        os.close(process.pidfd)
        assert found is not None and found.si_status == 0, place.read_text()
        return str(place.read_text())
