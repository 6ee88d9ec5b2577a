"""The runtime, with the time that its calls take: kubelet_runtime_operations_* by CRI's names of the calls.

The calls of a pod's start are measured where they are steps of it (timeline.py); these are the rest that
works on containers. One that the runtime makes on behalf of another (removing stops first) is part of that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

from kubelet_py.pods.durations import OPERATION_BOUNDS, Distribution, Durations
from runtime.service import ExecResult, RuntimeService

EXEC, UPDATE = "exec_sync", "update_container"
STOP, REMOVE = "stop_container", "remove_container"
STOP_SANDBOX, REMOVE_SANDBOX = "stop_podsandbox", "remove_podsandbox"


class TimedRuntime(RuntimeService):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        names = (EXEC, UPDATE, STOP, REMOVE, STOP_SANDBOX, REMOVE_SANDBOX)
        self._calls = {name: Durations(OPERATION_BOUNDS) for name in names}
        self._within = threading.local()

    def operations(self) -> dict[str, Distribution]:
        """How long calls took, by CRI's name of the call."""
        return {name: durations.read() for name, durations in self._calls.items()}

    def exec_sync(self, container_id: str, argv: Sequence[str], timeout: float | None) -> ExecResult:
        with self._timed(EXEC):
            return super().exec_sync(container_id, argv, timeout)

    def update_resources(self, container_id: str, resources: Mapping[str, Any]) -> None:
        with self._timed(UPDATE):
            super().update_resources(container_id, resources)

    def stop_container(self, container_id: str, grace_seconds: float) -> None:
        with self._timed(STOP):
            super().stop_container(container_id, grace_seconds)

    def remove_container(self, container_id: str) -> None:
        with self._timed(REMOVE):
            super().remove_container(container_id)

    def stop_pod_sandbox(self, sandbox_id: str) -> None:
        with self._timed(STOP_SANDBOX):
            super().stop_pod_sandbox(sandbox_id)

    def remove_pod_sandbox(self, sandbox_id: str) -> None:
        with self._timed(REMOVE_SANDBOX):
            super().remove_pod_sandbox(sandbox_id)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        if getattr(self._within, "call", False):
            yield
            return
        self._within.call = True
        began, failed = monotonic(), True
        try:
            yield
            failed = False
        finally:
            self._within.call = False
            self._calls[name].observe(monotonic() - began, failed=failed)
