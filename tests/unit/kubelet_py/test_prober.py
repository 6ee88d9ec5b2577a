"""A pod that ends is asked for its readiness only; and what came of probes is counted."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import pytest
from pods_in_words import pod, up, view

from kubelet_py.pods import probes
from kubelet_py.pods.prober import Prober
from kubelet_py.pods.probes import Outcome
from runtime.errors import StartError

LONG = 30.0
HOST = "127.0.0.2"


class Runtime:
    """Every exec fails; which commands were run is remembered."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.more = threading.Condition()

    def exec_sync(self, identifier: str, argv: list[str], timeout: float) -> Any:
        with self.more:
            self.ran.append(argv[0])
            self.more.notify_all()
        raise TimeoutError

    def wait_for(self, command: str, count: int) -> bool:
        with self.more:
            return self.more.wait_for(lambda: self.ran.count(command) >= count, LONG)


def test_liveness_rests_while_readiness_goes_on() -> None:
    body = pod()
    for kind in ("liveness", "readiness"):
        probe = {"exec": {"command": [kind]}, "periodSeconds": 0.01, "failureThreshold": 1000}
        body["spec"]["containers"][0][f"{kind}Probe"] = probe
    runtime = Runtime()
    prober = Prober(runtime, changed=lambda uid: None, tell=lambda *words: None, host_ip=HOST)  # type: ignore[arg-type]
    prober.start()
    holds = view(up())
    prober.update(body, holds)
    assert runtime.wait_for("liveness", 2) and runtime.wait_for("readiness", 1)
    prober.terminate(body, holds)
    before = runtime.ran.count("liveness")
    assert runtime.wait_for("readiness", runtime.ran.count("readiness") + 3)
    assert runtime.ran.count("liveness") <= before + 1, "at most the one that was under way"
    assert prober.health(holds)["c"].ready is False, "it does not look ready because it ends"
    prober.terminate(body, view())
    assert prober.health(holds) == {}
    prober.stop()


def test_what_came_of_a_probe_is_counted_over_all_attempts_until_the_pod_is_gone() -> None:
    body = pod()
    probe = {"exec": {"command": ["ask"]}, "periodSeconds": 0.01, "failureThreshold": 1000}
    body["spec"]["containers"][0]["livenessProbe"] = probe
    runtime = Runtime()
    prober = Prober(runtime, changed=lambda uid: None, tell=lambda *words: None, host_ip=HOST)  # type: ignore[arg-type]
    prober.start()
    prober.update(body, view(up()))
    assert runtime.wait_for("ask", 3)
    prober.update(body, view())
    ((labels, before, durations),) = prober.results()
    wanted = {"container": "c", "namespace": "default", "pod": "p", "pod_uid": "u", "probe_type": "Liveness"}
    assert labels == wanted and durations.count == 0, "only successes are timed"
    assert before["failed"] >= 2, "the last one may still be under way"
    prober.update(body, view(up(attempt=1)))
    assert runtime.wait_for("ask", len(runtime.ran) + 2)
    assert prober.results()[0][1]["failed"] > before["failed"], "a new attempt's are counted on"
    prober.forget("u")
    assert prober.results() == []
    prober.stop()


def test_an_adopted_container_is_what_the_api_says_until_its_probes_say_otherwise() -> None:
    body = pod()
    for kind in ("startup", "readiness"):
        probe = {"exec": {"command": [kind]}, "periodSeconds": 0.01, "failureThreshold": 3}
        body["spec"]["containers"][0][f"{kind}Probe"] = probe
    told = {"name": "c", "containerID": "kubelet-py://c-0", "started": True, "ready": True}
    body["status"] = {"containerStatuses": [told]}
    runtime, changed = Runtime(), threading.Event()
    prober = Prober(runtime, changed=lambda uid: changed.set(), tell=lambda *words: None, host_ip=HOST)  # type: ignore[arg-type]
    prober.update(body, view(up()))
    health = prober.health(view(up()))["c"]
    assert health.started and health.ready
    prober.start()
    assert changed.wait(LONG) and not prober.health(view(up()))["c"].ready
    assert set(runtime.ran) == {"readiness"}, "it has started once"
    prober.update(body, view(up(attempt=1)))
    assert not prober.health(view(up(attempt=1)))["c"].started, "the next attempt has not"
    prober.stop()


