"""Which images go, and when: the kubelet's rules as tables, on a disk and a clock of the test's own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kubelet_py.config import Config, from_document
from kubelet_py.errors import ConfigError
from kubelet_py.node.garbage import PERIOD, Disk, ImageGarbage, Policy, Use, removable
from runtime.images.errors import ImageInUse
from runtime.images.store import Image

GIB = 1 << 30


@dataclass
class Lab:
    """Images of 10 GiB each on a disk of 100 GiB."""

    names: list[str]
    used: set[str] = field(default_factory=set)
    other: int = 0
    leftovers: int = 0
    now: float = 1000.0
    events: list[str] = field(default_factory=list)

    def list(self) -> list[Image]:
        return [Image(name, (), (f"r.io/{name}@sha256:x",), 1, {}, ()) for name in self.names]

    def remove(self, name: str, *, in_use: Collection[str]) -> None:
        if name in in_use:
            raise ImageInUse(name)
        self.names.remove(name)

    def sweep(self) -> int:
        self.other, self.leftovers = self.other - self.leftovers, 0
        return 0

    def containers(self) -> list[Any]:
        # One by its id, the others by digest, as the agent writes down pulled images.
        return [
            SimpleNamespace(config=SimpleNamespace(image_id=name if i == 0 else f"r.io/{name}@sha256:x"))
            for i, name in enumerate(sorted(self.used))
        ]

    def disk(self) -> Disk:
        return Disk(100 * GIB, (100 - self.other - 10 * len(self.names)) * GIB)

    def garbage(self, policy: Policy) -> ImageGarbage:
        return ImageGarbage(
            cast(Any, self),
            self.containers,
            policy,
            lambda kind, reason, message: self.events.append(reason),
            disk=self.disk,
            clock=lambda: self.now,
        )


@pytest.mark.parametrize(
    ("used_percent", "excess"),
    [(84, 0), (85, 5), (90, 10), (100, 20)],
)
def test_the_disk_is_brought_from_the_high_threshold_to_the_low_one(used_percent: int, excess: int) -> None:
    assert Policy().excess(Disk(100, 100 - used_percent)) == excess


def test_a_high_threshold_of_100_turns_it_off() -> None:
    assert Policy(high_percent=100).excess(Disk(100, 0)) == 0


def test_an_empty_file_system_is_not_full() -> None:
    assert Policy().excess(Disk(0, 0)) == 0


def test_used_just_seen_and_just_used_images_stay_and_the_longest_unused_goes_first() -> None:
    uses = {
        "recent": Use(0, 90),
        "old": Use(0, 10),
        "never, older": Use(1, 0),
        "never": Use(2, 0),
        "running": Use(0, 100),
        "fresh": Use(95, 0),
        "this moment": Use(0, 100),
    }
    assert removable(uses, {"running"}, 100, 20) == ["never, older", "never", "old", "recent"]


def test_a_full_disk_loses_unused_images_until_the_low_threshold_and_no_more() -> None:
    lab = Lab(["a", "b", "c", "d", "e"], used={"a", "b"}, other=40)  # 90 % used
    garbage = lab.garbage(Policy())
    lab.now += 200
    lab.used = {"a", "b", "c"}
    garbage.collect()  # c is used now: later than d and e
    assert lab.names == ["a", "b", "c", "e"]
    assert garbage.collect() == []
    assert garbage.instruments[0].rows() == [({"reason": "space"}, 1)]
    assert lab.events == []


def test_what_killed_pulls_left_goes_before_any_image() -> None:
    lab = Lab(["a", "b", "c"], other=60, leftovers=15)
    garbage = lab.garbage(Policy())
    lab.now += 300
    assert garbage.collect() == [] and lab.leftovers == 0 and lab.events == []


def test_images_are_spared_until_they_are_old_enough() -> None:
    lab = Lab(["a", "b"], other=75)
    garbage = lab.garbage(Policy())
    assert garbage.collect() == [] and lab.events == ["FreeDiskSpaceFailed"]
    lab.now += 121
    assert garbage.collect() == ["a", "b"]  # 95 % → 75 %: one was not enough for 80 %
    assert lab.events == ["FreeDiskSpaceFailed"]


def test_the_node_tells_when_space_stays_short() -> None:
    lab = Lab(["a"], used={"a"}, other=85)
    garbage = lab.garbage(Policy())
    for _ in range(2):
        lab.now += 300
        garbage.collect()
    assert lab.names == ["a"]
    assert lab.events == ["FreeDiskSpaceFailed", "FreeDiskSpaceFailed", "ImageGCFailed"]


def test_images_unused_for_too_long_go_whatever_the_disk_says() -> None:
    lab = Lab(["a", "b"], used={"a"})
    garbage = lab.garbage(Policy(maximum_age=3600))
    lab.now += 3600
    assert garbage.collect() == []
    lab.now += 1
    assert garbage.collect() == ["b"]
    lab.used = set()
    lab.now += 3600
    assert garbage.collect() == []
    lab.now += 1
    assert garbage.collect() == ["a"]


def test_an_image_that_a_pod_took_up_in_the_meantime_stays() -> None:
    lab = Lab(["a", "b"], other=75)
    garbage = lab.garbage(Policy())
    lab.now += 200
    before = lab.remove

    def remove(name: str, *, in_use: Collection[str]) -> None:
        before(name, in_use=in_use)
        lab.used = {"b"}

    lab.remove = remove  # type: ignore[method-assign]
    assert garbage.collect() == ["a"] and lab.names == ["b"]


def test_it_looks_every_five_minutes_on_a_thread_of_its_own() -> None:
    lab = Lab(["a"], other=80)
    garbage = lab.garbage(Policy(minimum_age=0))
    lab.now += PERIOD - 1
    garbage.look()
    assert lab.names == ["a"]
    lab.now += 1
    garbage.look()
    thread = garbage._thread
    assert thread is not None
    thread.join(5)
    assert lab.names == []


@pytest.mark.parametrize(
    "document",
    [
        {"imageGCHighThresholdPercent": 70},
        {"imageGCHighThresholdPercent": 101},
        {"imageGCLowThresholdPercent": -1},
        {"imageMaximumGCAge": "1m"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"imageGC|imageM"):
        Policy.from_config(from_document(document))


def test_settings_have_upstreams_names_and_defaults() -> None:
    assert Policy.from_config(Config()) == Policy(85, 80, 120.0, 0.0)
    document = {
        "imageGCHighThresholdPercent": 60,
        "imageGCLowThresholdPercent": 50,
        "imageMinimumGCAge": "1m",
        "imageMaximumGCAge": "12h",
    }
    assert Policy.from_config(from_document(document)) == Policy(60, 50, 60.0, 43200.0)
