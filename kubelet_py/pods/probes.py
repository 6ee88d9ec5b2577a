"""One look at a container: exec, httpGet, tcpSocket or grpc. Outcomes carry upstream's texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubelet_py.pods import grpc_health, http_answer
from kubelet_py.pods.http_answer import NoAnswer
from kubelet_py.pods.model import Object
from runtime.errors import RuntimeFailure
from runtime.service import RuntimeService

MOST_OUTPUT = 10 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    success: bool
    text: str = ""


def run(service: RuntimeService, probe: Object, container: Object, container_id: str, ip: str) -> Outcome:
    """Carry out one probe; a probe that cannot be carried out has failed."""
    timeout = float(probe.get("timeoutSeconds") or 1)
    if "exec" in probe:
        return exec_command(service, container_id, probe["exec"].get("command") or [], timeout)
    if "httpGet" in probe:
        return http_get(probe["httpGet"], container, ip, timeout)
    if "tcpSocket" in probe:
        return tcp_socket(probe["tcpSocket"], container, ip, timeout)
    if "grpc" in probe:
        return grpc(probe["grpc"], ip, timeout)
    return Outcome(False, "probe has no handler that this node knows")


def exec_command(service: RuntimeService, container_id: str, argv: list[str], timeout: float) -> Outcome:
    """Success is exit code 0 within the timeout; the whole process tree ends with it."""
    try:
        result = service.exec_sync(container_id, argv, timeout)
    except TimeoutError:
        return Outcome(False, f"command timed out: {' '.join(argv)!r} timed out after {timeout:g}s")
    except RuntimeFailure as error:
        return Outcome(False, str(error))
    output = (result.stdout + result.stderr)[:MOST_OUTPUT].decode(errors="replace")
    return Outcome(result.exit_code == 0, output)


def http_get(action: Mapping[str, Any], container: Object, ip: str, timeout: float) -> Outcome:
    """Success is a status from 200 to 399; certificates are not checked, as upstream."""
    try:
        status = http_status(action, container, ip, timeout, agent="kube-probe/1.32")
    except NoAnswer as error:
        return Outcome(False, str(error))
    if 200 <= status < 400:
        return Outcome(True)
    return Outcome(False, f"HTTP probe failed with statuscode: {status}")


def http_status(action: Mapping[str, Any], container: Object, ip: str, timeout: float, *, agent: str) -> int:
    """The status that a GET of the action is answered with. Raises NoAnswer."""
    try:
        port = port_number(action["port"], container)
    except LookupError as error:
        raise NoAnswer(str(error)) from error
    host, tls = action.get("host") or ip, (action.get("scheme") or "HTTP").upper() == "HTTPS"
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    path = action.get("path") or "/"
    url = f"{'https' if tls else 'http'}://{place}{path}"
    headers = [(entry["name"], entry["value"]) for entry in action.get("httpHeaders") or ()]
    if all(name.lower() != "user-agent" for name, _ in headers):
        headers.append(("User-Agent", agent))
    try:
        return http_answer.status(host, port, http_answer.request(place, path, headers), timeout, tls=tls)
    except NoAnswer as error:
        raise NoAnswer(f'Get "{url}": {error}') from error
    except TimeoutError as error:
        text = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        raise NoAnswer(f'Get "{url}": {text}') from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise NoAnswer(f'Get "{url}": dial tcp {place}: {reason}') from error


def tcp_socket(action: Mapping[str, Any], container: Object, ip: str, timeout: float) -> Outcome:
    """Success is a connection."""
    try:
        port = port_number(action["port"], container)
        http_answer.connect(action.get("host") or ip, port, timeout).close()
        return Outcome(True)
    except LookupError as error:
        return Outcome(False, str(error))
    except OSError as error:
        reason = "i/o timeout" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return Outcome(False, f"dial tcp {action.get('host') or ip}:{action['port']}: {reason}")


def grpc(action: Mapping[str, Any], ip: str, timeout: float) -> Outcome:
    """Success is SERVING from the standard health service."""
    try:
        grpc_health.check(ip, int(action["port"]), action.get("service") or "", timeout)
    except grpc_health.CheckFailed as error:
        return Outcome(False, str(error))
    return Outcome(True)


def port_number(port: int | str, container: Object) -> int:
    """A port given as number or by the name of one of the container's ports."""
    if isinstance(port, int) or str(port).isdigit():
        return int(port)
    for entry in container.get("ports") or ():
        if entry.get("name") == port:
            return int(entry["containerPort"])
    raise LookupError(f"couldn't find port: {port} in container {container.get('name', '')}")
