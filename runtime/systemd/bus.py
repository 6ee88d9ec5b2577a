"""A connection to a D-Bus server on a unix socket: calls, their answers, and the signals in between.

One connection serves one errand and one thread. The system bus passes messages on between programs, and each
connection introduces itself to it with Hello; /run/systemd/private leads to systemd itself, is root's alone
and is there even where no bus runs. Facts relied on (D-Bus Specification, "Authentication Protocol"): a
client sends a zero byte, then AUTH EXTERNAL with its user id in hexadecimal digits, and messages follow
BEGIN; the server takes the user from the socket's credentials.
"""

from __future__ import annotations

import os
import socket
import time

from runtime.errors import SystemdError, errno_name
from runtime.systemd import messages
from runtime.systemd.messages import Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SYSTEM_BUS = "/run/dbus/system_bus_socket"
PRIVATE = "/run/systemd/private"
CALL_SECONDS = 25.0
MOST_DESCRIPTORS = 4
BUS = "org.freedesktop.DBus"


class Refusal(SystemdError):
    """The other side answered with an error. `name` is D-Bus's for it."""

    def __init__(self, what: str, name: str, text: str) -> None:
        super().__init__(f"Could not {what}: {text or name} ({name})")
        self.name = name


class Bus:
    """An open connection; a context manager. `direct`: it leads to one program, there is no bus to greet.
    `descriptors`: answers may bring some, which are kept in that list and are the caller's to close."""

    def __init__(
        self,
        path: str,
        *,
        direct: bool = False,
        seconds: float = CALL_SECONDS,
        descriptors: bool = False,
    ) -> None:
        self.descriptors: list[int] = []
        self._takes = descriptors
        self._seconds = seconds
        self._serial = 0
        self._direct = direct
        self._signals: list[Message] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(path)
            self._authenticate(path)
            if not direct:
                self.call("greet the system bus", BUS, "/org/freedesktop/DBus", BUS, "Hello")
        except OSError as error:
            self.close()
            reason = "no answer in time" if error.errno is None else errno_name(error.errno)
            raise SystemdError(f"Could not connect to {path}: {reason}", error.errno or 0) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _authenticate(self, path: str) -> None:
        user = str(os.geteuid()).encode().hex()
        self._socket.sendall(b"\0AUTH EXTERNAL " + user.encode() + b"\r\n")
        line = self._line()
        if not line.startswith(b"OK "):
            raise SystemdError(f"Could not connect to {path}: it answered {line[:80]!r} (root is needed)")
        if self._takes:
            self._socket.sendall(b"NEGOTIATE_UNIX_FD\r\n")
            if not self._line().startswith(b"AGREE_UNIX_FD"):
                raise SystemdError(f"Could not connect to {path}: it passes no descriptors")
        self._socket.sendall(b"BEGIN\r\n")

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\r\n") and len(line) < 1024:
            byte = self._socket.recv(1)  # one by one: what follows the line belongs to nobody else
            if not byte:
                break
            line += byte
        return line

    def call(
        self, what: str, destination: str, path: str, interface: str, member: str,
        signature: str = "", body: tuple[Any, ...] = (),
    ) -> tuple[Any, ...]:  # fmt: skip
        """Calls a method and waits for its answer. `what` it is for, in words, is for the error's text.

        Raises Refusal, SystemdError.
        """
        self._serial += 1
        fields = {
            messages.PATH: path, messages.INTERFACE: interface, messages.MEMBER: member,
            messages.DESTINATION: destination,
        }  # fmt: skip
        request = Message(messages.CALL, self._serial, fields, body)
        self._send(what, messages.encode(request, signature))
        deadline = time.monotonic() + self._seconds
        while True:
            answer = self._receive(what, deadline)
            if answer.kind == messages.SIGNAL:
                self._signals.append(answer)
            elif answer.fields.get(messages.REPLY_SERIAL) == self._serial:
                break
        if answer.kind == messages.ERROR:
            text = answer.body[0] if answer.body and isinstance(answer.body[0], str) else ""
            raise Refusal(what, answer.text(messages.ERROR_NAME), text)
        return answer.body

    def listen(self, interface: str, member: str) -> None:
        """Have these signals passed on to us, and forget those that came so far. Raises SystemdError."""
        self._signals.clear()
        if not self._direct:
            rule = f"type='signal',interface='{interface}',member='{member}'"
            self.call("listen on the system bus", BUS, "/org/freedesktop/DBus", BUS, "AddMatch", "s", (rule,))

    def signal(self, what: str, wanted: Callable[[Message], bool], seconds: float) -> Message:
        """The first signal that is `wanted`, come already or yet to come. Raises SystemdError when none does
        in time."""
        deadline = time.monotonic() + seconds
        while True:
            while self._signals:
                found = self._signals.pop(0)
                if wanted(found):
                    return found
            message = self._receive(what, deadline)
            if message.kind == messages.SIGNAL:
                self._signals.append(message)

    def _send(self, what: str, data: bytes) -> None:
        self._socket.settimeout(self._seconds)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise SystemdError(f"Could not {what}: {_reason(error)}", error.errno or 0) from error

    def _receive(self, what: str, deadline: float) -> Message:
        try:
            head = self._read(what, messages.HEADER, deadline)
            return messages.decode(head + self._read(what, messages.length_of(head) - len(head), deadline))
        except OSError as error:
            raise SystemdError(f"Could not {what}: {_reason(error)}", error.errno or 0) from error

    def _read(self, what: str, count: int, deadline: float) -> bytes:
        data = b""
        while len(data) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            chunk, opened = self._take(count - len(data))
            self.descriptors += opened
            if not chunk:
                raise SystemdError(f"Could not {what}: the bus hung up")
            data += chunk
        return data


    def _take(self, count: int) -> tuple[bytes, list[int]]:
        if not self._takes:
            return self._socket.recv(count), []
        data, opened, _, _ = socket.recv_fds(self._socket, count, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        return data, opened


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time (is systemd overloaded?)"
    return errno_name(error.errno or 0)


def system_bus() -> str:
    """The path of the system bus's socket."""
    given = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")
    if given.startswith("unix:path="):
        return given.removeprefix("unix:path=").partition(",")[0]
    return SYSTEM_BUS


def connect() -> Bus:
    """The system bus, or systemd's own socket where no bus runs. Raises SystemdError."""
    if os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "").startswith("unix:path="):
        return Bus(system_bus())
    if os.path.exists(SYSTEM_BUS) or not os.path.exists(PRIVATE):
        return Bus(SYSTEM_BUS)
    return Bus(PRIVATE, direct=True)
