"""logind's delay lock, against a logind of our own on a private socket; the handshake against dbus-daemon."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.node.logind import HEADER, Inhibitor, remove_drop_in
from runtime.errors import SystemdError
from runtime.systemd import messages
from runtime.systemd.bus import Bus, Refusal
from runtime.systemd.messages import Message, Variant

SECONDS = 30.0


class FakeLogind:
    """A bus with logind and systemd behind it. `limit`: InhibitDelayMaxUSec; SIGHUP has it read `drop_in`."""

    def __init__(self, folder: Path, drop_in: Path, *, limit: int = 5_000_000, deaf: bool = False) -> None:
        self.path, self.drop_in, self.limit, self.deaf = str(folder / "bus"), drop_in, limit, deaf
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.locks: list[int] = []  # our ends: readable when the other end was closed
        self.changed = threading.Condition()
        self.client: socket.socket | None = None
        self.inhibitors: list[Inhibitor] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        for inhibitor in self.inhibitors:
            inhibitor.stop()
        if self.client is not None:
            self.hang_up()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for lock in self.locks:
            os.close(lock)

    def hang_up(self) -> None:
        assert self.client is not None
        with contextlib.suppress(OSError):  # the other side was quicker
            self.client.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                try:
                    self._talk(client, lines)
                except OSError:
                    continue

    def _talk(self, client: socket.socket, lines: Any) -> None:
        for answer in (b"OK 1234\r\n", b"AGREE_UNIX_FD\r\n"):
            lines.readline()
            client.sendall(answer)
        assert lines.readline() == b"BEGIN\r\n"
        while head := lines.read(messages.HEADER):
            call = messages.decode(head + lines.read(messages.length_of(head) - len(head)))
            member = call.text(messages.MEMBER)
            signature, body, fds = self._answer(member)
            fields: dict[int, Any] = {messages.REPLY_SERIAL: call.serial}
            if fds:
                fields[messages.UNIX_FDS] = len(fds)
            raw = messages.encode(Message(messages.RETURN, 7, fields, body), signature)
            socket.send_fds(client, [raw], fds)
            for fd in fds:
                os.close(fd)
            with self.changed:
                self.client = client
                self.calls.append((member, call.body))
                self.changed.notify_all()

    def _answer(self, member: str) -> tuple[str, tuple[Any, ...], list[int]]:
        if member == "Inhibit":
            ours, theirs = os.pipe()
            self.locks.append(ours)
            return "h", (0,), [theirs]
        if member == "KillUnit" and not self.deaf:
            line = next(
                x for x in self.drop_in.read_text().splitlines() if x.startswith("InhibitDelayMaxSec=")
            )
            self.limit = int(line.partition("=")[2]) * 1_000_000
        if member == "Get":
            return "v", (Variant("t", self.limit),), []
        return ("s", (":1.5",), []) if member == "Hello" else ("", (), [])

    def prepare(self, coming: bool) -> None:
        fields = {
            messages.PATH: "/org/freedesktop/login1", messages.MEMBER: "PrepareForShutdown",
            messages.INTERFACE: "org.freedesktop.login1.Manager",
        }  # fmt: skip
        assert self.client is not None
        self.client.sendall(messages.encode(Message(messages.SIGNAL, 9, fields, (coming,)), "b"))

    def wait_for(self, member: str, times: int = 1) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.members().count(member) >= times, SECONDS), self.calls

    def members(self) -> list[str]:
        return [member for member, _ in self.calls]

    def let_go(self, index: int = 0, seconds: float = SECONDS) -> bool:
        """Whether a lock is closed within that time."""
        return bool(select.select([self.locks[index]], [], [], seconds)[0])


class Pods:
    """The shutdown of pods that end when the test says so."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.over, self.begun, self.cancelled = threading.Event(), threading.Event(), threading.Event()

    def begin(self) -> None:
        self.begun.set()

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.fixture
def drop_in(tmp_path: Path) -> Path:
    return tmp_path / "logind.conf.d" / "99-kubelet.conf"


