"""Scheduling, personality and memory policy: read, refused by field, and what the child does with them."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from runtime.errors import SpecError
from runtime.fake import FakeKernel
from runtime.plan import Context
from runtime.scheduling import ChooseCpus, SetMemoryPolicy, SetScheduler, bit_set
from runtime.spec import parse, parse_process
from runtime.spec_extras import MemoryPolicy, Scheduler, Scheduling
from runtime.spec_resources import check

PROCESS = {"args": ["sh"], "cwd": "/"}


def scheduling(**process: Any) -> Scheduling | None:
    return parse_process({**PROCESS, **process}).scheduling


def linux(**changes: Any) -> Any:
    return parse({"ociVersion": "1.2.0", "linux": changes}).linux


def test_without_any_of_it_nothing_is_there() -> None:
    assert scheduling() is None
    assert (linux().personality, linux().memory_policy) == (None, None)


def test_values_become_the_kernels() -> None:
    deadline = {"policy": "SCHED_DEADLINE", "runtime": 10, "deadline": 20, "period": 30,
                "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"]}  # fmt: skip
    found = scheduling(
        scheduler=deadline,
        ioPriority={"class": "IOPRIO_CLASS_IDLE", "priority": 7},
        execCPUAffinity={"initial": "0-2,5", "final": "3"},
    )
    assert found == Scheduling(
        Scheduler("SCHED_DEADLINE", 6, 3, 0, 0, 10, 20, 30), 3 << 13 | 7, (0, 1, 2, 5), (3,)
    )
    policy = {"mode": "MPOL_BIND", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]}
    assert linux(memoryPolicy=policy).memory_policy == MemoryPolicy("MPOL_BIND", 2 | 1 << 15, (0, 1))
    assert linux(personality={"domain": "LINUX32"}).personality == 8


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "0-5000", "1,,x", "1.5"])
def test_a_wrong_set_of_processors_is_named(text: str) -> None:
    with pytest.raises(SpecError, match=r"process\.execCPUAffinity\.final"):
        scheduling(execCPUAffinity={"final": text})


def child(operation: Any) -> Any:
    context = Context((0, 1, 2), False)
    operation.run(FakeKernel(), context)
    return context.steps[0][0]


def test_the_child_is_given_structures_as_the_kernel_has_them() -> None:
    step = child(SetScheduler(Scheduler("SCHED_BATCH", 3, nice=-5)))
    assert step.call == "sched_setattr"
    assert struct.unpack("=IIQiIQQQ", step.arguments[1]) == (48, 3, 0, -5, 0, 0, 0, 0)
    step = child(SetMemoryPolicy(MemoryPolicy("MPOL_BIND", 2, (0, 65))))
    assert step.arguments == (2, struct.pack("=QQ", 1, 2), 129)
    assert child(SetMemoryPolicy(MemoryPolicy("MPOL_LOCAL", 4, ()))).arguments == (4, 0, 0)
    assert child(ChooseCpus((1,))).arguments == (0, 8, struct.pack("=Q", 2))
    assert child(ChooseCpus(())).arguments[2] == b"\xff" * 512
    assert bit_set((64,)) == struct.pack("=QQ", 0, 1)


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"memory": {"limit": "1"}}, "memory.limit"),
        ({"memory": {"disableOOMKiller": 1}}, "memory.disableOOMKiller"),
        ({"cpu": {"cpus": 3}}, "cpu.cpus"),
        ({"cpu": []}, "cpu"),
        ({"cpu": {"shares": -1}}, "cpu.shares"),
        ({"memory": {"swappiness": -1}}, "memory.swappiness"),
        ({"devices": [{"allow": "no"}]}, "devices[0].allow"),
        ({"blockIO": {"throttleReadBpsDevice": [{"major": 8}]}}, "blockIO.throttleReadBpsDevice[0].minor"),
        ({"network": {"priorities": [{"name": "lo"}]}}, "network.priorities[0].priority"),
        ({"rdma": {"mlx4_0": {"hcaHandles": "x"}}}, "rdma.mlx4_0.hcaHandles"),
        ({"unified": {"memory.max": 1}}, "unified[memory.max]"),
    ],
)
def test_a_wrong_resource_is_named(resources: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        check(resources)
    assert caught.value.field == f"linux.resources.{field}"


def test_resources_as_callers_give_them_pass() -> None:
    check({
        "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 3}],
        "memory": {"limit": -1, "swap": 1 << 40, "disableOOMKiller": False},
        "cpu": {"shares": 2, "quota": -1, "cpus": "0-3"}, "pids": {"limit": 5},
        "unified": {"memory.high": "1"}, "hugepageLimits": [{"pageSize": "2MB", "limit": 2**63}],
    })  # fmt: skip
