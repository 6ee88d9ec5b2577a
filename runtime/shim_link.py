"""The agent's side of a pod's shim: where its folder and socket are, and requests over one long-lived link.

Unix socket paths are limited to 108 bytes, less than a sandbox's folder below a long --root has; so
sockets are bound and reached through /proc/self/fd/<folder>.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from runtime.errors import ShimError, StartError
from runtime.streams import EVENT, EXIT, REQUEST, RESPONSE, FrameError, FrameReader, Stream, pack

SOCKET = "shim.sock"
SHIM_LOST = "ShimLost"  # the kind of error that is ours


def listen(directory: str) -> socket.socket:
    """A listening socket at <directory>/shim.sock, for root only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = f"/proc/self/fd/{folder}/{SOCKET}"
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(128)
    finally:
        os.close(folder)
    return listener


def connect(directory: str) -> socket.socket:
    """A connection to the shim. Raises OSError (ENOENT, ECONNREFUSED) when there is none."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        client.connect(f"/proc/self/fd/{folder}/{SOCKET}")
    except OSError:
        client.close()
        raise
    finally:
        os.close(folder)
    return client


def call(directory: str, timeout: float, op: str, **values: Any) -> dict[str, Any]:
    """One request over a connection of its own. Raises OSError when there is no shim, ShimError otherwise."""
    stream = Stream(connect(directory))
    try:
        stream.settimeout(timeout)
        return ask(stream, op, **values)
    finally:
        stream.close()


def ask(stream: Stream, op: str, **values: Any) -> dict[str, Any]:
    """Send one request and wait for its response, on a stream that nobody else reads. Raises ShimError."""
    try:
        stream.send(REQUEST, json.dumps({"id": 1, "op": op, **values}).encode())
    except TimeoutError as error:
        raise ShimError(f"Could not {op}: the pod's shim did not answer in time") from error
    return _answer(stream, op)


def _answer(stream: Stream, op: str) -> dict[str, Any]:
    try:
        while True:
            frame = stream.receive()
            if frame is None:
                raise ShimError(f"Could not {op}: the pod's shim has gone")
            if frame[0] == RESPONSE:
                return checked(op, json.loads(frame[1]))
    except TimeoutError as error:
        raise ShimError(f"Could not {op}: the pod's shim did not answer in time") from error


def run(
    stream: Stream,
    patience: float,
    timeout: float | None,
    output: Callable[[int, bytes], None],
    container: str,
    argv: Sequence[str],
) -> dict[str, Any]:
    """Has a command run to its end, on a stream that nobody else reads: what the shim says of that end.
    `patience`: seconds for its start. `output` is called with its channel and bytes.

    With a timeout, which is the shim's to keep, the start is not waited for apart: that would be one more
    waking of a thread for each of hundreds of probes a second. Raises StartError, ShimError, TimeoutError.
    """
    values = {"container": container, "argv": list(argv), "stdout": True, "stderr": True}
    if timeout:
        stream.settimeout(patience + timeout)
        request = {"id": 1, "op": "exec", **values, "timeout": timeout, "quiet": True}
        stream.send(REQUEST, json.dumps(request).encode())
    else:
        stream.settimeout(patience)
        _started(lambda: ask(stream, "exec", **values))
        stream.settimeout(None)
    while (frame := stream.receive()) is not None:
        channel, payload = frame
        if channel == EXIT:
            ended: dict[str, Any] = json.loads(payload)
            return ended
        if channel == RESPONSE:  # an error, or a word of a shim that is older than we
            _started(lambda payload=payload: checked("exec", json.loads(payload)))  # type: ignore[misc]
        else:
            output(channel, payload)
    raise ShimError("Could not finish exec: the pod's shim has gone")


def _started(asked: Callable[[], dict[str, Any]]) -> None:
    try:
        asked()
    except ShimError as error:
        raise StartError(str(error)) from error


def greet(directories: Iterable[str]) -> list[socket.socket | OSError]:
    """Subscribe to the events of these shims, each on a connection that becomes a link; `greeted` waits for
    the answer. All are asked before the first is waited for, because each has to wake up to answer."""
    return [_greet(directory) for directory in directories]


def _greet(directory: str) -> socket.socket | OSError:
    try:
        connection = connect(directory)
    except OSError as error:
        return error
    try:
        Stream(connection).send(REQUEST, json.dumps({"id": 1, "op": "hello"}).encode())
    except OSError as error:
        connection.close()
        return error
    return connection


def greeted(connection: socket.socket | OSError, timeout: float) -> socket.socket:
    """The connection, once the shim has us as a subscriber. Raises OSError, ShimError."""
    if isinstance(connection, OSError):
        raise connection
    try:
        connection.settimeout(timeout)
        _answer(Stream(connection), "hello")
        connection.settimeout(None)
    except (OSError, ShimError):
        connection.close()
        raise
    return connection


def checked(op: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, unless it is an error."""
    if "error" in answer:
        raise ShimError(str(answer["error"]))
    return answer


