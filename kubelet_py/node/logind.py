"""Holds the machine's shutdown until the pods have ended: a delay lock of systemd-logind.

logind tells by the signal PrepareForShutdown(true) that the machine is about to go down, and waits for
whoever holds a lock of mode "delay", at most InhibitDelayMaxSec. The lock is a descriptor; closing it lets
go. Where that time is too short for the configured grace periods it is raised by a drop-in, read on SIGHUP.
Source: upstream's pkg/kubelet/nodeshutdown (manager and systemd/inhibit_linux.go).
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Protocol

from runtime.errors import SystemdError
from runtime.systemd.bus import Bus, system_bus
from runtime.systemd.messages import Message, Variant

log = logging.getLogger(__name__)

LOGIND, PATH, MANAGER = "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"
SYSTEMD, SYSTEMD_PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
PROPERTIES = "org.freedesktop.DBus.Properties"
DROP_IN = Path("/etc/systemd/logind.conf.d/99-kubelet.conf")
HEADER = "# Written by kubelet-py: its pods may take so long to end.\n"
SIGHUP = 1
AGAIN_SECONDS = 5.0
TRIES, PAUSE = 20, 0.1
FOR_EVER = 1e6


class Ending(Protocol):
    """The shutdown of the node's pods."""

    over: threading.Event

    @property
    def seconds(self) -> float: ...
    def begin(self) -> None: ...
    def cancel(self) -> None: ...


class Inhibitor:
    """`start` does nothing where no grace periods are configured, or the machine has no system bus."""

    def __init__(
        self,
        shutdown: Ending,
        *,
        bus: str | None = None,
        drop_in: Path = DROP_IN,
        again: float = AGAIN_SECONDS,
    ) -> None:
        self._shutdown, self._drop_in, self._again = shutdown, drop_in, again
        self._path = bus or system_bus()
        self._stopping = threading.Event()
        self._lock = -1

    def start(self) -> None:
        if not self._shutdown.seconds:
            return
        if not os.path.exists(self._path):
            log.info("Went on without logind's delay lock: there is no system bus at %s", self._path)
            return
        threading.Thread(target=self._run, name="logind", daemon=True).start()

    def stop(self) -> None:
        """Do not connect again; the lock goes with the process."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with Bus(self._path, descriptors=True) as bus:
                    self.follow(bus)
            except SystemdError as error:
                log.warning("Lost logind error=%s", error)
            self._stopping.wait(self._again)

    def follow(self, bus: Bus) -> None:
        """Hold the lock and wait for shutdowns until the bus is gone. Raises SystemdError."""
        bus.listen(MANAGER, "PrepareForShutdown")
        self._raise_limit(bus)
        self._take(bus)
        try:
            while True:
                what = "wait for the machine's shutdown"
                if _told(bus.signal(what, _is_ours, FOR_EVER)):
                    log.info("Heard of the machine's shutdown")
                    self._shutdown.begin()
                    self._shutdown.over.wait(self._shutdown.seconds + AGAIN_SECONDS)
                    self._let_go()
                else:
                    self._shutdown.cancel()
                    if self._lock < 0:
                        self._take(bus)
        finally:
            self._let_go()

    def _raise_limit(self, bus: Bus) -> None:
        wanted, allowed = self._shutdown.seconds, _limit(bus)
        if wanted <= allowed:
            return
        try:
            self._drop_in.parent.mkdir(parents=True, exist_ok=True)
            self._drop_in.write_text(f"{HEADER}[Login]\nInhibitDelayMaxSec={wanted:.0f}\n")
        except OSError as error:
            raise SystemdError(f"Could not write {self._drop_in}: {error.strerror}") from error
        arguments = ("systemd-logind.service", "all", SIGHUP)
        what, manager = "have logind read its settings", f"{SYSTEMD}.Manager"
        bus.call(what, SYSTEMD, SYSTEMD_PATH, manager, "KillUnit", "ssi", arguments)
        for _ in range(TRIES):
            allowed = _limit(bus)
            if allowed >= wanted:
                log.info("Raised logind's InhibitDelayMaxSec seconds=%g", allowed)
                return
            self._stopping.wait(PAUSE)
        raise SystemdError(
            f"Could not raise logind's InhibitDelayMaxSec to {wanted:g} s: it is {allowed:g} s (does another "
            f"file than {self._drop_in} set it?)"
        )

    def _take(self, bus: Bus) -> None:
        arguments = ("shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay")
        bus.call("take logind's delay lock", LOGIND, PATH, MANAGER, "Inhibit", "ssss", arguments)
        if not bus.descriptors:
            raise SystemdError("Could not take logind's delay lock: no descriptor came with the answer")
        self._lock = bus.descriptors.pop()
        log.info("Took logind's delay lock seconds=%g", self._shutdown.seconds)

    def _let_go(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _limit(bus: Bus) -> float:
    """InhibitDelayMaxSec as logind has it, in seconds."""
    name = (MANAGER, "InhibitDelayMaxUSec")
    answer = bus.call("ask for logind's InhibitDelayMaxUSec", LOGIND, PATH, PROPERTIES, "Get", "ss", name)
    found = answer[0]
    return int(found.value if isinstance(found, Variant) else found) / 1_000_000


def _is_ours(message: Message) -> bool:
    from runtime.systemd import messages

    return message.text(messages.MEMBER) == "PrepareForShutdown" and message.text(messages.PATH) == PATH


def _told(message: Message) -> bool:
    return bool(message.body and message.body[0])


def remove_drop_in(drop_in: Path = DROP_IN) -> None:
    """Remove the file, if it is ours."""
    try:
        if drop_in.read_text().startswith(HEADER):
            drop_in.unlink()
    except FileNotFoundError:
        return
