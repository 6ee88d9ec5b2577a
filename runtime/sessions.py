"""Sessions with a container, as the agent opens them: each on a connection of its own to the pod's shim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime import shim_link
from runtime.errors import ExecTimeout, ShimError, StartError
from runtime.state import RUNNING
from runtime.streams import STDERR, STDOUT, Stream
from runtime.values import Container, ExecResult
from runtime.views import exec_result

LARGEST_EXEC_OUTPUT = 16 * 1024 * 1024


class Sessions:
    """`folder` holds one folder for each sandbox. `patience`: seconds for a session's start."""

    def __init__(self, folder: Path, patience: float) -> None:
        self._folder = folder
        self._patience = patience

    def open(self, op: str, container: Container, **values: Any) -> Stream:
        """A session of its own: exec or attach. Raises StartError, ShimError."""
        stream = self._connected(op, container)
        try:
            stream.settimeout(self._patience)
            shim_link.ask(stream, op, container=container.id, **values)
            stream.settimeout(None)
        except ShimError as error:
            stream.close()
            raise StartError(str(error)) from error
        return stream

    def run(self, container: Container, argv: Sequence[str], timeout: float | None) -> ExecResult:
        """Run `argv` to its end. Raises StartError, or ExecTimeout when all it started had to be killed."""
        collected = {STDOUT: bytearray(), STDERR: bytearray()}

        def collect(channel: int, payload: bytes) -> None:
            kept = collected[channel]
            kept += payload[: LARGEST_EXEC_OUTPUT - len(kept)]

        stream = self._connected("exec", container)
        try:
            ended = shim_link.run(stream, self._patience, timeout, collect, container.id, argv)
        except TimeoutError as error:
            raise ExecTimeout(f"command {' '.join(argv)!r} timed out") from error
        finally:
            stream.close()
        return exec_result(ended, collected, argv)

    def _connected(self, op: str, container: Container) -> Stream:
        if container.state != RUNNING:
            raise StartError(f"container {container.id} is not running: it is {container.state}")
        try:
            return Stream(shim_link.connect(str(self._folder / container.sandbox_id)))
        except OSError as error:
            raise ShimError(f"Could not {op}: the pod's shim has gone ({error.strerror})") from error
