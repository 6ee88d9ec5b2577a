"""Giving pages back: what keeps a shim, a Python process, below a megabyte.

A fork shares its memory with its parent until it writes, and Python writes to whatever it only looks at: a
reference count goes up and down again, and a page has been copied for nothing. What shims have become after
they have started something, though, is nearly the same in all of them. So the forkserver has one shim sit
for a picture (runtime/rehearsal.py): a file in memory (memfd) with the contents of all its writable pages at
rest. Then it moves its own memory onto that file, mapped privately, contents unchanged. In the shims forked
from it a written page is their own as ever; but where it looks as in the picture, madvise(MADV_DONTNEED)
drops it, and for a private file mapping that means: the file's page is seen instead (madvise(2)).

The other pages, some 220, differ from the picture in 23 of their 512 words each: a reference count, the
address of an object of this pod. When nothing happens for longer, only those words are kept, in the store,
and the pages are dropped, too; before the wait returns the words are back. So Python never sees another byte;
who reads the memory of a resting shim from outside (a debugger, py-spy) sees the picture. Getting those pages
again costs a page fault each, a millisecond in all, which a container that writes a line every second shall
not pay for every line.

Between comparing (or copying) a page and the last word's return nobody may write to it or look at it. Python
cannot promise that, so these loops, and the wait, are machine code; the process must have one thread and no
signal handlers, and the stack and the mapping that the kernel itself writes to (the thread's control block,
with rseq) are left alone. On processors nobody wrote the code for, nothing is given back.

The bytes were assembled with GNU as from the listings beside them; tests/unit/runtime_service/test_pages.py
reads them back.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct

from runtime.state import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# COPY(table, count), TAKE(table, count, fd), REST(table, count, pagemap, descriptor, timeout, store, full).
# An entry of the table is five 64-bit words: address, length, address in the picture, offset in its file,
# address of spare memory. COPY and TAKE return how many entries were left undone, REST what poll(2) did. REST
# looks only at pages that are our own, as /proc/self/pagemap says, and closes that. In the store it keeps
# runs of words that differ: address, number of words, the words. A page is left alone when its runs need more
# than half a page, or when one would begin at `full` or later: two pages before the end, or 0 for no store.
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
    "53554154415541564157"  # push rbx, rbp, r12 to r15
    "4c8b7c2438415151415048"  # r15 = full; push store, rcx, r8
    "81ec000200004889fb4889f54989d6"  # 512 bytes of stack; rbx = table; rbp = count; r14 = pagemap
    "4d89cd"  # r13 = where the store goes on
    "4885ed0f84e90000004531e4"  # next: none left? go to the end; r12 = 0
    "4c3b63080f83d0000000"  # page: past the end? next entry
    "41f7c4ffff03007527"  # every 64 pages:
    "4c89f74889e6ba000200004c8b134d01e249c1ea09b8110000000f05"  # pread64(pagemap, stack, 512, …)
    "3d000200000f85a0000000"  # not all? next entry
    "4489e0c1e80925f8010000488b040448c1e83d83f804757c"  # only what is there (63), and no page of a file (61)
    "488b334c01e6488b7b104c01e74d89e8b900020000"  # rsi = memory; rdi = picture; r8 = r13; 512 words
    "85c9f348a77438"  # run: equal to the end of the page? (repe cmpsq) drop it
    "4d39f8735b"  # full? skip
    "488d46f8498900498d50084983c010"  # its address; rdx = where its length belongs
    "488b46f84989004983c008"  # word: keep it
    "e30748ffc948a775ec"  # the page's last? else does the next one differ? word
    "498d40f84829d048c1e803488902ebc1"  # its length; run
    "4c89c04c29e8483d00080000771a"  # drop: more than 2,048 bytes for one page? skip
    "4d89c5488b3b4c01e7be00100000ba04000000b81c0000000f05"  # r13 = r8; madvise(page, 4096, MADV_DONTNEED)
    "4981c400100000e926ffffff"  # skip: next page
    "4883c32848ffcde90effffff"  # next entry
    "4c89f7b8030000000f05"  # end: close(pagemap)
    "4881c4000200005a58480fbae820504889e7be01000000b8070000000f05"  # poll({descriptor, POLLIN}, 1, timeout)
    "4889c35a5e"  # rbx = what it did; rsi = store
    "4c39ee730f48ad4889c748ad4889c1f348a5ebec"  # run: address, length, words back to memory: rep movsq
    "4889d8415f415e415d415c5d5bc3"
)
CODE = {"x86_64": tuple(bytes.fromhex(code) for code in (X86_COPY, X86_TAKE, X86_REST))}
MORE_ARGUMENTS = (0, 1, 5)  # of COPY, TAKE and REST, after table and count

NAME = "kubelet-py-shim-pages"
MAPPED = f"/memfd:{NAME} (deleted)"
PAGE = 4096
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
ENTRY = struct.Struct("=5Q")
SPAN = struct.Struct("=2Q")  # address, length
PRESENT, OF_FILE = 1 << 63, 1 << 61  # of a word of /proc/<pid>/pagemap
MADV_POPULATE_WRITE = 23
STORE_BYTES = 512 * 1024
LONGER_MS = 2000


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
        self._madvise = libc.madvise
        self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._expected = b""
        self._mprotect = libc.mprotect
        self._mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._taken = False
        self._table = b""
        self._links: tuple[str, ...] = ()
        self._file = -1
        self._total = self._picture = self._spare = 0
        self._code: mmap.mmap | None = None
        self._store: mmap.mmap | None = None
        if machine in CODE:
            self._copy, self._take, self._rest = self._load(CODE[machine])

    def _load(self, codes: tuple[bytes, ...]) -> list[Any]:
        """Machine code as callables; never writable and executable at once."""
        self._code = mmap.mmap(-1, PAGE, ANONYMOUS)
        address = start_of(self._code)
        functions: list[Any] = []
        for code, more in zip(codes, MORE_ARGUMENTS, strict=True):
            kind = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_long] * more)
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
        self._store = make_store()
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
        self._copy(self._table, len(self._links))

    def take(self) -> None:
        """In the process that has prepared, after the pose: move our memory onto the picture's file, its
        contents unchanged. The process may have one thread. Raises OSError."""
        left = self._take(self._table, len(self._links), self._file)
        self._protect(self._picture, self._total, mmap.PROT_READ)
        self._munmap(self._spare, self._total)
        os.close(self._file)
        self._taken = not left
        if left:
            raise OSError(0, f"Could not map {left} of {len(self._links)} parts of memory onto a file")

    def written(self) -> bytes:
        """In a fork of the process that has taken: SPANs of the memory that it has written to since. Raises
        OSError."""
        spans = b""
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start, length, *_ in ENTRY.iter_unpack(self._table):
                found = os.pread(pagemap, length // PAGE * 8, start // PAGE * 8)
                words = struct.unpack(f"={len(found) // 8}Q", found)
                own = [n for n, word in enumerate(words) if word & (PRESENT | OF_FILE) == PRESENT]
                for number in own:
                    spans += SPAN.pack(start + number * PAGE, PAGE)
        finally:
            os.close(pagemap)
        return joined(spans)

    def expect(self, spans: bytes) -> None:
        """What `written` has told of one fork will be written to by the others."""
        self._expected = spans

    def warm(self) -> None:
        """Get the pages that will be written to now, while nobody waits for them: each is a page fault less
        later. Where the kernel cannot do that (before 5.14) they come when they are needed, as ever."""
        for start, length in SPAN.iter_unpack(self._expected):
            if self._madvise(start, length, MADV_POPULATE_WRITE):
                return

    def rest(self, descriptor: int, timeout: int) -> None:
        """Give back every page that is as in the picture, and wait until `descriptor` can be read, but at
        most `timeout` milliseconds (-1: for ever); after LONGER_MS give back those that differ, too.

        The waiting is part of it because the way back through Python writes to a hundred pages again. Returns
        at once when there is no picture, or malloc has unmapped a part since: what has taken its place is
        none of ours.
        """
        if not self._taken or self._store is None:
            return
        first = min(timeout, LONGER_MS) if timeout >= 0 else LONGER_MS
        if self._wait(descriptor, first, 0, 0) == 0 and first != timeout:
            store = start_of(self._store)
            left = timeout - first if timeout >= 0 else -1
            self._wait(descriptor, left, store, store + STORE_BYTES - 2 * PAGE)

    def _wait(self, descriptor: int, timeout: int, store: int, full: int) -> int:
        """0 when the time is over."""
        try:
            for link in self._links:
                if os.readlink(link) != MAPPED:
                    return -1
            pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1
        return int(self._rest(self._table, len(self._links), pagemap, descriptor, timeout, store, full))


def make_store() -> mmap.mmap:
    """Nothing but addresses until the first rest. It must neither become nor join a huge page (2 MB)."""
    store = mmap.mmap(-1, STORE_BYTES, ANONYMOUS)
    try:
        store.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # as a kernel says that has no huge pages
            raise
    return store


def joined(spans: bytes) -> bytes:
    """SPANs, in order, of which neighbours are one."""
    found: list[tuple[int, int]] = []
    for start, length in SPAN.iter_unpack(spans):
        if found and sum(found[-1]) == start:
            start, before = found.pop()
            length += before
        found.append((start, length))
    return b"".join(SPAN.pack(*span) for span in found)


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
