"""A whole start as one table of system calls, in the file that it is kept in.

Set-up and child are one run of machine.py's instructions, without Python and its lock between two calls:
results go from one entry into the arguments of others by the entries' lists of addresses. All addresses are
for one place in memory, drawn at random, so the file is mapped there and nothing has to be put right; where
the place is taken, the start goes the other way (see prepared.py).

    byte 0              the values of "Program", as marshal has them
    from its page on    word 0: the entry that failed; entries from byte 64 on; what they point to
"""

from __future__ import annotations

import errno
import marshal
import os
import struct

from runtime.kernel import Region
from runtime.machine import CHECK, ENTRY_WORDS, RESULT
from runtime.records import Record
from runtime.table import HEAD_WORDS, Data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 2
HEAD = 4096
SCRATCH = 512  # struct stat, struct statfs and the like, looked at by the checks that follow
LOWEST, STEP = 0x2000_0000_0000, 1 << 24
_MASK = 0xFFFFFFFFFFFFFFFF
_ZEROES = tuple((0,) * (6 - count) for count in range(7))


class Slot(int):
    """A descriptor that is not there yet: the result of the entry of that number. It looks like one that is
    none of 0, 1 and 2."""

    FIRST = 1 << 20


class Given(int):
    """One of the values that are known when the program runs: the descriptors for standard input, output and
    error, then for a container's start those of runtime/prepared.py, and for an exec those of
    runtime/exec_program.py."""

    FIRST = 1 << 19

    @property
    def stream(self) -> int:
        return int(self) - self.FIRST


class Scratch(Record):
    """A place in the memory that system calls write to."""

    offset: int = 0


class Jump(Record):
    """The address of an entry, by its number."""

    entry: int


class Holed(Record):
    """A structure that gets a descriptor at an offset."""

    content: bytes
    offset: int
    slot: int


class Entry:
    """One system call, or a check, that the whole consists of."""

    __slots__ = ("arguments", "call", "expected", "flags")

    def __init__(self, call: str, arguments: tuple[object, ...], flags: int = 0, expected: int = 0) -> None:
        self.call = call
        self.arguments = arguments
        self.flags = flags
        self.expected = expected


class Program(Record):
    """`place` in memory and file. `given`: (number of the value, offset of a word) where what is Given goes.
    `child`: offset of the word that becomes its pid. `tolerated`: offsets of results that may be errors, and
    what could not be done then. `late` and `notes` as plan.Plan has them. `owner`: the user that pipes are
    given to. `joined`: the namespaces of pause that are joined, by their names below /proc/<pid>/ns. `held`:
    it waits at a gate. `oom`: OomFiles of its cgroup."""

    place: Region
    given: tuple[tuple[int, int], ...]
    child: int
    tolerated: tuple[tuple[int, str], ...]
    late: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    owner: int = 0
    joined: tuple[str, ...] = ()
    held: bool = False
    oom: tuple[str, str] = ("", "")


def entry_offset(number: int) -> int:
    """Where in a program the entry of that number is."""
    return (HEAD_WORDS + number * ENTRY_WORDS) * 8


def draw_address() -> int:
    """A place in memory where probably nothing is."""
    return LOWEST + int.from_bytes(os.urandom(2), "little") * STEP


class Assembly:
    """Entries put together for an address."""

    def __init__(self, entries: list[Entry], numbers: Mapping[str, int], address: int) -> None:
        self._address = address
        self._data = Data()
        self._base = address + entry_offset(len(entries))
        self._scratch = self._base + self._data.put(bytes(SCRATCH))
        self._stores: dict[int, list[int]] = {}
        self.given: list[tuple[int, int]] = []
        self._words = words = [0] * HEAD_WORDS
        self._put_in(entries, numbers)
        for number, places in self._stores.items():
            listed = self._data.put(struct.pack(f"={len(places) + 1}Q", *places, 0))
            words[HEAD_WORDS + number * ENTRY_WORDS + RESULT - 1] = self._base + listed

    def _put_in(self, entries: list[Entry], numbers: Mapping[str, int]) -> None:
        """Each entry's words. Hundreds with every container, so what most arguments are comes first."""
        words, base, place, stores = self._words, self._base, self._data.place, self._stores
        append, first = words.append, Slot.FIRST
        for entry in entries:
            append(numbers[entry.call] if entry.call else CHECK & _MASK)
            for argument in entry.arguments:
                kind = type(argument)
                if kind is int:
                    append(argument & _MASK)  # type: ignore[operator]
                elif kind is Slot:
                    word = self._address + len(words) * 8
                    stores.setdefault(argument - first, []).append(word)  # type: ignore[operator]
                    append(0)
                elif kind is str or kind is bytes:
                    append(base + place(argument))
                else:
                    append(self._argument(argument))
            words += _ZEROES[len(entry.arguments)]
            words += (entry.flags | (entry.expected & 0xFFFFFFFF) << 32, 0, 0)

    def _argument(self, argument: object) -> int:
        """The word of an argument of a rarer kind, or 0 where it comes later."""
        if isinstance(argument, Given):
            self.given.append((argument.stream, len(self._words) * 8))
            return 0
        if isinstance(argument, Scratch):
            return self._scratch + argument.offset
        if isinstance(argument, Jump):
            return self._address + entry_offset(argument.entry)
        if isinstance(argument, Holed):
            place = self._base + self._data.put(argument.content)
            word = place + argument.offset
            if isinstance(argument.slot, Slot):
                self._stores.setdefault(argument.slot - Slot.FIRST, []).append(word)
            elif isinstance(argument.slot, Given):
                self.given.append((argument.slot.stream, word - self._address))
            return place
        return self._base + self._data.place(argument)

    def image(self) -> bytes:
        """What belongs at the address."""
        return struct.pack(f"={len(self._words)}Q", *self._words) + self._data.at(self._base)


def save(program: Program, image: bytes | bytearray, path: str) -> None:
    """Whole or not at all. Raises OSError."""
    place = program.place
    values = (
        VERSION, (place.address, place.size, place.offset), program.given, program.child, program.tolerated,
        program.late, program.notes, program.owner, program.joined, program.held, program.oom,
    )  # fmt: skip
    head = marshal.dumps(values)
    if len(head) > HEAD:
        raise OSError(errno.E2BIG, "the program's head is too long")
    new = f"{path}.new"
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(file, head, 0)
        os.pwrite(file, image, place.offset)
        os.ftruncate(file, place.offset + place.size)
    finally:
        os.close(file)
    os.rename(new, path)


def load(file: int) -> Program | None:
    """From an open file; None if it is of another version of ours."""
    values = marshal.loads(os.pread(file, HEAD, 0))
    if values[0] != VERSION:
        return None
    _, place, *rest = values
    return Program(Region(*place), *rest)