class ShimLink:
    """One agent's long-lived connection. Requests from any thread; `read` from the event thread only."""

    def __init__(self, connection: socket.socket, on_event: Callable[[Mapping[str, Any]], None]) -> None:
        self._socket = connection
        self._on_event = on_event
        self._reader = FrameReader()
        self._numbers = itertools.count(1)
        self._pending: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._gone = False
        self.expected_to_end = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def expect(self, number: int) -> queue.SimpleQueue[dict[str, Any]]:
        """Announce that a response of that number will come, before it can."""
        answer: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self._lock:
            if self._gone:
                raise ShimError("Could not reach the pod's shim: it has gone")
            self._pending[number] = answer
        return answer

    def send(self, op: str, values: Mapping[str, Any]) -> queue.SimpleQueue[dict[str, Any]]:
        """Send a request without waiting."""
        number = next(self._numbers)
        answer = self.expect(number)
        self._send(op, {"id": number, "op": op, **values})
        return answer

    def _send(self, op: str, request: Mapping[str, Any]) -> None:
        frame = pack(REQUEST, json.dumps(request).encode())
        try:
            with self._lock:
                self._socket.sendall(frame)
        except OSError as error:
            raise ShimError(f"Could not {op}: the pod's shim has gone ({error.strerror})") from error

    def tell(self, op: str) -> None:
        """Send a request that is not answered. Raises ShimError."""
        self._send(op, {"op": op})

    def request(self, op: str, timeout: float, **values: Any) -> dict[str, Any]:
        """Send a request and wait; the answer may hold "error". Raises ShimError when none comes."""
        return self.wait(op, self.send(op, values), timeout)

    def wait(self, op: str, answer: queue.SimpleQueue[dict[str, Any]], timeout: float) -> dict[str, Any]:
        try:
            return answer.get(timeout=timeout)
        except queue.Empty:
            raise ShimError(f"Could not {op}: the pod's shim did not answer within {timeout:g} s") from None

    def receive(self, op: str, answer: queue.SimpleQueue[dict[str, Any]], timeout: float) -> dict[str, Any]:
        """As `wait`, but reads what comes. Only where nobody else does."""
        deadline = time.monotonic() + timeout
        readable = select.poll()
        readable.register(self._socket, select.POLLIN)
        while answer.empty():
            if not readable.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ShimError(f"Could not {op}: the pod's shim did not answer within {timeout:g} s")
            self.read()
        return answer.get()

    def read(self) -> bool:
        """Handle what has come; False when the shim is gone (every waiting request has failed then)."""
        try:
            data = self._socket.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        try:
            if data:
                for channel, payload in self._reader.feed(data):
                    self._dispatch(channel, json.loads(payload))
                return True
        except (FrameError, ValueError) as error:
            print(f"Could not understand shim: {error}", file=sys.stderr)
        self._fail_all()
        return False

    def hang_up(self) -> None:
        """Let the shim, and who reads from it, see the end. From any thread."""
        with contextlib.suppress(OSError):  # it has gone
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._fail_all()
        self._socket.close()

    def _dispatch(self, channel: int, message: dict[str, Any]) -> None:
        if channel == EVENT:
            self._on_event(message)
        elif channel == RESPONSE:
            with self._lock:
                answer = self._pending.pop(message["id"], None)
            if answer is not None:
                answer.put(message)

    def _fail_all(self) -> None:
        with self._lock:
            self._gone = True
            pending, self._pending = self._pending, {}
        for answer in pending.values():
            answer.put({"error": "the pod's shim has gone", "kind": SHIM_LOST})
