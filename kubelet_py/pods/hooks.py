"""postStart and preStop: exec, httpGet or sleep, run for a container at the edges of its life.

As upstream (lifecycle/handlers.go), an HTTP hook has done its work when it is answered, whatever the status.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

from kubelet_py.pods.http_get import NoAnswer, get, request_of
from kubelet_py.pods.model import Object
from runtime.errors import RuntimeFailure
from runtime.service import RuntimeService

LONGEST_ANSWER = 60.0
MOST_OUTPUT = 256


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
    warn: Callable[[str, str], None] = lambda reason, text: None,
) -> None:
    """Run one handler to its end; HookFailed when it fails or `timeout` seconds are over. `warn(reason,
    text)` tells of what went well in another way than asked for."""
    if "exec" in hook:
        try:
            argv = hook["exec"].get("command") or []
            result = service.exec_sync(container_id, argv, timeout)
        except (RuntimeFailure, TimeoutError) as error:
            raise HookFailed(str(error)) from error
        if result.exit_code:
            said, complaint = (
                part.decode(errors="replace")[:MOST_OUTPUT] for part in (result.stdout, result.stderr)
            )
            ended = f"command '{' '.join(argv)}' exited with {result.exit_code}: {complaint}"
            raise HookFailed(f"{ended}, message: {json.dumps(said + complaint, ensure_ascii=False)}")
    elif "httpGet" in hook:
        _http(hook["httpGet"], container, ip, timeout or LONGEST_ANSWER, warn)
    elif "sleep" in hook:
        seconds = float(hook["sleep"]["seconds"])
        sleep(seconds if timeout is None else min(seconds, timeout))
    else:
        raise HookFailed("the hook has no handler that this node knows")


def told(hook: Object, container: Object, pod: str, error: str) -> str:
    """Upstream's words for a hook that failed; `pod` is its full name."""
    if "exec" in hook:
        what = f"Exec lifecycle hook ([{' '.join(hook['exec'].get('command') or [])}])"
    elif "httpGet" in hook:
        what = f"HTTP lifecycle hook ({hook['httpGet'].get('path') or ''})"
    elif "sleep" in hook:
        what = f"Sleep lifecycle hook ({hook['sleep']['seconds']})"
    else:
        return f"Cannot run handler: {error}"
    return f'{what} for Container "{container["name"]}" in Pod "{pod}" failed - error: {error}'


def _http(
    action: Object, container: Object, ip: str, timeout: float, warn: Callable[[str, str], None]
) -> None:
    """A hook with scheme HTTPS was once sent without TLS, and servers have come to rely on that. So one that
    answers without is asked again without, and not shown the Authorization that was meant for TLS."""
    due = time.monotonic() + timeout
    try:
        request = request_of(action, container, ip, "lifecycle")
        try:
            get(request, timeout)
        except NoAnswer as error:
            if not error.plain:
                raise
            kept = [pair for pair in request.headers if pair[0].lower() != "authorization"]
            try:
                get(replace(request, tls=False, headers=kept), max(0.0, due - time.monotonic()))
            except NoAnswer:
                raise error from None
            text = "request to HTTPS lifecycle hook got HTTP response, retry with HTTP succeeded"
            warn("LifecycleHTTPFallback", text)
    except NoAnswer as error:
        raise HookFailed(str(error)) from error
