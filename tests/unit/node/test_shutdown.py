"""Graceful shutdown: who ends when and with how much time, and that the groups wait for each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.config import from_document
from kubelet_py.errors import ConfigError
from kubelet_py.node.shutdown import Group, Shutdown, by_group, groups, state_of
from kubelet_py.pods.model import Ending, Object
from kubelet_py.pods.resources import SYSTEM_CRITICAL

TWO = {"shutdownGracePeriod": "30s", "shutdownGracePeriodCriticalPods": "10s"}
THREE = {
    "shutdownGracePeriodByPodPriority": [
        {"priority": 1000, "shutdownGracePeriodSeconds": 5},
        {"priority": 0, "shutdownGracePeriodSeconds": 60},
        {"priority": 2000000000, "shutdownGracePeriodSeconds": 2},
    ]
}


@dataclass
class Record:
    pod: Object
    finished: bool = False
    released: bool = False
    ends: bool = False
    ending: Ending | None = None


def record(name: str, priority: int, grace: int = 30) -> Record:
    spec = {"priority": priority, "terminationGracePeriodSeconds": grace}
    return Record({"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": spec})


def test_the_critical_share_comes_last() -> None:
    assert groups(from_document({})) == ()
    assert groups(from_document(TWO)) == (Group(0, 20.0), Group(SYSTEM_CRITICAL, 10.0))
    assert groups(from_document(THREE)) == (Group(0, 60.0), Group(1000, 5.0), Group(SYSTEM_CRITICAL, 2.0))


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"shutdownGracePeriodCriticalPods": "10s"}, "must not be longer"),
        ({"shutdownGracePeriod": "500ms"}, "0 or at least 1s"),
        (TWO | THREE, "excludes"),
        ({"shutdownGracePeriodByPodPriority": [{"priority": 1}]}, "needs the integers"),
        (
            {"shutdownGracePeriodByPodPriority": [{"priority": 1, "shutdownGracePeriodSeconds": -1}]},
            "must not be negative",
        ),
    ],
)
def test_senseless_periods_are_refused(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        from_document(document)


def test_each_pod_ends_with_the_highest_group_at_or_below_its_priority() -> None:
    pods = [record(str(priority), priority) for priority in (-5, 0, 999, 1000, 1999999999, 2000001000)]
    names = [
        [r.pod["metadata"]["name"] for r in group] for group in by_group(pods, groups(from_document(THREE)))
    ]
    assert names == [["-5", "0", "999"], ["1000", "1999999999"], ["2000001000"]]


class Host:
    """Pods that end after their grace, on a clock that only moves when it is waited for."""

    def __init__(
        self, tmp_path: Path, document: dict[str, Any], *records: Record, deaf: bool = False
    ) -> None:
        self.now, self.deaf = 0.0, deaf
        self.ended: list[tuple[str, float, float]] = []
        self.told: list[str] = []
        self.records = records
        self.shutdown = Shutdown(
            from_document(document),
            request=tmp_path / "request.json",
            records=lambda: records,
            end=self._end,
            changed=lambda: self.told.append("changed"),
            tell=lambda kind, reason, message: self.told.append(f"{kind} {reason} {message}"),
            clock=lambda: self.now,
            wall=lambda: 1000.0 + self.now,
            wait=self._wait,
        )

    def _end(self, record: Any, ending: Ending) -> None:
        assert ending.grace is not None
        record.ending = ending
        self.ended.append((record.pod["metadata"]["name"], self.now, ending.grace))

    def _wait(self, seconds: float) -> None:
        self.now = round(self.now + seconds, 3)
        for r in self.records:
            started = next((at for name, at, _ in self.ended if name == r.pod["metadata"]["name"]), None)
            if started is not None and r.ending is not None and r.ending.grace is not None and not self.deaf:
                r.released = r.released or self.now >= started + r.ending.grace


def test_the_critical_ones_end_when_the_others_have_ended(tmp_path: Path) -> None:
    host = Host(
        tmp_path, TWO, record("critical", SYSTEM_CRITICAL), record("slow", 0, 300), record("quick", 0, 3),
        record("now", 0, 0),
    )  # fmt: skip
    host.shutdown.run()
    assert host.ended == [
        ("slow", 0.0, 20.0),
        ("quick", 0.0, 3.0),
        ("now", 0.0, 0.0),
        ("critical", 20.0, 10.0),
    ]
    assert host.told == ["Normal Shutdown Shutdown manager detected shutdown event", "changed"]
    assert state_of(tmp_path / "request.json") == "terminated"
    moments = [instrument.rows() for instrument in host.shutdown.instruments]
    assert moments == [[({}, 1000.0)], [({}, 1000.0 + host.now)]] and host.now >= 20
    ending = host.records[0].ending
    assert ending is not None
    assert (ending.reason, ending.message) == (
        "Terminated", "Pod was terminated in response to imminent node shutdown."
    )  # fmt: skip


def test_pods_that_do_not_end_do_not_hold_up_the_others_for_ever(tmp_path: Path) -> None:
    host = Host(tmp_path, TWO, record("critical", SYSTEM_CRITICAL), record("deaf", 0, 300), deaf=True)
    host.shutdown.run()
    assert [name for name, _, _ in host.ended] == ["deaf", "critical"]
    assert 20.0 <= host.ended[1][1] <= 23.0


def test_without_configured_periods_each_pod_has_its_own(tmp_path: Path) -> None:
    host = Host(tmp_path, {}, record("critical", SYSTEM_CRITICAL, 4), record("a", 0, 300))
    host.shutdown.run()
    assert host.ended == [("a", 0.0, 300.0), ("critical", 300.0, 4.0)]


def test_nothing_was_asked_for_yet(tmp_path: Path) -> None:
    assert state_of(tmp_path / "none.json") == ""
