"""What the runtime holds, pod by pod, as the values that decisions are made from.

The runtime tells of every exit as an event, so the agent never polls; a relist now and then is the safety
net for an event that was lost (upstream's PLEG relists every second for want of events).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kubelet_py.pods.model import (
    ANNOTATION_HASH,
    ANNOTATION_MESSAGE_FILE,
    ANNOTATION_MESSAGE_POLICY,
    ContainerView,
    PodView,
    SandboxView,
)

if TYPE_CHECKING:
    from runtime.service import RuntimeService
    from runtime.values import Container, Sandbox

LONGEST_MESSAGE = 4096
LONGEST_LOG_MESSAGE = 2048


class PodViews:
    """Builds PodViews from a RuntimeService; `ips_of` knows a sandbox's addresses by its id."""

    def __init__(self, service: RuntimeService, ips_of: Callable[[str], Sequence[str]]) -> None:
        self._service = service
        self._ips_of = ips_of
        self._lock = threading.Lock()
        self._messages: dict[str, str] = {}

    def view(self, uid: str) -> PodView:
        """Everything of one pod, newest first."""
        sandboxes = [s for s in self._service.list_sandboxes() if s.config.uid == uid]
        sandboxes.sort(key=lambda s: (s.config.attempt, s.created_at), reverse=True)
        known = {s.id for s in sandboxes}
        found = [c for c in self._service.list_containers() if c.sandbox_id in known]
        found.sort(key=lambda c: (c.config.attempt, c.created_at), reverse=True)
        return PodView(
            uid,
            tuple(self._sandbox_view(s) for s in sandboxes),
            tuple(self._container_view(c) for c in found),
        )

    def uids(self) -> set[str]:
        """UIDs of all pods that the runtime holds anything of."""
        return {s.config.uid for s in self._service.list_sandboxes()}

    def uid_of(self, sandbox_id: str) -> str | None:
        for sandbox in self._service.list_sandboxes():
            if sandbox.id == sandbox_id:
                return sandbox.config.uid
        return None

    def forget(self, view: PodView) -> None:
        with self._lock:
            for container in view.containers:
                self._messages.pop(container.id, None)

    def _sandbox_view(self, sandbox: Sandbox) -> SandboxView:
        return SandboxView(
            id=sandbox.id,
            attempt=sandbox.config.attempt,
            ready=sandbox.state == "READY",
            created_at=sandbox.created_at,
            netns=sandbox.netns,
            host_network=sandbox.config.host_network,
            ips=tuple(self._ips_of(sandbox.id)),
        )

    def _container_view(self, container: Container) -> ContainerView:
        message = container.message
        if container.state == "EXITED" and not message:
            message = self._message(container)
        return ContainerView(
            id=container.id,
            name=container.config.name,
            sandbox_id=container.sandbox_id,
            attempt=container.config.attempt,
            state=container.state,
            image=container.config.image,
            image_id=container.config.image_id,
            spec_hash=container.config.annotations.get(ANNOTATION_HASH, ""),
            created_at=container.created_at,
            started_at=container.started_at,
            finished_at=container.finished_at,
            exit_code=container.exit_code,
            reason=container.reason,
            message=message,
        )

    def _message(self, container: Container) -> str:
        """The termination message: the file's text, else by policy the end of the log. Read once."""
        with self._lock:
            if container.id in self._messages:
                return self._messages[container.id]
        annotations = container.config.annotations
        text = read_tail(annotations.get(ANNOTATION_MESSAGE_FILE, ""), LONGEST_MESSAGE)
        fallback = annotations.get(ANNOTATION_MESSAGE_POLICY) == "FallbackToLogsOnError"
        if not text and fallback and container.exit_code:
            raw = read_tail(container.config.log_path, LONGEST_LOG_MESSAGE * 2)
            lines = [line.split(" ", 3)[-1] for line in raw.splitlines() if line.count(" ") >= 3]
            text = "\n".join(lines[-80:])[-LONGEST_LOG_MESSAGE:]
        with self._lock:
            self._messages[container.id] = text
        return text


def read_tail(path: str, limit: int) -> str:
    """The last `limit` bytes of a file of the pod, as text. A symlink is not followed: the container may
    have put it there to have the agent read a file of the host."""
    if not path:
        return ""
    try:
        descriptor = os.open(Path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        file.seek(max(0, size - limit))
        return file.read(limit).decode(errors="replace")