@pytest.fixture
def logind(tmp_path: Path, drop_in: Path) -> Iterator[FakeLogind]:
    made = FakeLogind(tmp_path, drop_in)
    yield made
    made.close()


def started(logind: FakeLogind, pods: Pods) -> None:
    inhibitor = Inhibitor(pods, bus=logind.path, drop_in=logind.drop_in, again=0.05)
    logind.inhibitors.append(inhibitor)
    inhibitor.start()


def test_the_machine_waits_for_the_pods_and_then_no_longer(logind: FakeLogind) -> None:
    pods = Pods(4.0)
    started(logind, pods)
    logind.wait_for("Inhibit")
    wanted = ("shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay")
    assert ("Inhibit", wanted) in logind.calls
    assert not logind.let_go(seconds=0)
    assert "KillUnit" not in logind.members() and not logind.drop_in.exists()
    logind.prepare(True)
    assert pods.begun.wait(SECONDS)
    assert not logind.let_go(seconds=0), "the pods have not ended"
    pods.over.set()
    assert logind.let_go()


def test_a_cancelled_shutdown_takes_the_lock_again(logind: FakeLogind) -> None:
    pods = Pods(4.0)
    started(logind, pods)
    logind.wait_for("Inhibit")
    pods.over.set()
    logind.prepare(True)
    assert logind.let_go()
    logind.prepare(False)
    assert pods.cancelled.wait(SECONDS)
    logind.wait_for("Inhibit", 2)
    assert not logind.let_go(1, seconds=0)


def test_a_limit_that_is_too_short_is_raised_by_a_drop_in(logind: FakeLogind) -> None:
    started(logind, Pods(40.0))
    logind.wait_for("Inhibit")
    assert ("KillUnit", ("systemd-logind.service", "all", 1)) in logind.calls
    assert logind.drop_in.read_text() == f"{HEADER}[Login]\nInhibitDelayMaxSec=40\n"
    assert logind.limit == 40_000_000
    remove_drop_in(logind.drop_in)
    assert not logind.drop_in.exists()
    logind.drop_in.write_text("# somebody's\n[Login]\n")
    remove_drop_in(logind.drop_in)
    assert logind.drop_in.exists()


def test_a_limit_that_cannot_be_raised_is_said(tmp_path: Path, drop_in: Path) -> None:
    logind = FakeLogind(tmp_path, drop_in, deaf=True)
    inhibitor = Inhibitor(Pods(40.0), bus=logind.path, drop_in=drop_in)
    with Bus(logind.path, descriptors=True) as bus, pytest.raises(SystemdError, match="to 40 s: it is 5 s"):
        inhibitor.follow(bus)
    assert "Inhibit" not in logind.members()
    logind.close()


def test_a_bus_that_hangs_up_is_asked_again(logind: FakeLogind) -> None:
    started(logind, Pods(4.0))
    logind.wait_for("Inhibit")
    logind.hang_up()
    logind.wait_for("Inhibit", 2)
    assert logind.let_go(), "the first lock went with its connection"


def test_nothing_is_asked_where_no_grace_is_configured(logind: FakeLogind) -> None:
    started(logind, Pods(0.0))
    started(logind, Pods(4.0))
    logind.wait_for("Inhibit")
    assert logind.members().count("Hello") == 1


CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>custom</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
<allow own="*"/><allow user="*"/></policy>
</busconfig>"""


def test_a_real_bus_agrees_to_pass_descriptors(tmp_path: Path) -> None:
    daemon = shutil.which("dbus-daemon")
    if daemon is None:
        pytest.skip("dbus-daemon is not installed (apt-get install dbus)")
    config, path = tmp_path / "bus.conf", tmp_path / "socket"
    config.write_text(CONFIG.format(path=path))
    command = [daemon, f"--config-file={config}", "--nofork", "--nopidfile", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline().startswith("unix:path=")
            inhibitor = Inhibitor(Pods(4.0), bus=str(path), drop_in=tmp_path / "none")
            with Bus(str(path), descriptors=True) as bus, pytest.raises(Refusal, match="login1"):
                inhibitor.follow(bus)  # there is a bus, and no logind on it
        finally:
            process.terminate()
