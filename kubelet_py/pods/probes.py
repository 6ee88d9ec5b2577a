"""One look at a container: exec, httpGet, tcpSocket or grpc. Outcomes carry upstream's texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubelet_py.pods import grpc_health, http_answer
from kubelet_py.pods.http_get import NoAnswer, get, port_number, request_of
from kubelet_py.pods.model import Object
from runtime.errors import ExecTimeout, RuntimeFailure
from runtime.service import RuntimeService

MOST_OUTPUT = 10 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """`warning`: a success that is told of in an event. `errored`: the container was not asked, and nothing
    follows from that."""

    success: bool
    text: str = ""
    warning: bool = False
    errored: bool = False


def run(service: RuntimeService, probe: Object, container: Object, container_id: str, ip: str) -> Outcome:
    """Carry out one probe. A command that cannot be started and a port that has no number are errors of the
    probe, no failures of the container (upstream: probe.Unknown)."""
    timeout = float(probe.get("timeoutSeconds") or 1)
    if "exec" in probe:
        return exec_command(service, container_id, probe["exec"].get("command") or [], timeout)
    if "httpGet" in probe:
        return http_get(probe["httpGet"], container, ip, timeout)
    if "tcpSocket" in probe:
        return tcp_socket(probe["tcpSocket"], container, ip, timeout)
    if "grpc" in probe:
        return grpc(probe["grpc"], ip, timeout)
    return Outcome(False, "probe has no handler that this node knows", errored=True)


def exec_command(service: RuntimeService, container_id: str, argv: list[str], timeout: float) -> Outcome:
    """Success is exit code 0 within the timeout; the whole process tree ends with it."""
    try:
        result = service.exec_sync(container_id, argv, timeout)
    except (ExecTimeout, TimeoutError):
        command = json.dumps(" ".join(argv), ensure_ascii=False)
        return Outcome(False, f"command timed out: {command} timed out after {timeout:g}s")
    except RuntimeFailure as error:
        return Outcome(False, str(error), errored=True)
    output = (result.stdout + result.stderr)[:MOST_OUTPUT].decode(errors="replace")
    return Outcome(result.exit_code == 0, output)


def http_get(action: Mapping[str, Any], container: Object, ip: str, timeout: float) -> Outcome:
    """Success is a status from 200 to 399, with a warning where a redirect was not followed."""
    try:
        request = request_of(action, container, ip, "probe")
    except NoAnswer as error:
        return Outcome(False, str(error), errored=True)
    try:
        answer = get(request, timeout)
    except NoAnswer as error:
        return Outcome(False, str(error))
    if not 200 <= answer.status < 400:
        return Outcome(False, f"HTTP probe failed with statuscode: {answer.status}")
    if answer.stopped:
        body = answer.body.decode(errors="replace")
        return Outcome(True, f"Probe terminated redirects, Response body: {body}", warning=True)
    return Outcome(True)


def tcp_socket(action: Mapping[str, Any], container: Object, ip: str, timeout: float) -> Outcome:
    """Success is a connection."""
    host = action.get("host") or ip
    try:
        port = port_number(action["port"], container)
    except LookupError as error:
        return Outcome(False, str(error), errored=True)
    try:
        http_answer.connect(host, port, timeout).close()
    except OSError as error:
        return Outcome(False, f"dial tcp {host}:{port}: {http_answer.connect_words(error)}")
    return Outcome(True)


def grpc(action: Mapping[str, Any], ip: str, timeout: float) -> Outcome:
    """Success is SERVING from the standard health service."""
    try:
        grpc_health.check(ip, int(action["port"]), action.get("service") or "", timeout)
    except grpc_health.CheckFailed as error:
        return Outcome(False, str(error))
    return Outcome(True)
