"""A process of its own whose memory is moved onto a picture, and forks that write to some of it.

Run by test_memory.py. One fork tells what it has written to, the next gets that ahead. It prints the page
faults that writing there costs a fork with and one without that, and ends with 1 when a byte is another one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys

from runtime.pages import PAGE, SPAN, Pages

EVERY, COUNT = 3, 300


def faults_of(work: bytearray, places: range) -> int:
    """How many it takes to write to the places."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for place in places:
        work[place] ^= 0xFF
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def told_by(answer: bytes, line: int) -> None:
    """The end of a fork."""
    os.write(line, answer)
    os._exit(0)


def main() -> int:
    pages = Pages(platform.machine())
    memory = bytearray(os.urandom((COUNT + 1) * PAGE))
    first = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % PAGE
    places = range(first, first + COUNT * PAGE, EVERY * PAGE)
    pages.prepare()
    if (sitter := os.fork()) == 0:
        pages.pose()
        os._exit(0)
    os.waitpid(sitter, 0)
    pages.take()
    reader, writer = os.pipe()
    if os.fork() == 0:
        faults_of(memory, places)
        told_by(pages.written(), writer)
    spans = os.read(reader, 65536)
    os.wait()
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    wanted = {start + place for place in places}
    found = {page for span in SPAN.iter_unpack(spans) for page in range(span[0], sum(span), PAGE)}
    untouched = {start + place + PAGE for place in places}
    if not wanted <= found or untouched & found:
        return 1
    pages.expect(spans)
    content = bytes(memory)
    for ahead in (True, False):
        if os.fork() == 0:
            if ahead:
                pages.warm()
            if memory != content:
                told_by(b"-1", writer)
            told_by(str(faults_of(memory, places)).encode(), writer)
        print(os.read(reader, 16).decode(), flush=True)
        os.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
