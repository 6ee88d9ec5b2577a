"""By which kubeconfig `up` asks whether the node is there, and what it waits for."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kubelet_py.cli.processes import ProcessIdentity
from kubelet_py.cli.readiness import _Client, expected, report_until_ready
from kubelet_py.cli.settings import NodeSettings
from kubelet_py.paths import NodePaths

SETTINGS = NodeSettings("n", "192.0.2.5")


def write(file: Path, port: int) -> None:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(document))
    new.rename(file)


def test_one_client_is_kept_until_the_kubeconfig_is_another(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    write(paths.kubeconfig("kubelet"), 1001)
    client = _Client(paths)
    joined = client.current()
    assert client.current() is joined
    write(paths.kubeconfig("kubelet"), 1002)
    moved = client.current()
    assert moved is not joined and client.current() is moved
    write(paths.kubeconfig("admin"), 1002)  # the administrator's counts first
    assert client.current() is not moved
    client.close()


class Api(ThreadingHTTPServer):
    """Answers as the API server of a node that is Ready, and whose agent was last heard `renewed`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.renewed = time.time()


class Answers(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        renewed = datetime.fromtimestamp(self.server.renewed, UTC)
        ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": renewed.isoformat()}
        body = json.dumps({"spec": {"renewTime": renewed.isoformat()}, "status": {"conditions": [ready]}})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    server = Api()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    write(NodePaths(tmp_path).kubeconfig("admin"), server.server_address[1])
    yield server
    server.shutdown()
    server.server_close()


def say_started(paths: NodePaths, *names: str, supervisor_lives: bool = True) -> None:
    """The supervisor's state file; every process of it is this one, whose start is the agent's."""
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    state = {
        "supervisor": [me.pid, me.start + (not supervisor_lives)],
        "children": {name: [me.pid, me.start] for name in names},
        "restarts": {},
    }
    paths.run.mkdir(parents=True, exist_ok=True)
    (paths.run / "supervisor.json").write_text(json.dumps(state))


def wait_while(paths: NodePaths, then: Callable[[], None]) -> int:
    """Wait for the node to be Ready; `then` happens when it is first seen to wait. How often it was."""
    seen = 0

    def alive() -> bool:
        nonlocal seen
        seen += 1
        if seen == 1:
            then()
        return True

    report_until_ready(paths, SETTINGS, started=time.monotonic(), timeout=30, alive=alive)
    return seen


def test_up_returns_when_the_process_that_was_put_off_was_started_too(tmp_path: Path, api: Api) -> None:
    paths = NodePaths(tmp_path)
    say_started(paths, "controlplane", "agent")
    waits = wait_while(paths, lambda: say_started(paths, "controlplane", "agent", "proxy"))
    assert waits == 1, "`status` would have told of a proxy that does not run"


def test_what_the_agent_of_a_killed_supervisor_says_does_not_count(tmp_path: Path, api: Api) -> None:
    """It is heard until the next supervisor has ended it, and that one has not started its own yet."""
    paths = NodePaths(tmp_path)
    everything = ("controlplane", "agent", "proxy")
    say_started(paths, *everything, supervisor_lives=False)
    api.renewed = time.time() + 1
    assert wait_while(paths, lambda: say_started(paths, *everything)) == 1


def test_a_report_from_before_the_agents_start_does_not_count(tmp_path: Path, api: Api) -> None:
    paths = NodePaths(tmp_path)
    say_started(paths, "controlplane", "agent", "proxy")
    api.renewed = 1.0

    def report() -> None:
        api.renewed = time.time()

    assert wait_while(paths, report) == 1


def test_a_joined_node_has_no_control_plane_to_wait_for() -> None:
    joined = NodeSettings("n", "192.0.2.5", server="https://192.0.2.1:6443")
    assert expected(joined) == ("supervisor", "agent", "proxy")
    assert expected(SETTINGS) == ("supervisor", "controlplane", "agent", "proxy")


def test_a_process_knows_when_it_was_started() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    other = ProcessIdentity(me.pid, me.start + 5 * os.sysconf("SC_CLK_TCK"))
    assert me.started() <= time.time()
    assert other.started() - me.started() == pytest.approx(5, abs=0.01)
