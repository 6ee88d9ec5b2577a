"""What a start needs, made when its container is created: the plan, its cgroup, and its program.

A plan's operations are run against a recorder, so a program is the same list of operations, compiled
(recorder.py). A plan that cannot be foreseen (terminals, user namespaces, hooks, a program that is not where
it should be) gets none, and is executed when the time comes. What is started like another one before is not
compiled again (stencil.py).
"""

from __future__ import annotations

import os

from runtime import bare, cgroups
from runtime.bare import Bare
from runtime.errors import RuntimeFailure
from runtime.foresight import Unforeseen
from runtime.kernel import Kernel, Region
from runtime.linux import LinuxKernel
from runtime.machine import RESULT
from runtime.operations import Rootfs, container_plan, sandbox_plan
from runtime.plan import Context, Plan, Refused
from runtime.prepared import FIRST_JOINED, GATE, NAME
from runtime.program import Assembly, Entry, Given, Program, draw_address, entry_offset, save
from runtime.recorder import Recorder
from runtime.records import Record
from runtime.spec import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from runtime.cgroups import CgroupDriver
    from runtime.empty_root import EmptyNamespace
    from runtime.spec import Spec
    from runtime.stencil import Own, Stencil

GIVEN = tuple(Given(Given.FIRST + stream) for stream in range(3))


class Ahead:
    """For the agent. The cgroups are those that shims will look for, whatever driver makes the pods'."""

    def __init__(self, tools: tuple[Kernel, CgroupDriver] | None = None) -> None:
        """`tools`: where they are not those of this host."""
        from runtime.stencil import Stencils

        self._tools = tools
        self._stencils = Stencils()
        self._empty: EmptyNamespace | None = None

    def open(self) -> None:
        """Make what all pods have in common."""
        from runtime.empty_root import EmptyNamespace

        self._empty = EmptyNamespace.of(self.kernel)

    def close(self) -> None:
        if self._empty is not None:
            self._empty.close()
            self._empty = None

    def _get_tools(self) -> tuple[Kernel, CgroupDriver]:
        if self._tools is None:
            self._tools = LinuxKernel(), cgroups.detect()
        return self._tools

    @property
    def kernel(self) -> Kernel:
        return self._get_tools()[0]

    def pause(
        self, folder: str, record: Mapping[str, Any], joined: Mapping[str, str] | None = None
    ) -> bool:
        """For a sandbox by its record, in the namespaces `joined` (type → path); whether there is a program
        now."""
        from runtime.stencil import Own, names_of, pause_shape

        oci = record["oci"]
        try:
            shape = pause_shape(oci)
            known = self._stencils.find(shape)
            made: Recording | Stencil | None = known
            kernel, driver = self._get_tools()
            join = driver.create_bare(record["cgroup"]).join()
            empty = self._empty.path if self._empty else ""
            places = (join.unified, *join.tasks, *(joined or {}).values(), *([empty] if empty else []))
            hostname = oci.get("hostname", "")
            own = Own(names_of(record["id"]), record["cgroup"], places, hostname=hostname)
            if known is None or not known.fits(own):
                plan = sandbox_plan(parse(oci), cgroup=join, join=joined, empty=empty)
                made = self._compiled(shape, kernel, plan, (), own)
            return made is not None and made.write(f"{folder}/{NAME}", own, join.late)
        except (RuntimeFailure, OSError, ValueError, KeyError):
            return False  # the start comes upon the same, and tells

    def container(
        self,
        folder: str,
        record: Mapping[str, Any],
        oci: Mapping[str, Any],
        join: Mapping[str, str],
        uid: str = "",
        *,
        held: bool = False,
    ) -> bool:
        """For a container by its record and its OCI configuration, in the namespaces of its pod's pause:
        `join` is type → path as namespaces_of has them without a pid. `uid` is its pod's. `held`: to wait at
        a gate."""
        from runtime.stencil import Own, container_shape, names_of, own_sources

        config = record["config"]
        if config["tty"] or "runtime" in record:
            return False
        layers, names = tuple(config["layers"]), names_of(record["id"], uid)
        paths = (*join.values(), bare.PATH)
        try:
            kernel, driver = self._get_tools()
            shape = container_shape(oci, layers, tuple(join), names, held=held)
            known = self._stencils.find(shape)
            spec = None if known else parse(oci)
            resources = known.resources if known else spec.linux.resources if spec else {}
            cgroup = driver.create(record["cgroup"], resources)
            files, entered, process = cgroup.oom_files(), cgroup.join(), oci["process"]
            places = (entered.unified, *entered.tasks, *own_sources(oci, names))
            own = Own(names, record["cgroup"], places, (*process["args"],), (*(process.get("env") or ()),))
            made: Recording | Stencil | None = known
            if known is None or not known.fits(own):
                spec = spec or parse(oci)
                rootfs = Rootfs(layers, f"{folder}/upper", f"{folder}/work")
                empty = Bare(bare.PATH, os.uname().release)
                gate = GATE if held else -1
                plan = container_plan(spec, rootfs=rootfs, join=join, cgroup=entered, bare=empty, gate=gate)
                made = self._compiled(shape, kernel, plan, layers, own, spec, given_for(paths))
            if made is None:
                return False
            joined = tuple(path.rpartition("/")[2] for path in paths)
            return made.write(
                f"{folder}/{NAME}", own, entered.late, joined, held, (files.events, files.control)
            )
        except (RuntimeFailure, OSError, ValueError, KeyError):
            return False

    def _compiled(
        self,
        shape: bytes | None,
        kernel: Kernel,
        plan: Plan,
        layers: tuple[str, ...],
        own: Own,
        spec: Spec | None = None,
        given: Mapping[str, Given] | None = None,
    ) -> Recording | Stencil | None:
        """Kept for the next of this shape, if it can be told from its texts."""
        from runtime.stencil import Stencil, can_be_told

        owner = spec.process.user.uid if spec and spec.process else 0
        recording = record_plan(kernel, plan, layers, owner, given)
        if recording is None or shape is None or not own.names or not can_be_told(shape, own):
            return recording
        try:
            stencil = Stencil(recording, own, spec.linux.resources if spec else {})
        except ValueError:
            return recording
        self._stencils.keep(shape, stencil)
        return stencil


