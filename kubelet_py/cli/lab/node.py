"""`kubelet-py lab node NAME VERB`: what happens to machines, on purpose."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from kubelet_py.cli.lab import cables, going, services, state, traffic, warm
from kubelet_py.cli.lab.branch import Branch
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import CONTROL, HOST, LabPaths
from kubelet_py.cli.lab.machines import Machines
from kubelet_py.cli.lab.state import Cable, Lab, Machine
from kubelet_py.cli.lab.up import wait_answering, wait_ready_anew
from kubelet_py.cli.up import require_root
from runtime.linux import LinuxKernel

OFF_SECONDS = 20.0


def run(args: argparse.Namespace, paths: LabPaths) -> int:
    require_root("lab node")
    with state.locked(paths):
        lab = state.require(paths)
        machines = Machines(paths, Branch.of_host(paths.cgroup))
        Verbs(args, paths, lab, machines).do(args.name, args.action)
    return 0


class Verbs:
    """One method per verb; each prints one line about what is now."""

    def __init__(self, args: argparse.Namespace, paths: LabPaths, lab: Lab, machines: Machines) -> None:
        self._args = args
        self._paths = paths
        self._lab = lab
        self._machines = machines

    def do(self, name: str, action: str) -> None:
        machine = self._lab.machine(name)
        verbs: dict[str, Callable[[Machine], str]] = {
            "stop": self._stop, "start": self._start, "kill": self._kill, "pause": self._pause,
            "partition": self._partition, "heal": self._heal, "delay": self._delay, "loss": self._loss,
        }  # fmt: skip
        started = time.monotonic()
        said = verbs[action](machine)
        print(f"{name} {said} ({time.monotonic() - started:.2f} s)", flush=True)

    def _require_on(self, machine: Machine) -> None:
        if self._machines.state(machine.name) == "off":
            name = machine.name
            raise LabError(f"{name} is off (start it: {self._paths.command} node {name} start)")

    def _stop(self, machine: Machine) -> str:
        self._require_on(machine)
        name = machine.name
        if self._machines.state(name) == "paused":
            raise LabError(f"{name} is paused (let it go on: {self._paths.command} node {name} start)")
        if name != CONTROL:
            command = [sys.executable, "-m", "kubelet_py", "node", "shutdown"]
            done = subprocess.run(
                going.lab_command(
                    self._paths, "exec", name, "--", *command, "--timeout", f"{self._args.grace:g}"
                ),
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:  # no reason to keep it on; a real machine's shutdown goes on as well
                print(f"{name}: its pods did not all end in order: {done.stderr.strip()}", file=sys.stderr)
        self._machines.press_power_button(name, OFF_SECONDS)
        return "is off, after an orderly shutdown"

    def _kill(self, machine: Machine) -> str:
        self._require_on(machine)
        self._machines.cut_power(machine.name)
        return "is off: its power was cut"

    def _pause(self, machine: Machine) -> str:
        self._require_on(machine)
        self._machines.freeze(machine.name, True)
        return "is paused: every process stands still"

    def _start(self, machine: Machine) -> str:
        name = machine.name
        before = self._machines.state(name)
        if before == "on":
            raise LabError(f"{name} is on already")
        since = time.time()
        if before == "paused":
            self._machines.freeze(name, False)
        else:
            self._switch_on(machine)
        said = "goes on" if before == "paused" else "is on"
        if not self._args.wait:
            return said
        if name == CONTROL:
            wait_answering(self._paths, self._machines, self._args.timeout)
            return f"{said}, and answers"
        wait_ready_anew(self._paths, self._machines, name, since, self._args.timeout)
        return f"{said}, and Ready"

    def _switch_on(self, machine: Machine) -> None:
        if machine.name == CONTROL:
            service = services.control(self._lab)
        else:
            service = services.node(machine.name, None, warm.import_programs(*warm.PROGRAMS))
        self._machines.finish([self._machines.boot(self._lab, machine, service)])
        if machine.cable.delay:
            cables.apply(self._paths, self._machines, LinuxKernel(), self._lab, machine)

    def _change(self, machine: Machine, cable: Cable) -> None:
        lab = self._lab.with_cable(machine.name, cable)
        cables.apply(self._paths, self._machines, LinuxKernel(), lab, lab.machine(machine.name))
        state.save(self._paths, lab)

    def _partition(self, machine: Machine) -> str:
        others = tuple(part for part in (self._args.others or "").split(",") if part)
        for other in others:
            if other == machine.name:
                raise LabError(f"{other} cannot be cut off from itself")
            if other != HOST:
                self._lab.machine(other)
        apart = others or (traffic.ALL,)
        self._change(machine, replace(machine.cable, apart=apart))
        return f"is cut off from {', '.join(others) or 'all others'}"

    def _heal(self, machine: Machine) -> str:
        self._change(machine, Cable())
        return "has a good cable"

    def _delay(self, machine: Machine) -> str:
        delay = traffic.parse_delay(self._value("50ms"))
        self._change(machine, replace(machine.cable, delay=delay))
        return f"is {delay:g} ms away, each way" if delay else "is delayed no more"

    def _loss(self, machine: Machine) -> str:
        loss = traffic.parse_loss(self._value("5%"))
        self._change(machine, replace(machine.cable, loss=loss))
        return f"loses {loss:g} % of its frames, each way" if loss else "loses no more frames"

    def _value(self, example: str) -> str:
        if self._args.value is None:
            action = self._args.action
            raise LabError(f"say how much: {self._paths.command} node {self._args.name} {action} {example}")
        return str(self._args.value)
