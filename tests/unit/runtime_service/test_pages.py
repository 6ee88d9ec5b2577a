"""What is read from /proc/self/maps, and the machine code against its listings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runtime.pages import CODE, SPAN, Pages, joined, movable

LISTINGS = Path(__file__).parent / "listings"
MAPS = b"""\
00400000-00421000 r--p 00000000 fe:00 260811                             /usr/bin/python3.11
00946000-00a85000 rw-p 00545000 fe:00 260811                             /usr/bin/python3.11
00a85000-00aca000 rw-p 00000000 00:00 0
2670c000-26874000 rw-p 00000000 00:00 0                                  [heap]
7f778b27e000-7f778b3b1000 rw-p 00000000 00:00 0
7f778b3b1000-7f778b3b2000 rw-s 00000000 00:01 77                         /memfd:other (deleted)
7f778b7b2000-7f778b7b4000 rw-p 00000000 00:00 0
7ffe2245c000-7ffe2247d000 rw-p 00000000 00:00 0                          [stack]
"""


def test_private_writable_mappings_are_movable_and_neighbours_are_one() -> None:
    assert movable(MAPS, thread=0x7F778B7B2740) == [
        (0x946000, 0xACA000),
        (0x2670C000, 0x26874000),
        (0x7F778B27E000, 0x7F778B3B1000),
    ]


def test_mapping_of_the_thread_is_movable_only_when_it_is_elsewhere() -> None:
    assert (0x7F778B7B2000, 0x7F778B7B4000) in movable(MAPS, thread=0x7F7700000000)


def test_unknown_processor_takes_no_picture() -> None:
    assert Pages("riscv64").prepare() is False


def test_without_a_picture_resting_returns_at_once() -> None:
    Pages("x86_64").rest(0, -1)


def test_neighbours_that_will_be_written_to_are_one_span() -> None:
    pages = Pages("riscv64")
    asked: list[tuple[int, int]] = []

    def madvise(start: int, length: int, advice: int) -> int:
        asked.append((start, length))
        return 0 if start < 0x9000 else -1

    pages._madvise = madvise  # type: ignore[assignment]
    pages.warm()
    assert asked == []
    written = (SPAN.pack(start, 0x1000) for start in (0x1000, 0x2000, 0x4000, 0x9000, 0xB000))
    pages.expect(joined(b"".join(written)))
    pages.warm()
    assert asked == [(0x1000, 0x2000), (0x4000, 0x1000), (0x9000, 0x1000)], "the kernel has refused the last"


@pytest.mark.parametrize("number, name", [(0, "copy"), (1, "take"), (2, "rest")])
def test_the_code_is_what_its_listing_says(number: int, name: str, tmp_path: Path) -> None:
    target = tmp_path / "object"
    try:
        subprocess.run(["as", "--64", LISTINGS / f"{name}-x86_64.s", "-o", target], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", target, tmp_path / "code"], check=True)
    except FileNotFoundError:
        pytest.skip("as is not installed")
    assert (tmp_path / "code").read_bytes() == CODE["x86_64"][number]
