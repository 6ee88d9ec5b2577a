"""When a network namespace is made ahead, renewed and given up. Descriptors of /dev/null stand for them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from runtime.spare_network import CALM_SECONDS, FRESH_SECONDS, KEPT_SECONDS, SpareNetwork


class Maker:
    """Makes descriptors and remembers them; and is the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.made: list[int] = []
        self.refuses = False

    def make(self) -> int:
        if self.refuses:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.made.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        return self.made[-1]

    def clock(self) -> float:
        return self.now


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.fixture
def maker() -> Iterator[Maker]:
    maker = Maker()
    yield maker
    for descriptor in set(filter(is_open, maker.made)):
        os.close(descriptor)


@pytest.fixture
def spares(maker: Maker) -> SpareNetwork:
    return SpareNetwork(maker.make, maker.clock)


def test_nothing_is_made_before_the_first_pod(spares: SpareNetwork, maker: Maker) -> None:
    assert spares.next_step() is None and maker.made == []


def test_the_next_one_is_made_when_pods_have_stopped_coming(spares: SpareNetwork, maker: Maker) -> None:
    first = spares.take()
    assert maker.made == [first] and spares.next_step() == pytest.approx(CALM_SECONDS)
    maker.now += CALM_SECONDS / 2
    second = spares.take()  # a burst: made while the pod waits, as ever
    assert spares.next_step() == pytest.approx(CALM_SECONDS) and maker.made == [first, second]
    maker.now += 2 * CALM_SECONDS
    assert spares.next_step() == FRESH_SECONDS
    third = maker.made[-1]
    assert len(maker.made) == 3 and spares.take() == third, "it waited for this one"
    assert len(maker.made) == 3 and is_open(third)
    maker.now += 2 * CALM_SECONDS
    assert spares.next_step() == FRESH_SECONDS and maker.made[-1] != third, "each is for one"


def test_an_old_one_is_nobodys(spares: SpareNetwork, maker: Maker) -> None:
    spares.take()
    maker.now += 2 * CALM_SECONDS
    spares.next_step()
    spare = maker.made[-1]
    maker.now += FRESH_SECONDS - 1
    assert spares.next_step() == pytest.approx(1) and maker.made[-1] == spare
    maker.now += 1
    fds = len(os.listdir("/proc/self/fd"))
    assert spares.next_step() == FRESH_SECONDS
    assert len(maker.made) == 3 and len(os.listdir("/proc/self/fd")) == fds, "renewed, the old one is closed"
    maker.now += FRESH_SECONDS + 1  # whoever renews it is late
    spares.take()
    assert len(maker.made) == 4 and len(os.listdir("/proc/self/fd")) == fds, "made for the pod itself"


def test_a_node_to_which_no_pods_come_keeps_none(spares: SpareNetwork, maker: Maker) -> None:
    spares.take()
    maker.now += 2 * CALM_SECONDS
    spares.next_step()
    spare = maker.made[-1]
    maker.now += KEPT_SECONDS
    assert spares.next_step() is None and not is_open(spare)
    assert spares.next_step() is None and len(maker.made) == 2


def test_a_kernel_that_refuses_is_not_asked_again(spares: SpareNetwork, maker: Maker) -> None:
    spares.take()
    maker.refuses = True
    maker.now += 2 * CALM_SECONDS
    assert spares.next_step() is None and spares.next_step() is None
    with pytest.raises(OSError, match="No space"):
        spares.take()
    maker.refuses = False
    maker.now += 2 * CALM_SECONDS
    assert spares.next_step() == FRESH_SECONDS, "the next pod has asked for one again"


def test_closing_closes_the_spare(maker: Maker) -> None:
    spares = SpareNetwork(maker.make)
    spares.start()
    spares.take()
    spares.close()
    assert not any(is_open(spare) for spare in maker.made[1:])
    assert spares.next_step() is None
