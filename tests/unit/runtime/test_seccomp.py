"""The compiled program says the same as the profile read naively, for every number and many arguments."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from runtime.capabilities import DEFAULT, NAMES
from runtime.errors import SeccompError
from runtime.seccomp import filter as seccomp
from runtime.seccomp.i386 import THROUGH
from runtime.seccomp.profile import BY_CAPABILITY, allows, runtime_default
from runtime.seccomp.syscalls import I386, numbers

EPERM, ENOSYS, ALLOW, KILL = 0x50001, 0x50026, 0x7FFF0000, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, I386: 0x40000003}


def run(program: bytes, arch: int, number: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
    """Classic BPF, as far as filters use it."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at, accumulator = 0, 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x05:
            at += value
        elif operation == 0x06:
            return int(value)
        else:
            compared = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value}
            at += yes if compared[operation] else no


def naive(profile: dict[str, Any], name: str, arguments: tuple[int, ...]) -> int:
    """The profile, rule by rule; a rule without arguments wins."""

    def holds(condition: dict[str, Any]) -> bool:
        argument, value = arguments[condition["index"]], condition["value"]
        return {
            "NE": argument != value,
            "LT": argument < value,
            "LE": argument <= value,
            "EQ": argument == value,
            "GE": argument >= value,
            "GT": argument > value,
            "MASKED_EQ": argument & value == condition.get("valueTwo", 0),
        }[condition["op"].removeprefix("SCMP_CMP_")]

    rules = [rule for rule in profile["syscalls"] if name in rule["names"]]
    for rule in sorted(rules, key=lambda rule: bool(rule.get("args"))):
        if all(holds(condition) for condition in rule.get("args", ())):
            extra = rule.get("errnoRet", 1) if rule["action"] == "SCMP_ACT_ERRNO" else 0
            return seccomp.ACTIONS[rule["action"]] | extra
    return EPERM


def rule(action: str, *names: str) -> dict[str, Any]:
    return {"names": list(names), "action": action}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("capabilities", [DEFAULT, NAMES, ()])
def test_the_default_profile_is_compiled_faithfully(machine: str, capabilities: tuple[str, ...]) -> None:
    profile = runtime_default(capabilities, machine)
    program, _ = seccomp.compiled(profile, machine)
    chance = random.Random(7)
    interesting = [0, 1, 8, 40, 0x20000, 0x20008, 0xFFFFFFFF, 0x10000000, 0x7E020000, 17, 2**64 - 1, 1 << 32]
    for name, number in numbers(machine).items():
        for _ in range(30 if name in ("socket", "clone", "personality") else 1):
            arguments = tuple(chance.choice(interesting) for _ in range(6))
            assert run(program, ARCH[machine], number, arguments) == naive(profile, name, arguments), name


def test_the_default_program_is_small() -> None:
    """The kernel checks each instruction at each load; libseccomp's program has 1,125."""
    program, _ = seccomp.compiled(runtime_default(DEFAULT, "x86_64"), "x86_64")
    assert len(program) // 8 < 128


@pytest.mark.parametrize("machine", ["x86_64", I386])
def test_jumps_reach_however_long_the_program_is(machine: str) -> None:
    """A verdict of its own for each call, with and without a condition; conditional jumps reach 255."""
    table = numbers(machine)
    condition = {"index": 5, "value": 1, "op": "SCMP_CMP_EQ"}
    rules: list[dict[str, Any]] = [
        {
            "names": [name],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": place % 300,
            "args": [condition] if place % 7 == 0 else [],
        }
        for place, name in enumerate(table)
        if not THROUGH.keys() & {name} and name not in ("socketcall", "ipc")
    ]
    both = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": both, "syscalls": rules}
    program, _ = seccomp.compiled(profile, "x86_64")
    assert len(program) // 8 > 3 * 255
    for last in (0, 1):
        for name, number in table.items():
            arguments = (0, 0, 0, 0, 0, last)
            assert run(program, ARCH[machine], number, arguments) == naive(profile, name, arguments), name


@pytest.mark.parametrize(
    "name",
    [
        "unshare",
        "mount",
        "bpf",
        "keyctl",
        "setns",
        "kexec_load",
        "open_by_handle_at",
        "io_uring_setup",
        "add_key",
        "request_key",
        "userfaultfd",
        "pivot_root",
        "swapon",
        "reboot",
        "init_module",
        "perf_event_open",
        "chroot",
    ],
)
def test_dangerous_calls_answer_eperm(name: str) -> None:
    """S04."""
    program, _ = seccomp.compiled(runtime_default(DEFAULT, "x86_64"), "x86_64")
    assert run(program, ARCH["x86_64"], numbers("x86_64")[name]) == EPERM


