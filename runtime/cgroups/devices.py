"""Which devices a cgroup may use: `linux.resources.devices` as rules, and as an eBPF program for cgroup v2.

v1 has a file for it. On v2 the kernel asks a program attached to the cgroup (BPF_CGROUP_DEVICE) at each mknod
and open of a device; programs of all ancestors must agree, so what lies below a container is bound too. The
program is a few comparisons per rule, the last rule first, written here as instructions: no compiler, no
library. Reading, writing and mknod are decided one by one, each by the last rule that names it, as v1 adds up
the letters of a device's rules; who asks for several needs all.

Once the list denies everything, the devices every container has are allowed again, as runc does; making nodes
stays allowed, since opening them does not.
"""

from __future__ import annotations

import os
import struct

from runtime import clibrary
from runtime.errors import CgroupError, errno_name
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

ANY = -1
ACCESS = {"m": 1, "r": 2, "w": 4}
EVERY = 7
KINDS = {"b": 1, "c": 2}
_NUMBERS = {"x86_64": 321, "aarch64": 280}
BPF_PROG_LOAD, BPF_PROG_ATTACH = 5, 8
BPF_PROG_TYPE_CGROUP_DEVICE, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI = 15, 6, 2
LOAD_WORD, MOVE, MOVE_NUMBER, AND, SHIFT_RIGHT = 0x61, 0xBF, 0xB7, 0x57, 0x77
UNLESS_EQUAL, IF_EQUAL, EXIT = 0x56, 0x16, 0x95


class Rule(Record):
    """`kind` is a (all), b or c; `major` and `minor` may be ANY; `access` of the letters r, w and m."""

    allow: bool
    kind: str = "a"
    major: int = ANY
    minor: int = ANY
    access: str = "rwm"

    def text(self) -> str:
        """As v1's devices.allow and devices.deny want it."""
        if self.kind == "a":
            return "a"
        major, minor = ("*" if number == ANY else str(number) for number in (self.major, self.minor))
        return f"{self.kind} {major}:{minor} {self.access}"


# null zero full random urandom tty console ptmx, and all pseudo terminals
DEFAULT = (
    Rule(True, "c", access="m"),
    Rule(True, "b", access="m"),
    *(Rule(True, "c", 1, minor) for minor in (3, 5, 7, 8, 9)),
    *(Rule(True, "c", 5, minor) for minor in (0, 1, 2)),
    Rule(True, "c", 136),
)


def rules(resources: Mapping[str, Any] | None) -> list[Rule]:
    """The rules in order, the default devices inserted where everything is denied. Raises CgroupError."""
    found: list[Rule] = []
    for entry in (resources or {}).get("devices") or ():
        kind, access = entry.get("type") or "a", entry.get("access") or "rwm"
        major, minor = (ANY if entry.get(k) is None else int(entry[k]) for k in ("major", "minor"))
        if kind not in ("a", "b", "c") or not set(access) <= set(ACCESS):
            raise CgroupError(
                f"Could not use device rule {dict(entry)}: type is a, b or c, access of r, w, m"
            )
        if kind == "a" and major == ANY and minor == ANY:
            found.append(Rule(bool(entry.get("allow"))))
            found += () if entry.get("allow") else DEFAULT
            continue
        kinds = ("b", "c") if kind == "a" else (kind,)
        found += [Rule(bool(entry.get("allow")), one, major, minor, access) for one in kinds]
    return found


def program(listed: Sequence[Rule]) -> bytes:
    """The eBPF program: 1 in r0 allows, 0 denies. Without any rule that covers everything, the rest is
    allowed. r4 is what is wanted and not allowed yet."""
    code = [
        _instruction(LOAD_WORD, 2, 1),
        _instruction(MOVE, 3, 2),
        _instruction(AND, 3, number=0xFFFF),  # r3: kind
        _instruction(MOVE, 4, 2),
        _instruction(SHIFT_RIGHT, 4, number=16),  # r4: access wanted
        _instruction(LOAD_WORD, 5, 1, offset=4),  # r5: major
        _instruction(LOAD_WORD, 6, 1, offset=8),  # r6: minor
    ]
    for rule in reversed(listed):
        code += _block(rule)
        if rule.kind == "a":
            return b"".join(code)
    return b"".join([*code, *_verdict(True)])


def _block(rule: Rule) -> list[bytes]:
    tests: list[tuple[int, int]] = []
    if rule.kind != "a":
        tests.append((3, KINDS[rule.kind]))
    tests += [(register, n) for register, n in ((5, rule.major), (6, rule.minor)) if n != ANY]
    decision = _decision(rule)
    code: list[bytes] = []
    for index, (register, wanted) in enumerate(tests):
        behind = len(tests) - index - 1 + len(decision)
        code.append(_instruction(UNLESS_EQUAL, register, offset=behind, number=wanted))
    return [*code, *decision]


def _decision(rule: Rule) -> list[bytes]:
    """Ends the program if this rule has the last word: it allows all that is left to be allowed, or denies
    some of it."""
    verdict = _verdict(rule.allow)
    bits = sum(ACCESS[letter] for letter in set(rule.access))
    if rule.kind == "a" or bits == EVERY:
        return verdict
    if rule.allow:
        return [
            _instruction(AND, 4, number=EVERY - bits),
            _instruction(UNLESS_EQUAL, 4, offset=len(verdict), number=0),
            *verdict,
        ]
    return [
        _instruction(MOVE, 1, 4),
        _instruction(AND, 1, number=bits),
        _instruction(IF_EQUAL, 1, offset=len(verdict), number=0),
        *verdict,
    ]


def _verdict(allow: bool) -> list[bytes]:
    return [_instruction(MOVE_NUMBER, 0, number=int(allow)), _instruction(EXIT)]


def _instruction(code: int, target: int = 0, source: int = 0, *, offset: int = 0, number: int = 0) -> bytes:
    signed = number - (1 << 32) if number >= 1 << 31 else number
    return struct.pack("=BBhi", code, source << 4 | target, offset, signed)


def attach(folder: str, listed: Iterable[Rule]) -> None:
    """Loads the rules as a program and binds it to the v2 cgroup `folder`, for as long as that exists.

    Raises CgroupError.
    """
    code = program(list(listed))
    held, license_name = clibrary.held(code), clibrary.held(b"Apache-2.0\0")
    load = struct.pack(
        "=IIQQ24x",
        BPF_PROG_TYPE_CGROUP_DEVICE,
        len(code) // 8,
        clibrary.address(held),
        clibrary.address(license_name),
    )
    cgroup = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        loaded = _bpf(BPF_PROG_LOAD, load, folder)
        try:
            bind = struct.pack("=IIII", cgroup, loaded, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)
            _bpf(BPF_PROG_ATTACH, bind, folder)
        finally:
            os.close(loaded)
    finally:
        os.close(cgroup)


def _bpf(command: int, attributes: bytes, folder: str) -> int:
    call = clibrary.libc("syscall", "lllPl")
    result = call(_NUMBERS[os.uname().machine], command, attributes, len(attributes))
    if result < 0:
        code = clibrary.errno()
        raise CgroupError(f"Could not limit the devices of {folder}: {errno_name(code)}", code)
    return result
