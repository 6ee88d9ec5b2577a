"""The program that executes the command line's Python from a read-only mount: a few hundred bytes of ELF.

A container that gets hold of /proc/<pid>/exe of what starts it could overwrite our interpreter for the whole
machine (CVE-2019-5736). Its mount decides whether a file can be opened for writing. So this, the interpreter
in the first line of `kubelet-py-oci`, makes a mount of the Python's file alone, which is attached nowhere,
makes that read-only and executes Python through it; the mount ends with the last process that does. Whoever
may not make mounts, or has a kernel that cannot (before 5.12), executes the file by its path: without
CAP_SYS_ADMIN the containers are in a user namespace, to which no file is writable but the user's own.

The kernel hands it the script's path and its arguments behind its own name. It puts Python's path, by which
that finds its library, and the options in front of them, in the two words that held the count and that name.
Behind the code lie these strings, each ended by 0, and what to say when Python cannot be executed at all.

The bytes were assembled with GNU as from the listings; tests/unit/runtime assembles them again.
"""

from __future__ import annotations

import os

from runtime.machine import ARM64, X86_64, Machine
from runtime.pause import program

_X86_CODE = (
    "488d1db40000004889df31c06aff59f2ae4989fe4c8d7fff"  # rbx = Python; r14 = options; r15 = ""
    "488b04244c8d6cc41048891c244c897424084889e5"  # r13 = environment; rbp = arguments
    "b8ac0100006a9c5f4889deba010008000f0585c078414189c4"  # r12 = open_tree(Python, clone), or plain
    "6a006a006a006a014489e74c89feba001000004989e26a204158b8ba0100000f0585c07819"  # mount_setattr, or plain
    "4489e74c89fe4889ea4d89ea41b800100000b8420100000f05"  # execveat
    "4889df4889ee4c89ea6a3b580f05"  # plain: execve
    "4c89f731c06aff59f2ae4889fe6aff59f2ae488d57ff4829f26a025f6a01580f05"  # write the complaint
    "6a3c586a7f5f0f05"  # exit(127)
)
_ARM_CODE = (
    "d3060010f40313aa89164038e9ffff35970600d1"  # x19 = Python; x20 = options; x23 = ""
    "e90340f9f5430091b50e098bf35300a9f6030091"  # x21 = environment; x22 = arguments
    "600c8092e10313aa220080d20201a0f2883580d2010000d46002f837f803002a"  # w24 = open_tree, or plain
    "ff7fbfa9290080d2e97fbfa9e10317aa020082d2e3030091040480d2483780d2010000d40001f837"  # mount_setattr
    "e003182ae10317aae20316aae30315aa040082d2282380d2010000d4"  # execveat
    "e00313aae10316aae20315aaa81b80d2010000d4"  # plain: execve
    "e10314aa29144038e9ffff35e20301aa49144038e9ffff35"  # the complaint and its end
    "420001cb420400d1400080d2080880d2010000d4"  # write it
    "e00f80d2a80b80d2010000d4"  # exit(127)
)
CODE = {X86_64.name: bytes.fromhex(_X86_CODE), ARM64.name: bytes.fromhex(_ARM_CODE)}


def image(machine: Machine, python: str, options: str) -> bytes:
    """The whole ELF file, for the Python at this path, to be given these options as one argument."""
    complaint = f"kubelet-py-oci: Could not execute {python} (write this program again)\n"
    strings = b"".join(os.fsencode(text) + b"\0" for text in (python, options, complaint))
    return program(machine, CODE[machine.name] + strings)
