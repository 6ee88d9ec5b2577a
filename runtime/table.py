"""The child's system calls as one piece of memory, in the shape that machine.py's instructions work off.

    word 0            address of the entry that failed, 0 if none did
    from byte 64 on   entries of ten words (see machine.py)
    behind them       what their arguments point to: texts, argv, structures, the seccomp filter

Pointers are addresses in that memory, which is mapped when its size is known; until then they are noted.
"""

from __future__ import annotations

import errno
import os
import struct

from runtime import clibrary
from runtime.kernel import Filter, Step
from runtime.machine import ENTRY_WORDS, PASS_RESULT, RESULT, TOLERATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEAD_WORDS = 8
REGION = 4 << 20  # arguments and environment may be 2 MiB, as execve has it
_MASK = 0xFFFFFFFFFFFFFFFF
_ZEROES = tuple([0] * count for count in range(7))


class Data:
    """What arguments point to. An address in it is known when it has one itself: `pointers` are the places
    where one goes, and the place that it points to."""

    def __init__(self) -> None:
        self.memory = bytearray()
        self.pointers: list[tuple[int, int]] = []
        self._texts: dict[str, int] = {}

    def place(self, argument: object) -> int:
        """Where an argument is now. Raises TypeError."""
        if type(argument) is str:
            place = self._texts.get(argument)
            if place is None:
                place = self._texts[argument] = self.put(os.fsencode(argument) + b"\0")
            return place
        if isinstance(argument, Filter):
            program = self.put(bytes(argument))
            place = self.put(struct.pack("=HxxxxxxQ", len(argument) // 8, 0))
            self.pointers.append((place + 8, program))
            return place
        if isinstance(argument, bytes):
            return self.put(argument)
        if isinstance(argument, tuple):
            texts = [self.place(text) for text in argument]
            place = self.put(bytes(8 * (len(texts) + 1)))
            self.pointers += [(place + 8 * index, text) for index, text in enumerate(texts)]
            return place
        raise TypeError(f"a system call takes no {type(argument).__name__}")

    def put(self, raw: bytes) -> int:
        """Adds bytes, which begin at a whole word."""
        memory = self.memory
        place = len(memory)
        memory += raw
        if rest := len(memory) % 8:
            memory += bytes(8 - rest)
        return place

    def at(self, base: int) -> bytes:
        """The memory, for an address."""
        for index, place in self.pointers:
            struct.pack_into("=Q", self.memory, index, base + place)
        return bytes(self.memory)


class Table:
    """`steps` put together. `size` in bytes; `image` is its content once it has an address."""

    def __init__(self, steps: Sequence[Step], numbers: Mapping[str, int]) -> None:
        self._words: list[int] = [0] * HEAD_WORDS
        self._data = Data()
        # Where an address has to be put in, and the place in `_data` that it points to.
        self._in_words: list[tuple[int, int]] = []
        self._count = len(steps)
        words = self._words
        for step in steps:
            words.append(numbers[step.call])
            for argument in step.arguments:
                if type(argument) is int:
                    words.append(argument & _MASK)
                else:
                    self._in_words.append((len(words), self._data.place(argument)))
                    words.append(0)
            words += _ZEROES[6 - len(step.arguments)]
            flags = (TOLERATE if step.tolerate else 0) | (PASS_RESULT if step.pass_result else 0)
            words += (flags | (step.expected & 0xFFFFFFFF) << 32, 0, 0)
        self.size = len(words) * 8 + self.room

    @property
    def room(self) -> int:
        """Bytes behind the entries."""
        return len(self._data.memory)

    def image(self, address: int) -> bytes:
        """The content for memory at `address`."""
        words, data = self.parts(address + len(self._words) * 8)
        return words + data

    def parts(self, base: int) -> tuple[bytes, bytes]:
        """Head and entries, and what they point to, which will be at `base`."""
        words = self._words
        for index, place in self._in_words:
            words[index] = base + place
        return struct.pack(f"={len(words)}Q", *words), self._data.at(base)

    def results(self, image: bytes, address: int) -> tuple[tuple[int, ...], int]:
        """From the memory afterwards: what each step returned, and the number of the one that failed or
        -1."""
        words = struct.unpack_from(f"={HEAD_WORDS + self._count * ENTRY_WORDS}q", image)
        failed = (words[0] - address - HEAD_WORDS * 8) // (ENTRY_WORDS * 8) if words[0] else -1
        return words[HEAD_WORDS + RESULT :: ENTRY_WORDS], failed


class Talk:
    """A table that grows while its child waits, in a region of memory that stays shared with it: new entries
    are written behind those it has done, what they point to at the region's other end."""

    def __init__(self, address: int, steps: Sequence[Step], numbers: Mapping[str, int]) -> None:
        self.steps: list[Step] = []
        self._address = address
        self._numbers = numbers
        self._end = address + REGION
        self._closed = 0
        self.add(steps)

    def _entry(self, index: int) -> int:
        return self._address + (HEAD_WORDS + index * ENTRY_WORDS) * 8

    def add(self, steps: Sequence[Step]) -> None:
        """Steps to follow those that are there. Raises OSError when the region is full."""
        table = Table(steps, self._numbers)
        place, end = self._entry(len(self.steps)), self._end - table.room
        if self._entry(len(self.steps) + len(steps)) > end:
            raise OSError(errno.E2BIG, "arguments, environment and mounts are too much for one container")
        words, data = table.parts(end)
        clibrary.write(end, data)
        clibrary.write(place, words[HEAD_WORDS * 8 :])
        self._end = end
        self.steps += steps

    def result(self, index: int) -> int:
        """Of one step; 0 before it was made."""
        return clibrary.word(self._entry(index) + 8 * RESULT)

    def failed(self) -> bool:
        """Whether a step has ended the child."""
        return clibrary.word(self._address) != 0

    def results(self) -> tuple[tuple[int, ...], int]:
        """What each step returned, and the number of the one that failed or -1."""
        failed = clibrary.word(self._address)
        index = (failed - self._entry(0)) // (ENTRY_WORDS * 8) if failed else -1
        return tuple(self.result(number) for number in range(len(self.steps))), index

    def close_leftovers(self) -> None:
        """Descriptors that the child has copied to a number of ours, while it shared our table."""
        for index in range(self._closed, len(self.steps) - 1):
            if self.steps[index].pass_result and self.steps[index + 1].call == "dup3":
                os.close(self.result(index))
        self._closed = len(self.steps)
