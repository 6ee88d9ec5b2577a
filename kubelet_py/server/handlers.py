"""Which pages of port 10250 an administrator has switched off, and how loud the agent's log is.

A page that is off answers 405 and says why, so that whoever asks does not look for a missing pod. The log's
level can be set while the agent runs (PUT /debug/flags/v), as klog's verbosity: from 4 on with debug lines.
Texts: upstream's pkg/kubelet/server/server.go and apiserver's routes/flags.go.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from kubelet_py.server.errors import HttpError

DEBUGGING = ("run", "exec", "attach", "portForward", "containerLogs", "runningpods", "logs")
LOUD = 4


@dataclass(frozen=True, slots=True)
class Handlers:
    """enableDebuggingHandlers, enableSystemLogHandler, enableDebugFlagsHandler, enableSystemLogQuery."""

    debugging: bool = True
    system_logs: bool = True
    flags: bool = True
    log_query: bool = False

    def refusal(self, parts: Sequence[str]) -> str:
        """Why the path is switched off; "" where it is not."""
        head = parts[0] if parts else ""
        place = tuple(parts[:2])
        if not self.debugging and (head in DEBUGGING or place == ("debug", "pprof")):
            return "Debug endpoints are disabled."
        if place == ("debug", "pprof"):
            return "profiling endpoint is disabled."  # there is no Go runtime to look into
        if head == "logs" and not self.system_logs:
            return "logs endpoint is disabled."
        if place == ("debug", "flags") and not (self.flags and self.debugging):
            return "flags endpoint is disabled."
        return ""


def level_of(verbosity: int) -> int:
    """logging's level for a verbosity of klog."""
    return logging.DEBUG if verbosity >= LOUD else logging.INFO


def set_verbosity(method: str, parts: Sequence[str], body: bytes, logger: logging.Logger) -> str:
    """/debug/flags/v: what to answer. Raises HttpError."""
    if list(parts) != ["flags", "v"]:
        raise HttpError(404, "404 page not found\n")
    if method != "PUT":
        raise HttpError(406, "unsupported http method")
    text = body.decode("utf-8", "replace").strip()
    try:
        verbosity = int(text)
    except ValueError as error:
        raise HttpError(400, f"failed set klog.logging.verbosity {text}: it is no number") from error
    logger.setLevel(level_of(verbosity))
    return f"successfully set klog.logging.verbosity to {text}"
