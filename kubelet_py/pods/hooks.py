"""postStart and preStop: exec, httpGet or sleep, run for a container at the edges of its life.

As upstream (lifecycle/handlers.go), an HTTP hook has done its work when it is answered, whatever the status.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kubelet_py.pods import probes
from kubelet_py.pods.http_answer import NoAnswer
from kubelet_py.pods.model import Object
from runtime.errors import RuntimeFailure
from runtime.service import RuntimeService

LONGEST_ANSWER = 60.0


class HookFailed(Exception):
    """The hook did not succeed; the text is for the event."""


def run(
    service: RuntimeService,
    hook: Object,
    container: Object,
    container_id: str,
    ip: str,
    *,
    timeout: float | None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Run one handler to its end; HookFailed when it fails or `timeout` seconds are over."""
    if "exec" in hook:
        try:
            result = service.exec_sync(container_id, hook["exec"].get("command") or [], timeout)
        except (RuntimeFailure, TimeoutError) as error:
            raise HookFailed(str(error)) from error
        if result.exit_code:
            output = (result.stdout + result.stderr).decode(errors="replace")[:256]
            raise HookFailed(f"command exited with {result.exit_code}: {output}")
    elif "httpGet" in hook:
        try:
            probes.http_status(
                hook["httpGet"], container, ip, timeout or LONGEST_ANSWER, agent="kube-lifecycle/1.32"
            )
        except NoAnswer as error:
            raise HookFailed(str(error)) from error
    elif "sleep" in hook:
        seconds = float(hook["sleep"]["seconds"])
        sleep(seconds if timeout is None else min(seconds, timeout))
    else:
        raise HookFailed("the hook has no handler that this node knows")
