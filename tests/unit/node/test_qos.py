"""The cgroups above the pods': their weights, and their protection where MemoryQoS is on."""

from __future__ import annotations

from typing import Any

import pytest

from kubelet_py.node.qos import QosCgroups
from kubelet_py.pods.admission import Totals
from runtime.errors import CgroupError


class Driver:
    """Writes are kept; a path in `broken` refuses them."""

    def __init__(self) -> None:
        self.names = self
        self.written: list[tuple[str, Any]] = []
        self.broken = ""

    def group(self, *names: str) -> str:
        return "/".join(names)

    def open(self, path: str) -> Cgroup:
        return Cgroup(self, path)

    create = open


class Cgroup:
    def __init__(self, driver: Driver, path: str) -> None:
        self.driver, self.path = driver, path

    def update(self, values: Any) -> None:
        if self.path == self.driver.broken:
            raise CgroupError("Could not write")
        self.driver.written.append((self.path.removeprefix("root/kubepods"), values))


@pytest.fixture
def driver() -> Driver:
    return Driver()


def qos(driver: Any, *, protect: bool = False) -> QosCgroups:
    made = QosCgroups(driver, "root", protect=protect)
    made.make()
    return made


def test_burstable_has_the_sum_of_its_pods_and_besteffort_the_least(driver: Driver) -> None:
    made = qos(driver)
    made.set_requests(Totals(burstable_cpu=1500, memory=5))
    made.set_requests(Totals(burstable_cpu=1500, memory=9))
    assert driver.written == [
        ("/besteffort", {"cpu": {"shares": 2}}),
        ("/burstable", {"cpu": {"shares": 2}}),
        ("/burstable", {"cpu": {"shares": 1536}}),
    ], "and nothing is written twice"


def test_with_memory_qos_all_above_a_protected_pod_are_protected(driver: Driver) -> None:
    made = qos(driver, protect=True)
    del driver.written[:]
    made.set_requests(Totals(burstable_cpu=1000, burstable_memory=100, memory=300))
    assert driver.written == [
        ("", {"unified": {"memory.min": "300"}}),
        ("/burstable", {"cpu": {"shares": 1024}, "unified": {"memory.min": "100"}}),
    ]


def test_what_could_not_be_written_is_written_the_next_time(driver: Driver) -> None:
    made = qos(driver)
    driver.broken = "root/kubepods/burstable"
    made.set_requests(Totals(burstable_cpu=1000))
    driver.broken = ""
    made.set_requests(Totals(burstable_cpu=1000))
    assert driver.written[-1] == ("/burstable", {"cpu": {"shares": 1024}})


def test_the_limit_of_all_pods_is_kubepods(driver: Driver) -> None:
    made = qos(driver)
    made.enforce({"memory": {"limit": 5}})
    assert driver.written[-1] == ("", {"memory": {"limit": 5}})
