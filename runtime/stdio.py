"""The non-blocking ends of a process's stdio, and the shim's side of a client's connection.

All three obey one rule: whoever reads slowly is never waited for. An exec whose client is slow is simply not
read (its process blocks in write, as on a slow terminal); a log is written at once; an attached client that
falls more than BEHIND bytes back is dropped, because the container has other readers.
"""

from __future__ import annotations

import os
import socket

from runtime.loop import READ, WRITE
from runtime.streams import FrameError, FrameReader, pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.loop import Loop

CHUNK = 65536
FULL = 256 * 1024
BEHIND = 4 * 1024 * 1024
DRAIN = 1024 * 1024


class Output:
    """The read end of stdout or stderr, or a terminal's master; owns the descriptor.

    `deliver(data)` is called with each piece, `ended()` once, when no writer is left.
    """

    def __init__(
        self, loop: Loop, descriptor: int, deliver: Callable[[bytes], None], ended: Callable[[], None]
    ) -> None:
        os.set_blocking(descriptor, False)
        self._loop = loop
        self.descriptor = descriptor
        self._deliver = deliver
        self._ended = ended
        self._paused = False
        loop.watch(descriptor, self._ready)

    def pause(self) -> None:
        """Leave what comes in the pipe. Forgets the descriptor, as a hang-up would wake epoll for ever."""
        if self.descriptor >= 0 and not self._paused:
            self._paused = True
            self._loop.forget(self.descriptor)

    def resume(self) -> None:
        if self.descriptor >= 0 and self._paused:
            self._paused = False
            self._loop.watch(self.descriptor, self._ready)

    def drain(self) -> None:
        """Deliver what is in the pipe now: called when the process has ended. At most DRAIN bytes."""
        left = DRAIN
        while self.descriptor >= 0 and left > 0:
            size = self._read()
            if size == 0:
                return
            left -= size

    def close(self) -> None:
        """Stop reading; `ended` is called unless it was before."""
        if self.descriptor < 0:
            return
        if not self._paused:
            self._loop.forget(self.descriptor)
        os.close(self.descriptor)
        self.descriptor = -1
        self._ended()

    def _ready(self, mask: int) -> None:
        self._read()

    def _read(self) -> int:
        try:
            data = os.read(self.descriptor, CHUNK)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""  # EIO is how a terminal says that nobody holds its other side
        if not data:
            self.close()
            return 0
        self._deliver(data)
        return len(data)


class Input:
    """The write end of stdin, or a terminal's master; owns the descriptor.

    `drained()` is called when everything that had to wait has been written.
    """

    def __init__(self, loop: Loop, descriptor: int, drained: Callable[[], None] | None = None) -> None:
        os.set_blocking(descriptor, False)
        self._loop = loop
        self._descriptor = descriptor
        self._pending = bytearray()
        self._ending = False
        self._watched = False
        self.drained = drained

    @property
    def full(self) -> bool:
        """Whether the process is so far behind that its client should wait."""
        return len(self._pending) > FULL

    def write(self, data: bytes) -> None:
        """Pass `data` on, now or later. Ignored when the process has closed its stdin or ended."""
        if self._descriptor < 0 or self._ending:
            return
        self._pending += data
        self._flush()

    def end(self) -> None:
        """Close once everything is written: the process reads the end of file."""
        self._ending = True
        if not self._pending:
            self.close()

    def close(self) -> None:
        if self._descriptor < 0:
            return
        if self._watched:
            self._loop.forget(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        self._pending.clear()

    def _ready(self, mask: int) -> None:
        self._flush()
        if not self._pending and self.drained is not None:
            self.drained()

    def _flush(self) -> None:
        try:
            while self._pending:
                written = os.write(self._descriptor, self._pending[:CHUNK])
                del self._pending[:written]
        except BlockingIOError:
            if not self._watched:
                self._loop.watch(self._descriptor, self._ready, WRITE)
                self._watched = True
            return
        except OSError:
            self.close()  # EPIPE: nobody reads any more, which is the process's right
            return
        if self._watched:
            self._loop.forget(self._descriptor)
            self._watched = False
        if self._ending:
            self.close()


class Connection:
    """One client of the shim. `on_frame(channel, payload)` is replaced when the client's role is known."""

    def __init__(self, loop: Loop, client: socket.socket, on_frame: Callable[[int, bytes], None]) -> None:
        client.setblocking(False)
        self._loop = loop
        self._socket = client
        self._reader = FrameReader()
        self._out = bytearray()
        self._reading = True
        self._ending = False
        self._open = True
        self._interested = READ
        self.on_frame = on_frame
        self.on_closed: Callable[[], None] | None = None
        self.on_drained: Callable[[], None] | None = None
        loop.watch(client.fileno(), self._ready)

    @property
    def full(self) -> bool:
        """Whether the client is so far behind that its producer should wait."""
        return len(self._out) > FULL

    @property
    def open(self) -> bool:
        return self._open

    def send(self, channel: int, payload: bytes) -> None:
        """Queue one frame; a client that is BEHIND is disconnected."""
        if not self._open or self._ending:
            return
        self._out += pack(channel, payload)
        self._flush()
        if len(self._out) > BEHIND:
            self.close()

    def end(self) -> None:
        """Close once everything queued has been sent."""
        self._ending = True
        if self._open and not self._out:
            self.close()

    def pause_reading(self) -> None:
        if self._open and self._reading:
            self._reading = False
            self._interest()

    def resume_reading(self) -> None:
        if self._open and not self._reading:
            self._reading = True
            self._interest()

    def close(self) -> None:
        """Disconnect; `on_closed` is called once."""
        if not self._open:
            return
        self._open = False
        self._loop.forget(self._socket.fileno())
        self._socket.close()
        if self.on_closed is not None:
            self.on_closed()

    def _interest(self) -> None:
        wanted = (READ if self._reading else 0) | (WRITE if self._out else 0)
        if wanted != self._interested:
            self._loop.change(self._socket.fileno(), wanted)
            self._interested = wanted

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
            if self._open and not self._out and self.on_drained is not None:
                self.on_drained()
        if not self._open:
            return
        if mask & READ and self._reading:
            self._receive()
        elif mask & ~(READ | WRITE):
            self.close()  # hung up while we were not reading

    def _receive(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for channel, payload in self._reader.feed(data):
                self.on_frame(channel, payload)
                if not self._open:
                    return
        except FrameError:
            self.close()

    def _flush(self) -> None:
        try:
            while self._out:
                sent = self._socket.send(self._out[:CHUNK])
                del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._ending and not self._out:
            self.close()
        else:
            self._interest()
