"""Calls to systemd and the wait for its jobs, against a server on a unix socket."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import SystemdError
from runtime.systemd import bus, messages
from runtime.systemd.bus import Bus, Refusal
from runtime.systemd.manager import EXISTS, MISSING, Manager
from runtime.systemd.messages import Variant

sys.path.insert(0, str(Path(__file__).parent))

from fake_systemd import JOB, Denied, FakeSystemd, user

PROPERTIES = [("MemoryMax", Variant("t", 1 << 24)), ("PIDs", Variant("au", [42]))]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[FakeSystemd]:
    fake = FakeSystemd(tmp_path)
    yield fake
    fake.close()


def manager(fake: FakeSystemd, *, direct: bool = False) -> Manager:
    return Manager(lambda: Bus(fake.path, direct=direct, seconds=20), seconds=20)


def refuse(fake: FakeSystemd, member: str, name: str, times: int = 1000) -> None:
    left = [times]

    def answer(body: tuple[object, ...]) -> tuple[str, tuple[object, ...]]:
        left[0] -= 1
        if left[0] < 0:
            return ("o", (JOB,)) if member in ("StartTransientUnit", "StopUnit") else ("", ())
        raise Denied(name, "because")

    fake.answers[member] = answer


def test_a_unit_is_started_and_its_job_awaited(systemd: FakeSystemd) -> None:
    manager(systemd).start("x.scope", PROPERTIES)
    assert systemd.authentication == b"\0AUTH EXTERNAL " + user() + b"\r\n"
    assert systemd.members() == ["Hello", "AddMatch", "Subscribe", "StartTransientUnit"]
    assert systemd.calls[-1][1] == ("x.scope", "replace", PROPERTIES, [])
    call = messages.decode(systemd.raw[-1])
    assert call.fields[messages.SIGNATURE] == "ssa(sv)a(sa(sv))"
    assert call.fields[messages.DESTINATION] == "org.freedesktop.systemd1"
    assert call.fields[messages.INTERFACE] == "org.freedesktop.systemd1.Manager"


def test_systemds_own_socket_is_not_greeted(systemd: FakeSystemd) -> None:
    manager(systemd, direct=True).start("x.scope", PROPERTIES)
    assert systemd.members() == ["Subscribe", "StartTransientUnit"]


def test_a_job_that_fails_is_an_error_that_says_where_to_look(tmp_path: Path) -> None:
    fake = FakeSystemd(tmp_path, result="failed")
    with pytest.raises(SystemdError, match=r"Could not start x\.scope: systemd says failed .*journalctl"):
        manager(fake).start("x.scope", [])
    fake.close()


def test_a_refusal_carries_systemds_words_and_name(systemd: FakeSystemd) -> None:
    refuse(systemd, "SetUnitProperties", "org.freedesktop.DBus.Error.PropertyReadOnly")
    with pytest.raises(Refusal, match=r"Could not change x\.scope: because") as caught:
        manager(systemd).set("x.scope", PROPERTIES)
    assert caught.value.name.endswith("PropertyReadOnly")


def test_properties_are_changed_until_the_next_boot(systemd: FakeSystemd) -> None:
    manager(systemd).set("x.scope", PROPERTIES)
    assert systemd.calls[-1] == ("SetUnitProperties", ("x.scope", True, PROPERTIES))


def test_a_failed_unit_of_the_name_is_forgotten_and_the_start_repeated(systemd: FakeSystemd) -> None:
    refuse(systemd, "StartTransientUnit", EXISTS, times=1)
    systemd.answers["Get"] = lambda body: ("v", (Variant("s", "failed"),))
    manager(systemd).start("x.scope", PROPERTIES)
    assert systemd.members().count("StartTransientUnit") == 2
    assert ("ResetFailedUnit", ("x.scope",)) in systemd.calls


def test_a_running_unit_of_the_name_is_left_alone(systemd: FakeSystemd) -> None:
    refuse(systemd, "StartTransientUnit", EXISTS)
    with pytest.raises(Refusal) as caught:
        manager(systemd).start("x.scope", PROPERTIES)
    assert caught.value.name == EXISTS
    assert "ResetFailedUnit" not in systemd.members()


def test_only_a_unit_that_has_failed_is_forgotten(systemd: FakeSystemd) -> None:
    for state, last in (("active", "Get"), ("failed", "ResetFailedUnit")):
        systemd.answers["Get"] = lambda body, state=state: ("v", (Variant("s", state),))
        manager(systemd).forget("x.scope")
        assert systemd.members()[-1] == last
    refuse(systemd, "GetUnit", MISSING, times=1)
    manager(systemd).forget("x.scope")
    refuse(systemd, "GetUnit", "org.freedesktop.DBus.Error.AccessDenied", times=1)
    with pytest.raises(Refusal, match=r"look at x\.scope"):
        manager(systemd).forget("x.scope")


def test_a_unit_is_stopped_and_forgotten(systemd: FakeSystemd) -> None:
    refuse(systemd, "ResetFailedUnit", MISSING)  # systemd has forgotten it by itself
    manager(systemd).stop("x.scope")
    assert ("StopUnit", ("x.scope", "replace")) in systemd.calls
    assert systemd.members()[-1] == "ResetFailedUnit"


def test_stopping_what_is_gone_is_fine_and_another_error_is_not(systemd: FakeSystemd) -> None:
    refuse(systemd, "StopUnit", MISSING)
    manager(systemd).stop("x.scope")
    refuse(systemd, "StopUnit", "org.freedesktop.DBus.Error.AccessDenied")
    with pytest.raises(Refusal, match="AccessDenied"):
        manager(systemd).stop("x.scope")


def test_where_a_unit_is(systemd: FakeSystemd) -> None:
    assert manager(systemd).cgroup("x.scope") == "a.slice/x.scope"
    assert systemd.calls[-1] == ("Get", ("org.freedesktop.systemd1.Scope", "ControlGroup"))


def test_a_bus_that_says_nothing_is_not_waited_for_for_ever(systemd: FakeSystemd) -> None:
    systemd.silent.add("SetUnitProperties")
    hasty = Manager(lambda: Bus(systemd.path, seconds=0.2))
    with pytest.raises(SystemdError, match=r"Could not change x\.scope: no answer in time"):
        hasty.set("x.scope", [])


def test_a_job_that_does_not_end_is_not_waited_for_for_ever(systemd: FakeSystemd) -> None:
    systemd.answers["StartTransientUnit"] = lambda body: ("o", ("/org/freedesktop/systemd1/job/9",))
    hasty = Manager(lambda: Bus(systemd.path, seconds=20), seconds=0.2)
    with pytest.raises(SystemdError, match=r"Could not start x\.scope: no answer in time"):
        hasty.start("x.scope", [])


def test_a_bus_that_does_not_know_us(tmp_path: Path) -> None:
    fake = FakeSystemd(tmp_path, greeting=b"REJECTED EXTERNAL\r\n")
    with pytest.raises(SystemdError, match="REJECTED"):
        Bus(fake.path, seconds=20)
    fake.close()


def test_no_bus_at_all(tmp_path: Path) -> None:
    with pytest.raises(SystemdError, match=r"Could not connect to .*none: ENOENT"):
        Bus(str(tmp_path / "none"))


def test_the_address_may_be_given(systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={systemd.path},guid=0")
    with bus.connect():
        assert systemd.members() == ["Hello"]
