"""The control plane's process: what it survives, how it ends, and what it says when it cannot start."""

from __future__ import annotations

import json
import signal
import socket
import subprocess

import pytest
from control_plane import Process

pytestmark = pytest.mark.e2e


def test_answered_writes_survive_sigkill_and_watches_go_on_where_they_were(process: Process) -> None:
    process.start()
    answered = []
    path = "/api/v1/namespaces/default/configmaps"
    with process.session() as session:
        for number in range(100):
            body = {"metadata": {"name": f"c{number}"}}
            made = session.post(f"https://127.0.0.1:{process.port}{path}", json=body, timeout=10)
            assert made.status_code == 201
            answered.append(made.json()["metadata"])
    process.end(signal.SIGKILL)
    process.start()
    listed = process.request("GET", path).json()["items"]
    kept = {item["metadata"]["name"]: item["metadata"] for item in listed}
    assert [kept.get(item["name"]) for item in answered] == answered
    process.request("POST", path, {"metadata": {"name": "later"}})
    version = answered[-1]["resourceVersion"]
    query = f"{path}?watch=1&timeoutSeconds=1&resourceVersion={version}"
    events = [json.loads(line) for line in process.request("GET", query).text.splitlines()]
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in events] == [("ADDED", "later")]


def test_sigterm_ends_watches_and_the_process_without_waiting_for_their_timeout(process: Process) -> None:
    process.start()
    with process.session() as session:
        url = f"https://127.0.0.1:{process.port}/api/v1/namespaces?watch=1"
        with session.get(url, stream=True, timeout=10) as watch:
            lines = watch.iter_lines()
            next(lines)
            assert process.end(signal.SIGTERM) == 0  # which waits for seconds; the watch has half an hour
            assert all(json.loads(line)["type"] == "ADDED" for line in lines)  # a clean end, no broken chunk


def test_a_port_in_use_is_one_line_and_exit_code_1(process: Process) -> None:
    with socket.create_server(("127.0.0.1", process.port)):
        done = subprocess.run(process.command(), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"Could not listen on 127.0.0.1:{process.port}: EADDRINUSE")
    assert "Traceback" not in done.stderr


def test_a_second_one_over_the_same_store_is_refused(process: Process) -> None:
    process.start()
    done = subprocess.run(process.command(), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1 and "another control plane" in done.stderr and "Traceback" not in done.stderr


def test_missing_certificates_say_what_to_do(process: Process) -> None:
    (process.folder / "pki/apiserver.crt").unlink()
    done = subprocess.run(process.command(), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1 and "kubelet-py up" in done.stderr and "Traceback" not in done.stderr
