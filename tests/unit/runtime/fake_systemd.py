"""A D-Bus server with a systemd behind it, on a unix socket, served by a thread of this process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.systemd import messages
from runtime.systemd.messages import Message, Variant

JOB = "/org/freedesktop/systemd1/job/7"
Answer = tuple[str, tuple[Any, ...]]


class Denied(Exception):
    """What a method answers instead: (D-Bus error name, text)."""


class FakeSystemd:
    """Records calls as (member, body). `answers` replaces a member's answer; `result` is how jobs end."""

    def __init__(self, folder: Path, *, result: str = "done", greeting: bytes = b"OK 1234\r\n") -> None:
        self.path = str(folder / "bus")
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.raw: list[bytes] = []
        self.authentication = b""
        self.result = result
        self.answers: dict[str, Callable[[tuple[Any, ...]], Answer]] = {}
        self.silent: set[str] = set()
        self._greeting = greeting
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._serial = 100
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def members(self) -> list[str]:
        return [member for member, _ in self.calls]

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                self._talk(client, lines)

    def _talk(self, client: socket.socket, lines: Any) -> None:
        self.authentication = lines.readline()
        client.sendall(self._greeting)
        if lines.readline() != b"BEGIN\r\n":
            return
        while head := lines.read(messages.HEADER):
            raw = head + lines.read(messages.length_of(head) - len(head))
            self.raw.append(raw)
            call = messages.decode(raw)
            member = call.text(messages.MEMBER)
            self.calls.append((member, call.body))
            if member in self.silent:
                continue
            try:
                signature, body = self._answer(member, call.body)
            except Denied as denied:
                name, text = denied.args
                fields = {messages.ERROR_NAME: name, messages.REPLY_SERIAL: call.serial}
                self._send(client, Message(messages.ERROR, 0, fields, (text,)), "s")
                continue
            if member in ("StartTransientUnit", "StopUnit"):
                # Another job's end comes first, and ours before the answer, as systemd may do it.
                self._removed(client, "/org/freedesktop/systemd1/job/6", "failed")
                self._removed(client, JOB, self.result)
            fields = {messages.REPLY_SERIAL: call.serial}
            self._send(client, Message(messages.RETURN, 0, fields, body), signature)

    def _answer(self, member: str, body: tuple[Any, ...]) -> Answer:
        if member in self.answers:
            return self.answers[member](body)
        if member == "Hello":
            return "s", (":1.5",)
        if member in ("StartTransientUnit", "StopUnit"):
            return "o", (JOB,)
        if member == "GetUnit":
            return "o", ("/org/freedesktop/systemd1/unit/x",)
        if member == "Get":
            values = {"ActiveState": "active", "ControlGroup": "/a.slice/x.scope"}
            return "v", (Variant("s", values[body[1]]),)
        return "", ()

    def _removed(self, client: socket.socket, job: str, result: str) -> None:
        fields = {
            messages.PATH: "/org/freedesktop/systemd1", messages.MEMBER: "JobRemoved",
            messages.INTERFACE: "org.freedesktop.systemd1.Manager",
        }  # fmt: skip
        self._send(client, Message(messages.SIGNAL, 0, fields, (7, job, "x.scope", result)), "uoss")

    def _send(self, client: socket.socket, message: Message, signature: str) -> None:
        self._serial += 1
        raw = messages.encode(Message(message.kind, self._serial, message.fields, message.body), signature)
        middle = len(raw) // 2  # in two pieces: nobody may rely on whole messages
        client.sendall(raw[:middle])
        client.sendall(raw[middle:])


def user() -> bytes:
    """Our user id as the authentication wants it."""
    return str(os.geteuid()).encode().hex().encode()
