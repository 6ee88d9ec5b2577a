"""The program that holds a pod's namespaces: a few hundred bytes of ELF, written by us as bytes.

It forbids tracing itself, blocks SIGCHLD, SIGTERM and SIGINT and then waits for them: on SIGCHLD it reaps
every dead child (as PID 1 of a shared PID namespace it inherits orphans), on the others it exits with 0.
Blocking instead of handling works for PID 1 too: the kernel drops signals to PID 1 only while they are
neither handled nor blocked. A page of code, a page of stack: about 7 kB per pod; a forked Python would be 363
kB.

It is executed from a sealed file in memory: no file on the host can be reached through its /proc/<pid>/exe.
"""

from __future__ import annotations

import struct

from runtime.machine import ARM64, X86_64, Machine, this_machine

_X86_CODE = (
    "b89d0000006a045f31f60f05"  # prctl(PR_SET_DUMPABLE, 0)
    "b80240010050"  # push the mask: 1<<16 (CHLD) | 1<<14 (TERM) | 1<<1 (INT)
    "4889e36a0e5831ff4889de31d26a08415a0f05"  # rt_sigprocmask(SIG_BLOCK, mask, 0, 8)
    "6a7f58ffc04889df31f631d26a08415a0f05"  # wait: rt_sigtimedwait(mask, 0, 0, 8)
    "83f80f741b83f8027416"  # SIGTERM, SIGINT → done
    "6a3d586aff5f31f66a015a4531d20f05"  # reap: wait4(-1, 0, WNOHANG, 0)
    "85c07fecebce"  # a child → reap, none → wait
    "6a3c5831ff0f05"  # done: exit(0)
)
_ARM_CODE = (
    "800080d2010080d2e81480d2010000d4"  # prctl(PR_SET_DUMPABLE, 0)
    "490088d22900a0f2e90f1ff8"  # the mask onto the stack
    "000080d2e1030091020080d2030180d2e81080d2010000d4"  # rt_sigprocmask
    "e0030091010080d2020080d2030180d2281180d2010000d4"  # wait: rt_sigtimedwait
    "1f3c00f1800100541f0800f140010054"  # SIGTERM, SIGINT → done
    "00008092010080d2220080d2030080d2882080d2010000d4"  # reap: wait4
    "1f0000f12cffff54eeffff17"  # a child → reap, none → wait
    "000080d2a80b80d2010000d4"  # done: exit(0)
)
_CODE = {X86_64.name: bytes.fromhex(_X86_CODE), ARM64.name: bytes.fromhex(_ARM_CODE)}

_BASE = 0x400000
_HEADERS = 64 + 2 * 56


def image(machine: Machine | None = None) -> bytes:
    """The whole ELF file."""
    chosen = machine or this_machine()
    return program(chosen, _CODE[chosen.name])


def program(chosen: Machine, code: bytes) -> bytes:
    """An ELF file: headers, one loaded read-and-execute segment, a stack that is not executable."""
    size = _HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack(
        "=16sHHIQQQIHHHHHH",
        ident, 2, chosen.elf_machine, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 2, 0, 0, 0,
    )  # fmt: skip
    load = struct.pack("=IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, chosen.page)
    stack = struct.pack("=IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return header + load + stack + code
