"""Giving pages back: what keeps a shim, a Python process, below a megabyte.

A fork shares its memory with its parent until it writes, and Python writes to whatever it only looks at: a
reference count goes up and down again, and a page has been copied for nothing. What shims have become after
they have started something, though, is nearly the same in all of them. So the forkserver has one shim sit
for a picture (runtime/rehearsal.py): a file in memory (memfd) with the contents of all its writable pages at
rest. Then it moves its own memory onto that file, mapped privately, contents unchanged. In the shims forked
from it a written page is their own as ever; but where it looks as in the picture, madvise(MADV_DONTNEED)
drops it, and for a private file mapping that means: the file's page is seen instead (madvise(2)). No byte of
what the process sees changes, only who owns it.

Between comparing (or copying) a page and telling the kernel, nobody may write to it. Python cannot promise
that, so these loops are machine code; the process must have one thread, and the stack and the mapping that
the kernel itself writes to (the thread's control block, with rseq) are left alone. On processors nobody wrote
the code for, nothing is given back.

The bytes were assembled with GNU as from the listings beside them; tests/unit/runtime_service/test_pages.py
reads them back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

from runtime.state import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# COPY(table, count), TAKE(table, count, fd), REST(table, count, pagemap, descriptor, timeout). An entry of
# the table is five 64-bit words: address, length, address in the picture, offset in its file, address of
# spare memory. COPY and TAKE return how many entries were left undone, REST what poll(2) did. REST looks
# only at pages that are our own, as /proc/self/pagemap says, and closes that.
X86_COPY = (
    "53554889fb4889f5"  # push rbx, rbp; rbx = table; rbp = count
    "4885ed741b"  # next: none left? go to the end
    "488b33488b7b10488b4b0848c1e903f348a5"  # memory to picture: rep movsq
    "4883c32848ffcdebe0"  # next entry
    "4889e85d5bc3"
)
X86_TAKE = (
    "5355415441554889fb4889f54989d4"  # push rbx, rbp, r12, r13; rbx = table; rbp = count; r12 = fd
    "4885ed0f8482000000"  # next: none left? go to the end
    "488b33488b7b20488b4b0848c1e903f348a5"  # memory to spare: rep movsq
    "488b3b488b7308ba0300000041ba120000004d89e04c8b4b18b8090000000f05"  # mmap, private and fixed
    "483b03754b4531ed"  # refused? go to the end; r13 = 0
    "4c3b6b087336"  # page: past the end? next
    "488b73204c01ee488b7b104c01efb900020000f348a77415"  # spare as in the picture: repe cmpsq? skip
    "488b73204c01ee488b3b4c01efb900020000f348a5"  # spare to memory: rep movsq
    "4981c500100000ebc4"  # next page
    "4883c32848ffcde975ffffff"  # next entry
    "4889e8415d415c5d5bc3"
)
X86_REST = (
    "535541544156514150"  # push rbx, rbp, r12, r14, rcx, r8
    "4881ec000200004889fb4889f54989d6"  # 512 bytes of stack; rbx = table; rbp = count; r14 = pagemap
    "4885ed0f84930000004531e4"  # next: none left? go to the end; r12 = 0
    "4c3b6308737e"  # page: past the end? next entry
    "41f7c4ffff03007523"  # every 64 pages:
    "4c89f74889e6ba000200004c8b134d01e249c1ea09b8110000000f05"  # pread64(pagemap, stack, 512, …)
    "3d000200007552"  # not all? next entry
    "4489e0c1e80925f8010000488b040448c1e83d83f804752e"  # only what is there (63), and no page of a file (61)
    "488b334c01e6488b7b104c01e7b900020000f348a77517"  # memory as in the picture: repe cmpsq? else skip
    "488b3b4c01e7be00100000ba04000000b81c0000000f05"  # madvise(page, 4096, MADV_DONTNEED)
    "4981c400100000e97cffffff"  # next page
    "4883c32848ffcde964ffffff"  # next entry
    "4c89f7b8030000000f05"  # end: close(pagemap)
    "4881c4000200005a58480fbae820504889e7be01000000b8070000000f05"  # poll({descriptor, POLLIN}, 1, timeout)
    "5a415e415c5d5bc3"
)
CODE = {"x86_64": tuple(bytes.fromhex(code) for code in (X86_COPY, X86_TAKE, X86_REST))}

NAME = "kubelet-py-shim-pages"
MAPPED = f"/memfd:{NAME} (deleted)"
PAGE = 4096
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
ENTRY = struct.Struct("=5Q")


class Pages:
    """The writable memory of this process and of what is forked from it."""

    def __init__(self, machine: str) -> None:
        """Changes nothing yet; `machine` as uname says."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.pthread_self.restype = ctypes.c_void_p
        self._thread: int = libc.pthread_self() or 0
        self._munmap = libc.munmap
        self._munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._mmap = libc.mmap
        self._mmap.restype = ctypes.c_void_p
        self._mmap.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
        ]  # fmt: skip
        self._mprotect = libc.mprotect
        self._mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._taken = False
        self._table = b""
        self._links: tuple[str, ...] = ()
        self._file = -1
        self._total = self._picture = self._spare = 0
        self._code: mmap.mmap | None = None
        if machine in CODE:
            self._copy, self._take, self._rest = self._load(CODE[machine])

    def _load(self, codes: tuple[bytes, ...]) -> list[Any]:
        """Machine code as callables; never writable and executable at once."""
        self._code = mmap.mmap(-1, PAGE, ANONYMOUS)
        address = start_of(self._code)
        kind = ctypes.CFUNCTYPE(
            ctypes.c_long, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long, ctypes.c_long, ctypes.c_long
        )
        functions: list[Any] = []
        for code in codes:
            functions.append(kind(address + self._code.tell()))
            self._code.write(code)
        self._protect(address, PAGE, mmap.PROT_READ | mmap.PROT_EXEC)
        return functions

    def _map(self, size: int, flags: int, file: int) -> int:
        """As mmap.mmap, which would keep a descriptor of the file open in every shim."""
        address = self._mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, file, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap: " + os.strerror(ctypes.get_errno()))
        return int(address)

    def _protect(self, address: int, size: int, protection: int) -> None:
        if self._mprotect(address, size, protection):
            raise OSError(ctypes.get_errno(), "mprotect: " + os.strerror(ctypes.get_errno()))

    def prepare(self) -> bool:
        """Decide what memory is meant; whether this processor can do it. Raises OSError."""
        if self._code is None:
            return False
        regions = movable(read_file("/proc/self/maps"), self._thread)
        total = sum(end - start for start, end in regions)
        self._file = os.memfd_create(NAME, os.MFD_CLOEXEC)
        os.posix_fallocate(self._file, 0, total)  # later there is nobody to tell that memory is short
        self._picture = self._map(total, mmap.MAP_SHARED, self._file)
        self._spare = self._map(total, ANONYMOUS, -1)
        self._total = total
        offset, table = 0, b""
        for start, end in regions:
            table += ENTRY.pack(start, end - start, self._picture + offset, offset, self._spare + offset)
            offset += end - start
        self._table = table
        # Where the kernel tells what is mapped between two addresses; only files have such a link.
        self._links = tuple(f"/proc/self/map_files/{start:x}-{end:x}" for start, end in regions)
        return True

    def pose(self) -> None:
        """In a fork of the process that has prepared: our memory is what the picture shows."""
        self._copy(self._table, len(self._links), 0, 0, 0)

    def take(self) -> None:
        """In the process that has prepared, after the pose: move our memory onto the picture's file, its
        contents unchanged. The process may have one thread. Raises OSError."""
        left = self._take(self._table, len(self._links), self._file, 0, 0)
        self._protect(self._picture, self._total, mmap.PROT_READ)
        self._munmap(self._spare, self._total)
        os.close(self._file)
        self._taken = not left
        if left:
            raise OSError(0, f"Could not map {left} of {len(self._links)} parts of memory onto a file")

    def rest(self, descriptor: int, timeout: int) -> None:
        """Give back every page that is as in the picture, then wait until `descriptor` can be read, but at
        most `timeout` milliseconds (-1: for ever).

        The waiting is part of it because the way back through Python writes to a hundred pages again. Returns
        at once when there is no picture, or malloc has unmapped a part since: what has taken its place is
        none of ours.
        """
        if not self._taken:
            return
        try:
            for link in self._links:
                if os.readlink(link) != MAPPED:
                    return
            pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        self._rest(self._table, len(self._links), pagemap, descriptor, timeout)


def start_of(memory: mmap.mmap) -> int:
    """Its address."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def movable(maps: bytes, thread: int) -> list[tuple[int, int]]:
    """(start, end) of the private writable mappings, without the stack and that of the thread's block.
    Neighbours are one, because the kernel will join them."""
    found: list[tuple[int, int]] = []
    for line in maps.splitlines():
        span, mode, _, _, _, *path = line.split(None, 5)
        start, end = (int(word, 16) for word in span.split(b"-"))
        if mode == b"rw-p" and path != [b"[stack]"] and not start <= thread < end:
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, end))
    return found
