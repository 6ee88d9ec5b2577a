"""A seccomp profile → the smallest BPF program we can make of it.

The kernel runs the program on every system call and checks it when it is loaded: 45 µs for two hundred
instructions, 600 µs for the thousand-odd of a chain of comparisons. Numbers with the same verdict that lie
side by side become one range; the ranges become the leaves of a balanced tree of `jge`; a leaf is a verdict,
or a few comparisons of arguments. Programs of 32 bits have numbers of their own, so they have a tree of their
own, behind the native one.

Programs are cached by profile, so the forkserver compiles RuntimeDefault once for all its shims.

seccomp_data: number at 0, architecture at 4, instruction pointer at 8, six 64-bit arguments from 16 (little
endian on both processors). Classic BPF compares 32 bits, so arguments are compared in halves. Conditional
jumps reach 255 instructions, an unconditional one reaches all.
"""

from __future__ import annotations

import marshal
import struct

from runtime.errors import SeccompError
from runtime.machine import MACHINES, this_machine
from runtime.records import Record
from runtime.seccomp.profile import ARCHITECTURES
from runtime.seccomp.syscalls import I386, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

LOAD, JUMP, JEQ, JGT, JGE, AND, RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x54, 0x06
KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000
X32_BIT = 0x40000000
MAX_INSTRUCTIONS = 4096
FARTHEST = 255  # that a conditional jump reaches

ACTIONS = {
    "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_TRAP": 0x00030000, "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_NOTIFY": 0x7FC00000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ALLOW": ALLOW,
}  # fmt: skip
WITH_DATA = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
NOTIFY = "SCMP_ACT_NOTIFY"
KILLABLE = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    KILLABLE: 0x20,
}  # fmt: skip
OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")

KNOWN_ARCHITECTURES = frozenset(
    "SCMP_ARCH_" + name
    for name in (
        "X86", "X86_64", "X32", "ARM", "AARCH64", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64",
        "MIPSEL64N32", "PPC", "PPC64", "PPC64LE", "S390", "S390X", "PARISC", "PARISC64", "RISCV64",
        "LOONGARCH64", "M68K", "SH", "SHEB",
    )
)  # fmt: skip

# Jump targets that are not known yet.
PASS, FAIL = -1, -2


class Listener(Record):
    """Where the listener of a profile with SCMP_ACT_NOTIFY goes: an agent's socket, and words for it."""

    path: str
    metadata: str = ""


class Condition(Record):
    """One comparison of argument `index`. For MASKED_EQ `value` is the mask and `second` the wanted
    result."""

    index: int
    operator: str
    value: int
    second: int = 0


class Instruction(Record):
    """`yes` and `no` are distances, or PASS and FAIL while a block is being put together."""

    code: int
    value: int
    yes: int = 0
    no: int = 0


# What happens on a system call: the first rule whose conditions all hold decides, else the default.
Verdict = tuple[tuple[tuple[Condition, ...], int], ...]
Alternatives = list[tuple[Condition, ...]]

_cache: dict[tuple[str, bytes], tuple[bytes, int]] = {}


def compiled(profile: Mapping[str, Any], machine: str = "") -> tuple[bytes, int]:
    """`linux.seccomp` → (program, flags for seccomp(2)), for this processor unless another is named.

    Raises SeccompError.
    """
    name = machine or this_machine().name
    key = (name, marshal.dumps(dict(profile), 2))  # 2: by content, not by identity
    if key not in _cache:
        _cache[key] = (assemble(program(profile, name)), _flags(profile))
    return _cache[key]


def listener(profile: Mapping[str, Any]) -> Listener | None:
    """Where to send the listener; None for a profile that notifies nobody. Raises SeccompError."""
    path, metadata = profile.get("listenerPath") or "", profile.get("listenerMetadata") or ""
    if not isinstance(path, str) or not isinstance(metadata, str):
        raise SeccompError("Could not use seccomp listenerPath and listenerMetadata: they must be strings")
    if metadata and not path:
        raise SeccompError("Could not use seccomp listenerMetadata: listenerPath is missing")
    if not _notifies(profile):
        return None
    if not path.startswith("/"):
        raise SeccompError(f"Could not use {NOTIFY}: listenerPath must be an absolute path, not {path!r}")
    return Listener(path, metadata)