def test_new_namespaces_vsock_and_clone3_are_caught() -> None:
    """S04: any CLONE_NEW* in clone, clone3 as a whole, AF_VSOCK."""
    program, _ = seccomp.compiled(runtime_default(DEFAULT, "x86_64"), "x86_64")
    table = numbers("x86_64")
    for bit in range(64):
        answer = run(program, ARCH["x86_64"], table["clone"], (1 << bit, 0, 0, 0, 0, 0))
        assert answer == (EPERM if 0x7E020000 >> bit & 1 else ALLOW), bit
    assert run(program, ARCH["x86_64"], table["clone3"]) == ENOSYS
    assert run(program, ARCH["x86_64"], table["socket"], (40, 0, 0, 0, 0, 0)) == EPERM
    assert run(program, ARCH["x86_64"], table["socket"], (2, 0, 0, 0, 0, 0)) == ALLOW


def test_other_entries_into_the_kernel_are_killed() -> None:
    """S04: i386 by its architecture value, x32 by its bit."""
    program, _ = seccomp.compiled(runtime_default(DEFAULT, "x86_64"), "x86_64")
    assert run(program, 0x40000003, 1) == KILL
    assert run(program, ARCH["x86_64"], 0x40000001) == KILL


BOTH = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]


@pytest.mark.parametrize("default", [True, False])
def test_a_profile_for_32_bit_programs_is_compiled_faithfully(default: bool) -> None:
    """i386's numbers are others, its arguments of 32 bits; the rest of the program is as before."""
    profile = runtime_default(DEFAULT, "x86_64") if default else {"syscalls": [], "defaultAction": ""}
    condition = {"index": 1, "value": 2**32 + 5, "op": "SCMP_CMP_LE"}
    rule = {"names": ["mmap2", "read"], "action": "SCMP_ACT_ALLOW", "args": [condition]}
    profile = {**profile, "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [*profile["syscalls"], rule]}
    program, _ = seccomp.compiled({**profile, "architectures": BOTH}, "x86_64")
    narrow = {
        **profile,
        "syscalls": [*profile["syscalls"][:-1], {**rule, "args": [{**condition, "value": 5}]}],
    }
    behind = ("socketcall", "ipc")
    for name, number in numbers(I386).items():
        for second in (0, 5, 6, 2**32 - 1):
            arguments = (0x10000000, second, 0, 0, 0, 0)
            if name not in behind:
                assert run(program, 0x40000003, number, arguments) == naive(narrow, name, arguments), name
    for name, number in numbers("x86_64").items():
        assert run(program, ARCH["x86_64"], number) == naive(profile, name, (0,) * 6), name
    assert run(program, ARCH["aarch64"], 0) == KILL


def test_32_bit_programs_are_killed_unless_the_profile_names_them_and_the_machines_own_are_not() -> None:
    """As libseccomp has it: a profile made for another machine does not kill all."""
    profile = {"defaultAction": "SCMP_ACT_ALLOW"}
    for wanted, i386, native in (
        (["SCMP_ARCH_X86_64"], KILL, ALLOW),
        (["SCMP_ARCH_X86"], ALLOW, ALLOW),
        (["SCMP_ARCH_AARCH64"], KILL, ALLOW),
        (BOTH, ALLOW, ALLOW),
        ([], KILL, ALLOW),
    ):
        program, _ = seccomp.compiled({**profile, "architectures": wanted}, "x86_64")
        assert (run(program, 0x40000003, 1), run(program, ARCH["x86_64"], 1)) == (i386, native), wanted


def test_a_rule_for_a_socket_call_speaks_of_socketcall_too() -> None:
    """Its conditions are on arguments behind a pointer there, and are left out, as libseccomp does."""
    vsock = {"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}
    rules = [
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [vsock]},
        {"names": ["shmat", "semop"], "action": "SCMP_ACT_KILL_PROCESS"},
    ]
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": BOTH, "syscalls": rules}
    program, _ = seccomp.compiled(profile, "x86_64")
    table = numbers(I386)

    def answer(name: str, first: int) -> int:
        return run(program, 0x40000003, table[name], (first, 0, 0, 0, 0, 0))

    assert [answer("socketcall", operation) for operation in (1, 2, 3)] == [EPERM, ALLOW, ALLOW]
    assert [answer("ipc", operation) for operation in (1, 2, 21)] == [KILL, ALLOW, KILL]
    versions = (0x10001, 0xFFFF0015, 0x10002, 0x10000)
    assert [answer("ipc", operation) for operation in versions] == [KILL, KILL, ALLOW, ALLOW]
    assert answer("socketcall", 0x10001) == ALLOW, "the kernel knows no such operation"
    assert [answer("socket", family) for family in (40, 2)] == [EPERM, ALLOW]
    assert answer("shmat", 0) == KILL


def test_the_numbers_of_32_bit_calls_are_the_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_32.h")
    if not header.exists():
        pytest.skip("the kernel's headers for 32-bit programs are missing (linux-libc-dev)")
    told = {name: int(n) for name, n in re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())}
    table = numbers(I386)
    both = told.keys() & table.keys()  # the header may be of an older kernel, or of a newer one
    assert len(both) > 400
    assert {name: table[name] for name in both} == {name: told[name] for name in both}


