"""What a start needs, made when its container is created: the plan, its cgroup, and its program.

A plan's operations are run against a recorder, so a program is the same list of operations, compiled
(recorder.py). A plan that cannot be foreseen (terminals, user namespaces, hooks, a program that is not where
it should be) gets none, and is executed when the time comes.
"""

from __future__ import annotations

from runtime import cgroups
from runtime.errors import RuntimeFailure
from runtime.foresight import Unforeseen
from runtime.kernel import Kernel, Region
from runtime.linux import LinuxKernel
from runtime.machine import RESULT
from runtime.operations import Rootfs, container_plan, sandbox_plan
from runtime.plan import Context, Plan, Refused
from runtime.prepared import NAME
from runtime.program import Assembly, Given, Program, draw_address, entry_offset, save
from runtime.recorder import Recorder
from runtime.spec import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.cgroups import CgroupDriver

GIVEN = tuple(Given(Given.FIRST + stream) for stream in range(3))


class Ahead:
    """For the agent. The cgroups are those that shims will look for, whatever driver makes the pods'."""

    def __init__(self) -> None:
        self._tools: tuple[Kernel, CgroupDriver] | None = None

    def _get_tools(self) -> tuple[Kernel, CgroupDriver]:
        if self._tools is None:
            self._tools = LinuxKernel(), cgroups.detect()
        return self._tools

    def pause(self, folder: str, record: Mapping[str, Any]) -> bool:
        """For a sandbox by its record; whether there is a program now."""
        try:
            kernel, driver = self._get_tools()
            cgroup = driver.create(record["cgroup"])
            plan = sandbox_plan(parse(record["oci"]), cgroup=cgroup.join())
            return prepare(kernel, plan, (), f"{folder}/{NAME}")
        except (RuntimeFailure, OSError, ValueError, KeyError):
            return False  # the start comes upon the same, and tells

    def container(
        self,
        folder: str,
        record: Mapping[str, Any],
        oci: Mapping[str, Any],
        join: Mapping[str, str],
        pause: int,
    ) -> bool:
        """For a container by its record and its OCI configuration, in the namespaces `join` of `pause`."""
        config = record["config"]
        if config["tty"] or "runtime" in record:
            return False
        try:
            kernel, driver = self._get_tools()
            spec = parse(oci)
            cgroup = driver.create(record["cgroup"], spec.linux.resources)
            layers = tuple(config["layers"])
            rootfs = Rootfs(layers, f"{folder}/upper", f"{folder}/work")
            plan = container_plan(spec, rootfs=rootfs, join=join, cgroup=cgroup.join())
            owner = spec.process.user.uid if spec.process else 0
            files = cgroup.oom_files()
            watched = files.events, files.control
            path = f"{folder}/{NAME}"
            return prepare(kernel, plan, layers, path, owner=owner, pause=pause, oom=watched)
        except (RuntimeFailure, OSError, ValueError, KeyError):
            return False


def prepare(
    kernel: Kernel,
    plan: Plan,
    layers: tuple[str, ...],
    path: str,
    *,
    owner: int = 0,
    pause: int = 0,
    oom: tuple[str, str] = ("", ""),
) -> bool:
    """Writes the plan's program to `path`, if it can be foreseen. `layers`: what the root is made of, the TOP
    first. Raises OSError when it cannot be written."""
    if plan.apart:
        return False
    recorder = Recorder(kernel, layers)
    context = Context((GIVEN[0], GIVEN[1], GIVEN[2]), False)
    try:
        for context.number, operation in enumerate(plan.operations):
            operation.run(recorder, context)
    except (Unforeseen, OSError, Refused):
        return False
    address = draw_address()
    assembly = Assembly(recorder.entries, recorder.machine.numbers, address)
    image = assembly.image()
    first = recorder.child + 1
    tolerated = tuple(
        (entry_offset(first + index) + 8 * RESULT, f"Could not {plan.operations[number].describe()}")
        for index, (step, number) in enumerate(context.steps)
        if step.tolerate
    )
    page = recorder.machine.page
    program = Program(
        Region(address, -(-len(image) // page) * page, page),
        tuple(assembly.given),
        entry_offset(recorder.child) + 8 * RESULT,
        tolerated,
        plan.late,
        plan.notes,
        owner,
        pause,
        oom,
    )
    save(program, image, path)
    return True
