"""A process of its own whose memory is moved onto a picture, changed in every way, and rests.

Run by test_memory.py, since a process that has rested cannot be made as before. It prints what was its
own while it rested, in kB, and ends with 1 when one byte is another one afterwards.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
import time
from pathlib import Path

from runtime.pages import PAGE, Pages

WORD, WORDS = 8, PAGE // 8
FEW, MANY = 1400, 640  # pages; MANY need more than the store has
ODD: tuple[tuple[int, ...], ...] = (
    (0,), (WORDS - 1,), (0, WORDS - 1), (WORDS - 2, WORDS - 1), (1, 2, 3, 5, 6, 8),
    tuple(range(0, WORDS, 2)), tuple(range(WORDS)), tuple(range(WORDS - 1)), (),
)  # fmt: skip
SMALL_KB = 3072
DEADLINE_SECONDS = 60


def anonymous(pid: int) -> int:
    """kB that are in no file. What nobody else maps of the picture would count as private, too."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def change(memory: bytearray) -> None:
    """In each page other words: one in FEW pages, a quarter in MANY, and then the ODD ones."""
    first = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % PAGE
    kinds = [(number % WORDS,) for number in range(FEW)] + [tuple(range(128))] * MANY + list(ODD)
    for page, words in enumerate(kinds):
        for word in words:
            place = first + page * PAGE + word * WORD
            memory[place] ^= 0xFF


def watch(pid: int, line: int) -> None:
    """In a fork: wait until `pid` has little of its own, then wake it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (size := anonymous(pid)) > SMALL_KB and time.monotonic() < deadline:
        time.sleep(0.05)
    print(size, flush=True)
    os.write(line, b"!")
    os._exit(0)


def main() -> int:
    pages = Pages(platform.machine())
    memory = bytearray(os.urandom((FEW + MANY + len(ODD)) * PAGE + PAGE))
    pages.prepare()
    if (sitter := os.fork()) == 0:
        pages.pose()
        os._exit(0)
    os.waitpid(sitter, 0)
    pages.take()
    change(memory)
    reader, writer = os.pipe()
    for _ in range(2):
        before = hashlib.sha256(memory).digest()
        if (watcher := os.fork()) == 0:
            watch(os.getppid(), writer)
        pages.rest(reader, -1)
        os.read(reader, 1)
        os.waitpid(watcher, 0)
        if hashlib.sha256(memory).digest() != before:
            return 1
        change(memory)  # and back: nothing differs in the second round
    return 0


if __name__ == "__main__":
    sys.exit(main())