def _notifies(profile: Mapping[str, Any]) -> bool:
    rules = profile.get("syscalls") or ()
    return NOTIFY in (profile.get("defaultAction"), *(rule.get("action") for rule in rules))


def _flags(profile: Mapping[str, Any]) -> int:
    total = 0
    for flag in profile.get("flags") or ():
        if flag not in FLAGS:
            raise SeccompError(f"Could not use seccomp flag {flag}: it is not one of {', '.join(FLAGS)}")
        total |= FLAGS[flag]
    if total & FLAGS[KILLABLE] and not _notifies(profile):
        raise SeccompError(f"Could not use seccomp flag {KILLABLE}: no rule has {NOTIFY}")
    return total


def assemble(instructions: Sequence[Instruction]) -> bytes:
    """struct sock_filter[]."""
    if len(instructions) > MAX_INSTRUCTIONS:
        raise SeccompError(
            f"Could not compile seccomp profile: {len(instructions)} instructions are too many"
        )
    return b"".join(struct.pack("=HBBI", i.code, i.yes, i.no, i.value) for i in instructions)


def program(profile: Mapping[str, Any], machine: str) -> list[Instruction]:
    """The program: architecture first, then the tree over the numbers. The machine's own is always among them
    (seccomp_init(3) begins with it, and so do runc and crun)."""
    wanted = profile.get("architectures") or [ARCHITECTURES[machine]]
    for name in wanted:
        if name not in KNOWN_ARCHITECTURES:
            raise SeccompError(f"Could not use seccomp architecture {name!r}: there is none of that name")
    default = _action(profile.get("defaultAction", ""), profile.get("defaultErrnoRet"))
    tree = _calls(profile, machine, default)
    if machine == "x86_64" and "SCMP_ARCH_X32" not in wanted:
        # x32 shares the architecture value and marks its numbers.
        tree = [Instruction(JGE, X32_BIT, 0, 1), Instruction(RETURN, KILL_PROCESS), *tree]
    other = _of_32_bits(profile, default) if machine == "x86_64" and "SCMP_ARCH_X86" in wanted else []
    # The way to the native calls stays as short as if there were no others: what is not theirs is sorted out
    # behind them.
    return [
        Instruction(LOAD, 4),
        Instruction(JEQ, MACHINES[machine].audit_arch, 1, 0),
        Instruction(JUMP, len(tree) + 1) if other else Instruction(RETURN, KILL_PROCESS),
        Instruction(LOAD, 0),
        *tree,
        *other,
    ]


def _of_32_bits(profile: Mapping[str, Any], default: int) -> list[Instruction]:
    """What is not of x86-64, and may be i386's."""
    from runtime.seccomp import i386

    tree = _calls(profile, I386, default)
    entry = [Instruction(JEQ, i386.AUDIT_ARCH, 1, 0), Instruction(RETURN, KILL_PROCESS), Instruction(LOAD, 0)]
    return [*entry, *tree]


def _calls(profile: Mapping[str, Any], machine: str, default: int) -> list[Instruction]:
    """The tree over the numbers of one architecture."""
    return _Tree(default).code(_ranges(_verdicts(profile, machine), default))


def _action(name: str, data: object) -> int:
    if name not in ACTIONS:
        raise SeccompError(f"Could not use seccomp action {name!r}: it is not one of {', '.join(ACTIONS)}")
    extra = 1 if data is None else data
    if data is not None and name not in WITH_DATA:
        raise SeccompError(f"Could not use seccomp errnoRet: {name} takes none")
    if not isinstance(extra, int) or not 0 <= extra <= 0xFFFF:
        raise SeccompError(f"Could not use seccomp errno {data!r}: it must be a number from 0 to 65535")
    return ACTIONS[name] | (extra if name in WITH_DATA else 0)