class Unable(Runtime):
    """No command can be started."""

    def exec_sync(self, identifier: str, argv: list[str], timeout: float) -> Any:
        with contextlib.suppress(TimeoutError):
            super().exec_sync(identifier, argv, timeout)
        raise StartError('exec: "nosuch": executable file not found in $PATH')


def test_a_probe_that_cannot_be_made_changes_nothing_and_says_so() -> None:
    body = pod()
    for kind in ("liveness", "readiness"):
        probe = {"exec": {"command": [kind]}, "periodSeconds": 0.01, "failureThreshold": 2}
        body["spec"]["containers"][0][f"{kind}Probe"] = probe
    text = 'probe errored and resulted in unknown state: exec: "nosuch": executable file not found in $PATH'
    wanted, told, heard = {f"Liveness {text}", f"Readiness {text}"}, set(), threading.Event()

    def tell(pod: object, container: object, kind: str, reason: str, message: str) -> None:
        told.add(message)
        if told >= wanted:
            heard.set()

    runtime = Unable()
    prober = Prober(runtime, changed=lambda uid: None, tell=tell, host_ip=HOST)  # type: ignore[arg-type]
    prober.start()
    prober.update(body, view(up()))
    assert runtime.wait_for("liveness", 5) and runtime.wait_for("readiness", 3) and heard.wait(LONG)
    health = prober.health(view(up()))["c"]
    prober.stop()
    assert (health.failed, health.ready) == ("", False), "it goes on running, and has never been ready"
    assert {result for _, results, _ in prober.results() for result in results} == {"unknown"}
    assert told == wanted


@pytest.mark.parametrize("handler", [{"httpGet": {"port": "web"}}, {"tcpSocket": {"port": "web"}}])
def test_a_port_without_a_number_is_an_error_of_the_probe(handler: dict[str, Any]) -> None:
    outcome = probes.run(Runtime(), handler, {"name": "c"}, "c-0", "127.0.0.1")  # type: ignore[arg-type]
    assert outcome == Outcome(False, "couldn't find port: web in container c", errored=True)


def test_a_command_that_takes_too_long_has_failed_in_upstreams_words() -> None:
    probe = {"exec": {"command": ["sh", "-c", "sleep 9"]}, "timeoutSeconds": 2}
    outcome = probes.run(Runtime(), probe, {"name": "c"}, "c-0", "127.0.0.1")  # type: ignore[arg-type]
    assert outcome == Outcome(False, 'command timed out: "sh -c sleep 9" timed out after 2s')


def test_a_redirect_elsewhere_succeeds_with_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 2\r\n\r\ngo"

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(4096)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        body = pod()
        probe = {"httpGet": {"port": listener.getsockname()[1], "host": "127.0.0.1"}, "timeoutSeconds": 30}
        body["spec"]["containers"][0]["livenessProbe"] = probe
        told: list[tuple[str, str, str]] = []
        heard = threading.Event()

        def tell(pod: object, container: object, kind: str, reason: str, message: str) -> None:
            told.append((kind, reason, message))
            heard.set()

        prober = Prober(Runtime(), changed=lambda uid: None, tell=tell, host_ip=HOST)  # type: ignore[arg-type]
        prober.start()
        prober.update(body, view(up()))
        assert heard.wait(LONG)
        prober.stop()
        listener.shutdown(socket.SHUT_RDWR)
    text = "Liveness probe warning: Probe terminated redirects, Response body: go"
    assert told[0] == ("Warning", "ProbeWarning", text)


def test_a_pod_on_the_hosts_network_is_asked_at_the_nodes_address() -> None:
    """It listens there only; a program of the host that listens on loopback is none of the pod's."""
    with socket.create_server((HOST, 0)) as listener:
        body, ready = pod(hostNetwork=True), threading.Event()
        probe = {"tcpSocket": {"port": listener.getsockname()[1]}, "timeoutSeconds": 30}
        body["spec"]["containers"][0]["readinessProbe"] = probe
        prober = Prober(
            Runtime(),  # type: ignore[arg-type]
            changed=lambda uid: ready.set(),
            tell=lambda *words: None,
            host_ip=HOST,
        )
        prober.start()
        prober.update(body, view(up()))
        assert ready.wait(LONG)
        prober.stop()