class Recording(Record):
    """A plan written down. `numbers` of system calls; the others as Program has them."""

    entries: list[Entry]
    numbers: Mapping[str, int]
    page: int
    child: int
    tolerated: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]
    owner: int

    def write(
        self,
        path: str,
        own: object,
        late: tuple[tuple[str, str], ...],
        joined: tuple[str, ...] = (),
        held: bool = False,
        oom: tuple[str, str] = ("", ""),
    ) -> bool:
        """The program as a file, for a place in memory of its own. `own` is in it already. Raises OSError."""
        address = draw_address()
        assembly = Assembly(self.entries, self.numbers, address)
        image = assembly.image()
        place = Region(address, -(-len(image) // self.page) * self.page, self.page)
        given = tuple(assembly.given)
        values = self.child, self.tolerated, late, self.notes, self.owner, joined, held, oom
        save(Program(place, given, *values), image, path)
        return True


def given_for(paths: Sequence[str]) -> dict[str, Given]:
    """What stands for paths of pause's namespaces."""
    return {path: Given(Given.FIRST + FIRST_JOINED + number) for number, path in enumerate(paths)}


def record_plan(
    kernel: Kernel,
    plan: Plan,
    layers: tuple[str, ...],
    owner: int = 0,
    given: Mapping[str, Given] | None = None,
) -> Recording | None:
    """The plan's operations, asked ahead of time; None when they cannot be foreseen. `given`: the
    recorder's."""
    return record(Recorder(kernel, layers, given=given), plan, owner)


def record(recorder: Recorder, plan: Plan, owner: int) -> Recording | None:
    """What the recorder, a new one, is asked by the plan; None when it cannot be foreseen."""
    if plan.apart:
        return None
    context = Context((GIVEN[0], GIVEN[1], GIVEN[2]), False)
    try:
        for context.number, operation in enumerate(plan.operations):
            operation.run(recorder, context)
    except (Unforeseen, OSError, Refused):
        return None
    first = recorder.child + 1
    tolerated = tuple(
        (entry_offset(first + index) + 8 * RESULT, f"Could not {plan.operations[number].describe()}")
        for index, (step, number) in enumerate(context.steps)
        if step.tolerate
    )
    machine = recorder.machine
    child = entry_offset(recorder.child) + 8 * RESULT
    return Recording(recorder.entries, machine.numbers, machine.page, child, tolerated, plan.notes, owner)


def prepare(
    kernel: Kernel,
    plan: Plan,
    layers: tuple[str, ...],
    path: str,
    *,
    owner: int = 0,
    joined: tuple[str, ...] = (),
    held: bool = False,
    oom: tuple[str, str] = ("", ""),
) -> bool:
    """Writes the plan's program to `path`, if it can be foreseen. `layers`: what the root is made of, the TOP
    first. Raises OSError when it cannot be written."""
    recording = record_plan(kernel, plan, layers, owner)
    return recording is not None and recording.write(path, None, plan.late, joined, held, oom)
