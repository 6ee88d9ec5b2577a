"""Where the data of a sparse file belongs, as GNU tar writes it down.

Old GNU format: type `S`, four places in the header itself (at byte 386) and 21 in each block that follows
while the flag at its end is set. Pax format 0.1: `GNU.sparse.map` holds them all; 1.0: they stand as decimal
lines before the data, padded to a block. Format 0.0, which repeats a key, was soon given up: it is refused.

A map of a few bytes may announce petabytes; holes cost nothing on disk, but sizes are held to a limit, and
data must lie in order, not overlap, and be exactly as much as the archive has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runtime.images.errors import UnpackError

BLOCK = 512
_IN_HEADER, _IN_BLOCK = 4, 21
_MAX_PLACES = 100_000


@dataclass(frozen=True, slots=True)
class SparseMap:
    """The file's true size, and (offset, length) of each piece of data, in order."""

    size: int
    places: tuple[tuple[int, int], ...]

    def check(self, stored: int) -> SparseMap:
        """Raises UnpackError unless the pieces fit the file and add up to `stored` bytes."""
        end = total = 0
        for offset, length in self.places:
            if offset < end or length < 0:
                raise UnpackError("Could not read archive: the map of a sparse file overlaps itself")
            end, total = offset + length, total + length
        if end > self.size or total != stored:
            raise UnpackError("Could not read archive: the map of a sparse file does not fit its data")
        return self


def from_header(header: bytes, number: Callable[[bytes], int], block: Callable[[], bytes]) -> SparseMap:
    """The map of an `S` entry; `block` gives the next block of the archive."""
    places: list[tuple[int, int]] = []

    def collect(data: bytes, count: int) -> None:
        for index in range(count):
            offset, length = data[index * 24 : index * 24 + 12], data[index * 24 + 12 : index * 24 + 24]
            if offset[:1] != b"\0" and offset.strip(b" \0"):
                places.append((number(offset), number(length)))

    collect(header[386:], _IN_HEADER)
    more, blocks = header[482], 0
    while more:
        blocks += 1  # not the places: those may be empty
        if blocks * _IN_BLOCK > _MAX_PLACES:
            raise UnpackError(f"Could not read archive: a sparse file in more than {_MAX_PLACES} pieces")
        data = block()
        collect(data, _IN_BLOCK)
        more = data[504]
    return SparseMap(number(header[483:495]), tuple(places))


def from_pax(pax: Mapping[str, bytes], block: Callable[[], bytes]) -> SparseMap | None:
    """The map that pax records announce (None: the file is not sparse); `block` gives a block of its data.

    Raises UnpackError, ValueError for numbers that are none.
    """
    if (pax.get("GNU.sparse.major"), pax.get("GNU.sparse.minor")) == (b"1", b"0"):
        lines = _Lines(block)
        count = lines.number()
        if count > _MAX_PLACES:
            raise UnpackError(f"Could not read archive: a sparse file in more than {_MAX_PLACES} pieces")
        places = tuple((lines.number(), lines.number()) for _ in range(count))
        return SparseMap(_number(pax.get("GNU.sparse.realsize", b"")), places)
    if "GNU.sparse.map" in pax:
        numbers = [_number(text) for text in pax["GNU.sparse.map"].split(b",") if text]
        if len(numbers) % 2:
            raise UnpackError("Could not read archive: the map of a sparse file is cut short")
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return SparseMap(_number(pax.get("GNU.sparse.size", b"")), tuple(pairs))
    if any(key.startswith("GNU.sparse.") for key in pax):
        raise UnpackError("Could not read archive: a sparse file of an unknown format (not 0.1 or 1.0)")
    return None


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise ValueError(f"no number: {text[:20]!r}")
    return int(text)


class _Lines:
    """Decimal lines at the start of the data, block by block."""

    def __init__(self, block: Callable[[], bytes]) -> None:
        self._block, self._rest = block, b""

    def number(self) -> int:
        while b"\n" not in self._rest:
            if len(self._rest) > BLOCK:
                raise ValueError("no line")
            self._rest += self._block()
        text, _, self._rest = self._rest.partition(b"\n")
        return _number(text)