def _verdicts(profile: Mapping[str, Any], machine: str) -> dict[int, Verdict]:
    """Number → verdict. Names this processor does not have are skipped, as libseccomp's users do."""
    known = numbers(machine)
    verdicts: dict[int, Verdict] = {}
    for rule in profile.get("syscalls") or ():
        action = _action(rule.get("action", ""), rule.get("errnoRet"))
        alternatives = _alternatives(rule.get("args") or ())
        if not rule.get("names"):
            raise SeccompError("Could not use a seccomp rule: it names no system call")
        if machine == I386:
            alternatives = [tuple(map(_halved, conditions)) for conditions in alternatives]
        for name in rule["names"]:
            for number, meant in _numbers(name, known, alternatives, machine):
                earlier = verdicts.get(number, ())
                verdicts[number] = earlier + tuple((conditions, action) for conditions in meant)
    return {number: _simplified(verdict) for number, verdict in verdicts.items()}


def _numbers(
    name: str, known: Mapping[str, int], alternatives: Alternatives, machine: str
) -> list[tuple[int, Alternatives]]:
    """The calls that a name speaks of, and on what conditions."""
    found = [(known[name], alternatives)] if name in known else []
    if machine == I386:
        from runtime.seccomp.i386 import THROUGH

        if name in THROUGH:
            door, operation = THROUGH[name]
            # ipc takes its upper half for a version, which a program may choose (ipc/syscall.c, ksys_ipc).
            masked = Condition(0, "MASKED_EQ", 0xFFFF, operation)
            asked = masked if door == "ipc" else Condition(0, "EQ", operation)
            found.append((known[door], [(asked,)]))
    return found


def _halved(condition: Condition) -> Condition:
    """For arguments of 32 bits."""
    low = 0xFFFFFFFF
    return Condition(condition.index, condition.operator, condition.value & low, condition.second & low)


def _alternatives(args: Sequence[Mapping[str, Any]]) -> Alternatives:
    """Conditions on different arguments hold together; several on one argument are alternatives (runc)."""
    conditions = [_condition(argument) for argument in args]
    if len({condition.index for condition in conditions}) < len(conditions):
        return [(condition,) for condition in conditions]
    return [tuple(conditions)]


def _condition(argument: Mapping[str, Any]) -> Condition:
    operator = str(argument.get("op", "")).removeprefix("SCMP_CMP_")
    numbers = [argument.get(key) or 0 for key in ("index", "value", "valueTwo")]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**64 for n in numbers)
    if operator not in OPERATORS or not whole or numbers[0] > 5:
        raise SeccompError(f"Could not use seccomp condition {dict(argument)}")
    return Condition(numbers[0], operator, numbers[1], numbers[2])


def _simplified(verdict: Verdict) -> Verdict:
    """A rule without conditions decides alone, whatever stands beside it (as in libseccomp)."""
    for conditions, action in verdict:
        if not conditions:
            return (((), action),)
    return verdict


def _ranges(verdicts: Mapping[int, Verdict], default: int) -> list[tuple[int, Verdict]]:
    """(first number, verdict) of each range, in order, from 0 on; neighbours differ."""
    otherwise: Verdict = (((), default),)
    ranges: list[tuple[int, Verdict]] = [(0, otherwise)]
    previous = -1
    for number in sorted(verdicts):
        if number != previous + 1 and ranges[-1][1] != otherwise:
            ranges.append((previous + 1, otherwise))
        if ranges[-1][1] != verdicts[number]:
            ranges.append((number, verdicts[number]))
        previous = number
    if ranges[-1][1] != otherwise:
        ranges.append((previous + 1, otherwise))
    if len(ranges) > 1 and ranges[1][0] == 0:
        ranges.pop(0)
    return ranges


