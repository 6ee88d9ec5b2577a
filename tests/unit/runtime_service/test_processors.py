"""Which processors a shim may run on again, when it has been kept off its agent's."""

from __future__ import annotations

import pytest

from runtime.forkserver import allowed_processors


@pytest.mark.parametrize(
    ("mask", "numbers"),
    [
        (b"3", (0, 1)),
        (b"00000000,0000000a", (1, 3)),
        (b"1,00000001", (0, 32)),
        (b"ff", tuple(range(8))),
    ],
)
def test_all_that_the_kernel_would_ever_give_it(mask: bytes, numbers: tuple[int, ...]) -> None:
    status = b"Name:\tpython3\nThreads:\t1\nCpus_allowed:\t" + mask + b"\nCpus_allowed_list:\t0-7\n"
    assert allowed_processors(status) == numbers
