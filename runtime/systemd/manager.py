"""systemd's manager, as far as cgroups need it: transient units started, changed and stopped.

Facts relied on (org.freedesktop.systemd1(5)): StartTransientUnit and StopUnit answer with a job at once, and
the signal JobRemoved says how that job ended; changed properties of a transient unit are kept over daemon-
reload; a unit that is not there is org.freedesktop.systemd1.NoSuchUnit.
"""

from __future__ import annotations

import os

from runtime.errors import SystemdError
from runtime.systemd.bus import Bus, Refusal, connect
from runtime.systemd.messages import Message, Variant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Property = tuple[str, Variant]

NAME, PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
MANAGER, UNIT = f"{NAME}.Manager", f"{NAME}.Unit"
PROPERTIES = "org.freedesktop.DBus.Properties"
EXISTS, MISSING = f"{NAME}.UnitExists", f"{NAME}.NoSuchUnit"
JOB_SECONDS = 60.0
RUNNING = "/run/systemd/system"  # sd_booted(3)


def is_running() -> bool:
    """Whether this machine was booted with systemd."""
    return os.path.isdir(RUNNING)


class Manager:
    """Each method opens a connection of its own, so threads need not share one."""

    def __init__(self, connect: Callable[[], Bus] = connect, seconds: float = JOB_SECONDS) -> None:
        self._connect = connect
        self._seconds = seconds

    def start(self, unit: str, properties: Sequence[Property]) -> None:
        """Makes and starts a transient unit; a failed one of that name is forgotten first.

        Raises Refusal (with EXISTS for one that is active), SystemdError.
        """
        what = f"start {unit}"
        with self._connect() as bus:
            try:
                self._job(bus, what, "StartTransientUnit", "ssa(sv)a(sa(sv))", _starting(unit, properties))
            except Refusal as refused:
                if refused.name != EXISTS or not self._forget(bus, unit):
                    raise
                self._job(bus, what, "StartTransientUnit", "ssa(sv)a(sa(sv))", _starting(unit, properties))

    def forget(self, unit: str) -> None:
        """Has systemd drop a unit that has failed, if one of that name is there. Raises SystemdError."""
        with self._connect() as bus:
            try:
                self._forget(bus, unit)
            except Refusal as refused:
                if refused.name != MISSING:
                    raise

    def _forget(self, bus: Bus, unit: str) -> bool:
        """Has systemd drop a unit that has failed. False when it is in use."""
        if self._active(bus, unit) != "failed":
            return False
        self._ask(bus, f"forget {unit}", "ResetFailedUnit", "s", (unit,))
        return True

    def set(self, unit: str, properties: Sequence[Property]) -> None:
        """Changes properties of a unit until the next boot. Raises Refusal, SystemdError."""
        with self._connect() as bus:
            body = (unit, True, list(properties))
            self._ask(bus, f"change {unit}", "SetUnitProperties", "sba(sv)", body)

    def stop(self, unit: str) -> None:
        """Stops a unit, and has systemd forget that it may have failed; one that is gone is fine.

        Raises Refusal, SystemdError.
        """
        with self._connect() as bus:
            try:
                self._job(bus, f"stop {unit}", "StopUnit", "ss", (unit, "replace"))
                self._ask(bus, f"forget {unit}", "ResetFailedUnit", "s", (unit,))
            except Refusal as refused:
                if refused.name != MISSING:
                    raise

    def cgroup(self, unit: str) -> str:
        """A running unit's cgroup, relative to the tree's root, "" if it has none. Raises Refusal."""
        kind = f"{NAME}.{unit.rpartition('.')[2].capitalize()}"
        with self._connect() as bus:
            return str(self._property(bus, unit, kind, "ControlGroup")).strip("/")

    def _active(self, bus: Bus, unit: str) -> str:
        return str(self._property(bus, unit, UNIT, "ActiveState"))

    def _property(self, bus: Bus, unit: str, interface: str, name: str) -> Any:
        what = f"look at {unit}"
        (path,) = self._ask(bus, what, "GetUnit", "s", (unit,))
        (found,) = bus.call(what, NAME, path, PROPERTIES, "Get", "ss", (interface, name))
        return found.value

    def _ask(
        self, bus: Bus, what: str, member: str, signature: str, body: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        return bus.call(what, NAME, PATH, MANAGER, member, signature, body)

    def _job(self, bus: Bus, what: str, member: str, signature: str, body: tuple[Any, ...]) -> None:
        bus.listen(MANAGER, "JobRemoved")
        self._ask(bus, what, "Subscribe", "", ())
        (job,) = self._ask(bus, what, member, signature, body)

        def ended(message: Message) -> bool:
            return message.text(3) == "JobRemoved" and len(message.body) == 4 and message.body[1] == job

        result = bus.signal(what, ended, self._seconds).body[3]
        if result != "done":
            unit = body[0]
            raise SystemdError(f"Could not {what}: systemd says {result} (see journalctl -u {unit})")


def _starting(unit: str, properties: Sequence[Property]) -> tuple[Any, ...]:
    return (unit, "replace", list(properties), [])