class _Tree:
    """A decision between ranges, written from its end: jumps go forwards, so what they reach stands already.

    Equal verdicts share one `return`, which makes half of the instructions unnecessary; where the last one is
    out of reach, it is said again.
    """

    def __init__(self, default: int) -> None:
        self._default = default
        self._backwards: list[Instruction] = []
        self._returns: dict[int, int] = {}

    def code(self, ranges: Sequence[tuple[int, Verdict]]) -> list[Instruction]:
        """What was written last is where it begins."""
        self._between(ranges)
        return self._backwards[::-1]

    def _between(self, ranges: Sequence[tuple[int, Verdict]]) -> int:
        """Where (in _backwards) the decision between these begins."""
        if len(ranges) == 1:
            return self._verdict(ranges[0][1])
        middle = len(ranges) // 2
        high, low = self._between(ranges[middle:]), self._between(ranges[:middle])
        high, low = self._near(high), self._near(low)
        here = len(self._backwards)
        return self._write(Instruction(JGE, ranges[middle][0], here - high - 1, here - low - 1))

    def _verdict(self, verdict: Verdict) -> int:
        conditions, action = verdict[0]
        if conditions:
            for instruction in reversed(_leaf(verdict, self._default)):
                self._write(instruction)
            return len(self._backwards) - 1
        if action not in self._returns:
            self._returns[action] = self._write(Instruction(RETURN, action))
        return self._returns[action]

    def _near(self, target: int) -> int:
        """`target`, or what does the same within reach of the next two instructions."""
        here = len(self._backwards)
        if here - target < FARTHEST:
            return target
        aimed = self._backwards[target]
        if aimed.code != RETURN:
            return self._write(Instruction(JUMP, here - target - 1))
        self._returns[aimed.value] = self._write(aimed)
        return here

    def _write(self, instruction: Instruction) -> int:
        self._backwards.append(instruction)
        return len(self._backwards) - 1


def _leaf(verdict: Verdict, default: int) -> list[Instruction]:
    code: list[Instruction] = []
    for conditions, action in verdict:
        block: list[Instruction] = []
        for condition in conditions:
            block += _linked(_compare(condition))
        block.append(Instruction(RETURN, action))
        code += _failing(block)
        if not conditions:
            return code
    return [*code, Instruction(RETURN, default)]


def _compare(condition: Condition) -> list[Instruction]:
    """Comparison in halves; PASS goes behind it, FAIL to the next rule."""
    at = 16 + 8 * condition.index
    low, high = Instruction(LOAD, at), Instruction(LOAD, at + 4)
    value_low, value_high = condition.value & 0xFFFFFFFF, condition.value >> 32
    operator = condition.operator
    if operator == "MASKED_EQ":
        want_low, want_high = condition.second & 0xFFFFFFFF, condition.second >> 32
        return [
            high, Instruction(AND, value_high), Instruction(JEQ, want_high, 0, FAIL),
            low, Instruction(AND, value_low), Instruction(JEQ, want_low, PASS, FAIL),
        ]  # fmt: skip
    if operator in ("EQ", "NE"):
        equal, other = (PASS, FAIL) if operator == "EQ" else (FAIL, PASS)
        return [high, Instruction(JEQ, value_high, 0, other), low, Instruction(JEQ, value_low, equal, other)]
    above, not_above = (PASS, FAIL) if operator in ("GT", "GE") else (FAIL, PASS)
    test = JGE if operator in ("GE", "LT") else JGT
    return [
        high,
        Instruction(JGT, value_high, above, 0),
        Instruction(JEQ, value_high, 0, not_above),
        low,
        Instruction(test, value_low, above, not_above),
    ]


def _linked(block: Sequence[Instruction]) -> list[Instruction]:
    """PASS becomes the distance to the end of this comparison."""
    end = len(block)
    return [
        Instruction(i.code, i.value, _distance(i.yes, PASS, end, at), _distance(i.no, PASS, end, at))
        for at, i in enumerate(block)
    ]


def _failing(block: Sequence[Instruction]) -> list[Instruction]:
    """FAIL becomes the distance to the end of the whole rule."""
    end = len(block)
    return [
        Instruction(i.code, i.value, _distance(i.yes, FAIL, end, at), _distance(i.no, FAIL, end, at))
        for at, i in enumerate(block)
    ]


def _distance(target: int, placeholder: int, end: int, at: int) -> int:
    return end - at - 1 if target == placeholder else target
