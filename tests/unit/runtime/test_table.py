"""The child's table: what its words and pointers are, wherever it lies."""

from __future__ import annotations

import struct

import pytest

from runtime import clibrary
from runtime.kernel import Filter, Step
from runtime.machine import ENTRY_WORDS, RESULT
from runtime.table import HEAD_WORDS, Table

NUMBERS = {"execve": 59, "write": 1, "seccomp": 317}
BASE = 0x7000_0000_0000


def entry(image: bytes, index: int) -> tuple[int, ...]:
    return struct.unpack_from("=10Q", image, (HEAD_WORDS + ENTRY_WORDS * index) * 8)


def text(image: bytes, address: int) -> bytes:
    return image[address - BASE : image.index(b"\0", address - BASE)]


def test_numbers_flags_and_negative_arguments() -> None:
    table = Table([Step("write", (-100, b"x", 1), tolerate=True), Step("write", pass_result=True)], NUMBERS)
    image = table.image(BASE)
    number, fd, data, count, *rest = entry(image, 0)
    assert (number, fd, count, rest) == (1, 2**64 - 100, 1, [0, 0, 0, 1, 0, 0])
    assert image[data - BASE : data - BASE + 1] == b"x"
    assert entry(image, 1) == (1, 0, 0, 0, 0, 0, 0, 2, 0, 0)
    assert len(image) == table.size


def test_a_result_that_is_expected_is_the_upper_half_of_the_flags() -> None:
    steps = [Step("write", expected=1), Step("write", tolerate=True, expected=-11)]
    image = Table(steps, NUMBERS).image(BASE)
    assert [entry(image, number)[7] for number in (0, 1)] == [1 << 32, (-11 & 0xFFFFFFFF) << 32 | 1]


def test_texts_and_lists_of_texts_end_with_zeroes() -> None:
    image = Table([Step("execve", ("/bin/é", ("a", "bc"), ()))], NUMBERS).image(BASE)
    _, path, argv, envp, *_ = entry(image, 0)
    assert text(image, path) == "/bin/é".encode()
    first, second, end = struct.unpack_from("=3Q", image, argv - BASE)
    assert (text(image, first), text(image, second), end) == (b"a", b"bc", 0)
    assert struct.unpack_from("=Q", image, envp - BASE) == (0,)


def test_a_filter_is_handed_over_as_a_program() -> None:
    code = bytes(range(16))
    image = Table([Step("seccomp", (1, 0, Filter(code)))], NUMBERS).image(BASE)
    length, pointer = struct.unpack_from("=HxxxxxxQ", image, entry(image, 0)[3] - BASE)
    assert (length, image[pointer - BASE : pointer - BASE + 16]) == (2, code)


def test_results_name_the_step_that_failed() -> None:
    table = Table([Step("write"), Step("write")], NUMBERS)
    image = bytearray(table.image(BASE))
    struct.pack_into("=q", image, (HEAD_WORDS + RESULT) * 8, 5)
    struct.pack_into("=q", image, (HEAD_WORDS + ENTRY_WORDS + RESULT) * 8, -13)
    assert table.results(bytes(image), BASE) == ((5, -13), -1)
    struct.pack_into("=Q", image, 0, BASE + (HEAD_WORDS + ENTRY_WORDS) * 8)
    assert table.results(bytes(image), BASE) == ((5, -13), 1)


def test_what_no_system_call_takes_is_refused() -> None:
    with pytest.raises(TypeError, match="takes no float"):
        Table([Step("write", (1.5,))], NUMBERS)  # type: ignore[arg-type]


def test_functions_of_the_c_library_get_words_and_keep_errno() -> None:
    close = clibrary.libc("close", "ii")
    assert close(-1) == -1 and clibrary.errno() == 9
    with pytest.raises(OSError):
        clibrary.libc("no_such_function", "i")
    memory = clibrary.held(b"before\0")
    clibrary.write(clibrary.address(memory), b"after!")
    assert bytes(memory) == b"after!\0"
