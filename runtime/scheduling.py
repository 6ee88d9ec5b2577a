"""How the kernel schedules a container's process: policy, I/O priority, personality, memory policy, CPUs.

All of them are per thread and inherited by clone and execve (sched(7), ioprio_set(2), personality(2),
set_mempolicy(2)), so the child sets them for itself, before it gives up the capabilities they need. Loaded
only for configurations that ask for one of them.
"""

from __future__ import annotations

import struct

from runtime.kernel import Kernel, Step
from runtime.plan import Context, Operation
from runtime.spec_extras import LARGEST_INDEX, MemoryPolicy, Scheduler, Scheduling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec import ProcessSpec, Spec

IOPRIO_WHO_PROCESS = 1
EVERY_CPU = tuple(range(LARGEST_INDEX + 1))


class SetScheduler(Operation):
    """The scheduling policy (sched_setattr). Real-time policies need CAP_SYS_NICE, of the host."""

    scheduler: Scheduler

    def describe(self) -> str:
        return f"set the scheduling policy {self.scheduler.name}"

    def run(self, kernel: Kernel, context: Context) -> None:
        s = self.scheduler
        values = struct.pack(
            "=IIQiIQQQ", 48, s.policy, s.flags, s.nice, s.priority, s.runtime, s.deadline, s.period
        )
        context.child(Step("sched_setattr", (0, values, 0)))


class SetIoPriority(Operation):
    """The priority of disk accesses."""

    value: int

    def describe(self) -> str:
        return f"set the I/O priority to class {self.value >> 13}, level {self.value & 7}"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(Step("ioprio_set", (IOPRIO_WHO_PROCESS, 0, self.value)))


class SetPersonality(Operation):
    """The execution domain: LINUX32 has uname name a 32-bit processor."""

    value: int

    def describe(self) -> str:
        return f"set the personality {self.value:#x}"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(Step("personality", (self.value,)))


class SetMemoryPolicy(Operation):
    """Which memory nodes pages come from. A kernel without NUMA answers ENOSYS."""

    policy: MemoryPolicy

    def describe(self) -> str:
        return f"set the memory policy {self.policy.name}"

    def run(self, kernel: Kernel, context: Context) -> None:
        nodes = bit_set(self.policy.nodes)
        # The kernel counts one bit less than it is told (set_mempolicy(2), "BUGS").
        bits = len(nodes) * 8 + 1
        # Without nodes there is no set either: it would be one of all bits that the kernel can count.
        context.child(Step("set_mempolicy", (self.policy.mode, *((nodes, bits) if nodes else (0, 0)))))


class ChooseStartingCpus(Operation):
    """execCPUAffinity's `initial`: where the thread that sets up runs, and its child until it has entered the
    cgroup."""

    cpus: tuple[int, ...]

    def describe(self) -> str:
        return f"run on processors {named(self.cpus)} at first"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.choose_cpus(self.cpus)


class ChooseCpus(Operation):
    """execCPUAffinity's `final`; without one all that the cgroup allows, which the kernel cuts out of the set
    by itself."""

    cpus: tuple[int, ...]

    def describe(self) -> str:
        return f"run on processors {named(self.cpus)}"

    def run(self, kernel: Kernel, context: Context) -> None:
        bits = bit_set(self.cpus or EVERY_CPU)
        context.child(Step("sched_setaffinity", (0, len(bits), bits)))


def operations(spec: Spec, process: ProcessSpec) -> list[Operation]:
    """What a process's configuration asks for, in an order in which each is allowed."""
    scheduling, linux = process.scheduling or Scheduling(), spec.linux
    return [
        *([SetScheduler(scheduling.scheduler)] if scheduling.scheduler else []),
        *([] if scheduling.io_priority is None else [SetIoPriority(scheduling.io_priority)]),
        *([] if linux.personality is None else [SetPersonality(linux.personality)]),
        *([SetMemoryPolicy(linux.memory_policy)] if linux.memory_policy else []),
    ]


def bit_set(indexes: tuple[int, ...]) -> bytes:
    """As the kernel wants sets of processors and nodes: whole 64-bit words, least significant bit first."""
    if not indexes:
        return b""
    words = max(indexes) // 64 + 1
    return sum(1 << index for index in indexes).to_bytes(words * 8, "little")


def named(cpus: tuple[int, ...]) -> str:
    """Processors for people."""
    return ",".join(str(cpu) for cpu in cpus) or "of the cgroup"