@pytest.mark.parametrize("capability", sorted(BY_CAPABILITY))
def test_a_capability_opens_its_calls(capability: str) -> None:
    program, _ = seccomp.compiled(runtime_default((capability,), "x86_64"), "x86_64")
    for name in BY_CAPABILITY[capability].split():
        assert run(program, ARCH["x86_64"], numbers("x86_64")[name]) == ALLOW, name


@pytest.mark.parametrize("operator", ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"])
def test_operators_compare_all_64_bits(operator: str) -> None:
    values = [0, 1, 2, 2**32 - 1, 2**32, 2**32 + 1, 5 << 32, (5 << 32) + 7, 2**63, 2**64 - 1]
    for value in values:
        argument = {"index": 2, "value": value, "valueTwo": value & 0xFF, "op": f"SCMP_CMP_{operator}"}
        rule = {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [argument]}
        profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}
        program, _ = seccomp.compiled(profile, "x86_64")
        for given in values:
            arguments = (0, 0, given, 0, 0, 0)
            assert run(program, ARCH["x86_64"], 0, arguments) == naive(profile, "read", arguments)


def test_conditions_on_one_argument_are_alternatives() -> None:
    args = [{"index": 0, "value": v, "op": "SCMP_CMP_EQ"} for v in (3, 5)]
    rule = {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": args}
    program, _ = seccomp.compiled({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}, "x86_64")
    answers = {given: run(program, ARCH["x86_64"], 0, (given, 0, 0, 0, 0, 0)) for given in (3, 4, 5)}
    assert answers == {3: ALLOW, 4: EPERM, 5: ALLOW}


@pytest.mark.parametrize(
    "profile",
    [
        {"defaultAction": "SCMP_ACT_DANCE"},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000},
        {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ABACUS"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_KILL"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "NO"}]},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 9, "op": "SCMP_CMP_EQ"}]}
            ],
        },
    ],
)
def test_what_cannot_be_compiled_is_an_error(profile: dict[str, Any]) -> None:
    with pytest.raises(SeccompError):
        seccomp.compiled(profile, "x86_64")


@pytest.mark.parametrize("action", sorted(seccomp.ACTIONS))
def test_every_action_is_returned(action: str) -> None:
    rule = {"names": ["read"], "action": action}
    program, _ = seccomp.compiled({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}, "x86_64")
    data = 1 if action in seccomp.WITH_DATA else 0
    assert run(program, ARCH["x86_64"], 0) == seccomp.ACTIONS[action] | data


@pytest.mark.parametrize(
    ("profile", "allowed"),
    [
        ({"defaultAction": "SCMP_ACT_ALLOW"}, True),
        ({"defaultAction": "SCMP_ACT_ERRNO"}, False),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("SCMP_ACT_ALLOW", "write", "read")]}, True),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("SCMP_ACT_ALLOW", "write")]}, False),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("SCMP_ACT_KILL", "read")]}, False),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("SCMP_ACT_LOG", "read")]}, False),
        (
            {
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [rule("SCMP_ACT_ALLOW", "read"), rule("SCMP_ACT_TRACE", "read")],
            },
            False,
        ),
        (
            {
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{**rule("SCMP_ACT_ALLOW", "read"), "args": [{"index": 0, "value": 0}]}],
            },
            False,
        ),
    ],
)
def test_what_a_profile_allows_plainly(profile: dict[str, Any], allowed: bool) -> None:
    assert allows(profile, "read") is allowed


def test_the_default_profile_allows_what_a_held_start_needs() -> None:
    profile = runtime_default(DEFAULT, "x86_64")
    assert allows(profile, "read") and allows(profile, "prctl") and not allows(profile, "mount")


def test_a_profile_that_notifies_names_its_listener() -> None:
    profile = {"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/agent", "listenerMetadata": "m"}
    assert seccomp.listener(profile) == seccomp.Listener("/agent", "m")
    assert seccomp.listener({**profile, "defaultAction": "SCMP_ACT_ALLOW"}) is None
    with pytest.raises(SeccompError, match="absolute path"):
        seccomp.listener({"defaultAction": "SCMP_ACT_NOTIFY"})
