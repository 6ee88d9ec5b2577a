"""What differs between processors: system call numbers and the few machine instructions Python cannot
express.

Between clone and execve a child that shares Python's memory must not run Python. What it does instead is
*data*: a table of system calls, which 200 bytes of machine code work off one after another (`SPAWN`). That is
the same idea as posix_spawn's file actions, but for any system call, so that resource limits, credentials,
the seccomp filter and joining cgroups happen in the child alone and never touch the process that starts it.
A whole start can be one table, too (see recorder.py): its first child sets up, and makes the second.

One entry of the table is ten 64-bit words: number, six arguments, flags, list of addresses, result. Flag 1:
an error is noted, not fatal. Flag 2: the result is also the first argument of the next entry. The upper half
of the flags, if not 0, is the only result that will do. The list ends with 0; the result is written to each
address. A negative number is no system call but a check: the word at the first argument, masked by the
second, must be the third (fourth 0), or must not (1). After clone3 the maker goes on at the entry that the
sixth argument points to, the child at the next one. On a fatal error the entry's address is stored in the
word given, and the child exits with 127. SPAWN(clone_args, size, table, failed) returns clone3's result.

The bytes were assembled with GNU as from the listings beside them; tests/unit/runtime assembles them again.
"""

from __future__ import annotations

import os

from runtime.records import Record

TOLERATE = 1
PASS_RESULT = 2
CHECK = -1
ENTRY_WORDS = 10
RESULT = 9  # the last word of an entry

_X86_SPAWN = (
    "5341544889d34989cc"  # push rbx; push r12; rbx = table; r12 = failed
    "b8b30100000f05"  # clone3 (435)
    "4885c00f85a7000000"  # parent, or an error: go to the end
    "488b03488b7b08488b7310488b53184c8b53204c8b43284c8b4b30"  # loop: load number and arguments
    "4885c07871"  # negative? check
    "0f0548894348"  # system call; store the result
    "813bb3010000750b4885c07e06488b5b30ebc7"  # clone3, and we are the maker: go on where argument six says
    "48634b3c4885c974074839c8742eeb38"  # an expected result? that, or failed
    "483d01f0ffff732a"  # an error?
    "488b4b404885c97411488b114885d274094889024883c108ebef"  # store the result where the list says
    "f6433802740448894358"  # flag 2: result → next entry's first argument
    "4883c350eb85"  # next entry
    "f643380175f4"  # error: flag 1 → next entry
    "49891c24bf7f000000b8e70000000f05"  # note the entry; exit_group(127)
    "488b074821f04839d00f94c00fb6c04c39d074dcebce"  # check: (word & mask) equal, or not? next, or failed
    "415c5bc3"
)
_ARM_SPAWN = (
    "ea0302aaeb0303aa683680d2010000d4a00500b5"  # x10 = table; x11 = failed; clone3; parent → end
    "480140f9408540a9428d41a9449542a9"  # loop: load number and arguments
    "2804f8b7010000d4402500f9"  # negative? check; svc; store the result
    "1fcd06f1a10000541f0000f16d0000544a1940f9f4ffff17"  # clone3, and we are the maker
    "493d80b9890000b41f0009eba001005410000014"  # an expected result?
    "1ffc3fb182010054"  # an error?
    "492140f9a90000b42c8540f86c0000b4800100f9fdffff17"  # store the result where the list says
    "491d40f949000836402d00f9"  # flag 2
    "4a410191e2ffff17"  # next entry
    "491d40f9a9ff0737"  # error: flag 1 → next entry
    "6a0100f9e00f80d2c80b80d2010000d4"  # note the entry; exit_group(127)
    "000040f90000018a1f0002ebe0179f9a1f0003ebe0feff54f2ffff17"  # check
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
    "pidfd_getfd": 438, "pidfd_send_signal": 424, "chroot": 161, "ppoll": 271, "fstat": 5, "chdir": 80,
    "getcwd": 79, "fchmod": 91, "fstatfs": 138, "mkdirat": 258, "mknodat": 259, "fchownat": 260,
    "newfstatat": 262, "symlinkat": 266, "exit_group": 231, "socket": 41,
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
    "pidfd_getfd": 438, "pidfd_send_signal": 424, "chroot": 51, "ppoll": 73, "fstat": 80, "chdir": 49,
    "getcwd": 17, "fchmod": 52, "fstatfs": 44, "mkdirat": 34, "mknodat": 33, "fchownat": 54,
    "newfstatat": 79, "symlinkat": 36, "exit_group": 94, "socket": 198,
}  # fmt: skip


class Machine(Record):
    """One processor family: `name` as uname says, ELF number, audit architecture, numbers and code, and where
    struct stat has its fields."""

    name: str
    elf_machine: int
    audit_arch: int
    numbers: dict[str, int]
    spawn: bytes
    page: int
    mode_offset: int
    rdev_offset: int


X86_64 = Machine("x86_64", 62, 0xC000003E, _X86_NUMBERS, bytes.fromhex(_X86_SPAWN), 4096, 24, 40)
ARM64 = Machine("aarch64", 183, 0xC00000B7, _ARM_NUMBERS, bytes.fromhex(_ARM_SPAWN), 65536, 16, 32)
MACHINES = {m.name: m for m in (X86_64, ARM64)}


def this_machine() -> Machine:
    """The processor we run on.

    Raises OSError with a sentence for processors nobody wrote the instructions for.
    """
    name = os.uname().machine
    if name not in MACHINES:
        raise OSError(f"Could not find machine code for {name}: only {' and '.join(MACHINES)} are known")
    return MACHINES[name]
