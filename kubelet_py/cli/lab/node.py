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
GRACE_SECONDS = 60.0
READY_SECONDS = 60.0
BELONGS = {  # what may be said with which verb alone
    "value": ("delay", "loss"), "others": ("partition",), "grace": ("stop",), "wait": ("start",),
    "timeout": ("start",),
}  # fmt: skip
OPTIONS = {"others": "--from", "grace": "--grace", "wait": "--wait", "timeout": "--timeout"}


def check(args: argparse.Namespace) -> None:
    """PURE. Raises LabError for what the verb has no use for, and for what is no number of seconds."""
    for name, verbs in BELONGS.items():
        given = getattr(args, name)
        if given not in (None, False) and args.action not in verbs:
            what = OPTIONS.get(name, repr(given))
            raise LabError(f"{args.action} takes no {what} (it is for {' and '.join(verbs)})")
    for name in ("grace", "timeout"):
        seconds = getattr(args, name)
        if seconds is not None and not 0 <= seconds < float("inf"):
            raise LabError(f"--{name} {seconds:g}: it must be a number of seconds, 0 or more")
    if args.others is not None and not _names(args.others):
        raise LabError("--from: say which machines, with commas (or leave it out, for all)")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _or(seconds: float | None, default: float) -> float:
    return default if seconds is None else seconds


def run(args: argparse.Namespace, paths: LabPaths) -> int:
    check(args)
    require_root("lab node")
    state.require(paths)  # else taking the lock would make a folder for a lab that is not there
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
            grace = f"{_or(self._args.grace, GRACE_SECONDS):g}"
            done = subprocess.run(
                going.lab_command(self._paths, "exec", name, "--", *command, "--timeout", grace),
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
        patience = _or(self._args.timeout, READY_SECONDS)
        if name == CONTROL:
            wait_answering(self._paths, self._machines, patience)
            return f"{said}, and answers"
        wait_ready_anew(self._paths, self._machines, name, since, patience)
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
        others = _names(self._args.others or "")
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
