"""What differs between processors: system call numbers and the few machine instructions Python cannot
express.

Between clone and execve a child that shares Python's memory must not run Python. What it does instead is
*data*: a table of system calls, which 100 bytes of machine code work off one after another (`SPAWN`). That is
the same idea as posix_spawn's file actions, but for any system call, so that resource limits, credentials,
the seccomp filter and joining cgroups happen in the child alone and never touch the process that starts it.

One entry of the table is nine 64-bit words: number, six arguments, flags, result. Flag 1: an error is noted,
not fatal. Flag 2: the result is also the first argument of the next entry. On a fatal error the child stores
the entry's address in the word given and exits with 127. SPAWN(clone_args, size, table, failed) returns
clone3's result.

The bytes were assembled with GNU as from the listings beside them; tests/unit/runtime assembles them again.
"""

from __future__ import annotations

import os

from runtime.records import Record

TOLERATE = 1
PASS_RESULT = 2
ENTRY_WORDS = 9

_X86_SPAWN = (
    "5341544889d34989cc"  # push rbx; push r12; rbx = table; r12 = failed
    "b8b30100000f05"  # clone3 (435)
    "4885c0754f"  # parent, or an error: go to the end
    "488b03488b7b08488b7310488b53184c8b53204c8b43284c8b4b300f05"  # load number and arguments, system call
    "48894340483d01f0ffff7310"  # store the result; an error?
    "f643380274044889435048"  # flag 2: result → next entry's first argument
    "83c348ebc7"  # next entry
    "f643380175f4"  # error: flag 1 → next entry
    "49891c24bf7f000000b8e70000000f05"  # note the entry; exit_group(127)
    "415c5bc3"
)
_ARM_SPAWN = (
    "ea0302aaeb0303aa683680d2010000d4800200b5"  # x10 = table; x11 = failed; clone3; parent → end
    "480140f9408540a9428d41a9449542a9010000d4"  # load number and arguments, svc
    "402100f91ffc3fb1c2000054"  # store the result; an error?
    "491d40f949000836402900f9"  # flag 2
    "4a210191f4ffff17"  # next entry
    "491d40f9a9ff0737"  # error: flag 1 → next entry
    "6a0100f9e00f80d2c80b80d2010000d4"  # note the entry; exit_group(127)
    "c0035fd6"
)

_X86_NUMBERS = {
    "read": 0, "write": 1, "close": 3, "rt_sigaction": 13, "rt_sigprocmask": 14, "ioctl": 16, "exit": 60,
    "fcntl": 72, "mount": 165,
    "fchdir": 81, "setpriority": 141, "umask": 95, "setsid": 112, "setgroups": 116, "setresuid": 117,
    "setresgid": 119, "capset": 126, "personality": 135, "pivot_root": 155, "prctl": 157, "umount2": 166,
    "sethostname": 170, "setdomainname": 171, "ioprio_set": 251, "openat": 257, "unshare": 272, "dup3": 292,
    "prlimit64": 302, "setns": 308, "seccomp": 317, "execveat": 322, "execve": 59, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "pidfd_open": 434, "clone3": 435,
    "close_range": 436, "openat2": 437, "mount_setattr": 442, "memfd_create": 319, "keyctl": 250,
    "sched_setaffinity": 203, "set_mempolicy": 238, "sched_setattr": 314, "fspick": 433,
    "pidfd_getfd": 438, "pidfd_send_signal": 424, "chroot": 161, "ppoll": 271,
}  # fmt: skip
_ARM_NUMBERS = {
    "read": 63, "write": 64, "exit": 93, "close": 57, "rt_sigaction": 134, "rt_sigprocmask": 135,
    "ioctl": 29, "mount": 40, "fcntl": 25,
    "fchdir": 50, "setpriority": 140, "umask": 166, "setsid": 157, "setgroups": 159, "setresuid": 147,
    "setresgid": 149, "capset": 91, "personality": 92, "pivot_root": 41, "prctl": 167, "umount2": 39,
    "sethostname": 161, "setdomainname": 162, "ioprio_set": 30, "openat": 56, "unshare": 97, "dup3": 24,
    "prlimit64": 261, "setns": 268, "seccomp": 277, "execveat": 281, "execve": 221, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "pidfd_open": 434, "clone3": 435,
    "close_range": 436, "openat2": 437, "mount_setattr": 442, "memfd_create": 279, "keyctl": 219,
    "sched_setaffinity": 122, "set_mempolicy": 237, "sched_setattr": 274, "fspick": 433,
    "pidfd_getfd": 438, "pidfd_send_signal": 424, "chroot": 51, "ppoll": 73,
}  # fmt: skip


class Machine(Record):
    """One processor family: `name` as uname says, ELF number, audit architecture, numbers and code."""

    name: str
    elf_machine: int
    audit_arch: int
    numbers: dict[str, int]
    spawn: bytes
    page: int


X86_64 = Machine("x86_64", 62, 0xC000003E, _X86_NUMBERS, bytes.fromhex(_X86_SPAWN), 4096)
ARM64 = Machine("aarch64", 183, 0xC00000B7, _ARM_NUMBERS, bytes.fromhex(_ARM_SPAWN), 65536)
MACHINES = {m.name: m for m in (X86_64, ARM64)}


def this_machine() -> Machine:
    """The processor we run on.

    Raises OSError with a sentence for processors nobody wrote the instructions for.
    """
    name = os.uname().machine
    if name not in MACHINES:
        raise OSError(f"Could not find machine code for {name}: only {' and '.join(MACHINES)} are known")
    return MACHINES[name]
