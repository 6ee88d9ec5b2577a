"""`python -m proxy` as the supervisor starts it, against a small API server that can be away."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import network_lab
import pytest

pytestmark = pytest.mark.privileged


class Api:
    """Lists and watches of Services and EndpointSlices, over plain HTTP."""

    def __init__(self) -> None:
        self.lists: dict[str, list[dict[str, Any]]] = {"services": [], "endpointslices": [], "nodes": []}
        self.events: dict[str, queue.Queue[bytes | None]] = {kind: queue.Queue() for kind in self.lists}
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                kind = next(k for k in api.lists if f"/{k}" in self.path)
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                if "watch=" in self.path:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    while (line := api.events[kind].get()) is not None:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")
                    return
                body = json.dumps({"metadata": {"resourceVersion": "1"}, "items": api.lists[kind]}).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def send(self, kind: str, event: str, body: dict[str, Any]) -> None:
        self.events[kind].put(json.dumps({"type": event, "object": body}).encode() + b"\n")

    def close(self) -> None:
        for waiting in self.events.values():
            waiting.put(None)
        self.server.shutdown()
        self.server.server_close()


def service(version: str = "2") -> dict[str, Any]:
    meta = {"name": "web", "namespace": "default", "resourceVersion": version, "uid": "1"}
    return {"metadata": meta, "spec": {"clusterIP": "10.96.0.9", "ports": [{"name": "", "port": 80}]}}


def endpoints(*ips: str, version: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": "web"}
    return {
        "metadata": {
            "name": "web-1",
            "namespace": "default",
            "labels": labels,
            "resourceVersion": version,
            "uid": "2",
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [ip]} for ip in ips],
    }


def nat_holds(*texts: str, within: float = 5.0) -> float:
    """Seconds until the nat table shows all texts."""
    began = time.monotonic()
    while time.monotonic() - began < within:
        rules = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True).stdout
        if all(text in rules for text in texts):
            return time.monotonic() - began
        time.sleep(0.005)
    raise AssertionError(f"not in the kernel after {within} s: {texts}\n{rules}")


def healthy_within(seconds: float) -> bool:
    # The rules are in the kernel a moment before the proxy says so.
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen("http://127.0.0.1:10256/healthz", timeout=5):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            time.sleep(0.02)
    return False


@pytest.fixture
def api() -> Iterator[Api]:
    with network_lab.node():
        made = Api()
        yield made
        made.close()


def start(api: Api, folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "proxy", "--kubeconfig", str(folder / "proxy.conf")),
            *("--hostname-override", "n", "--cluster-cidr", "10.244.0.0/16"),
            *("--healthz-bind-address", "127.0.0.1:10256", *more),
        ],
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
        text=True,
    )


def write_kubeconfig(api: Api, folder: Path) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": api.url}}],
        "users": [{"name": "u", "user": {}}],
    }
    (folder / "proxy.conf").write_text(json.dumps(body))


def test_follows_the_api_survives_sigkill_and_leaves_its_rules_on_sigterm(api: Api, tmp_path: Path) -> None:
    api.lists["services"] = [service()]
    process = start(api, tmp_path)
    try:
        time.sleep(0.3)
        assert process.poll() is None, "it must wait for its kubeconfig"
        write_kubeconfig(api, tmp_path)
        nat_holds("KUBE-SERVICES")
        assert healthy_within(5)
        for n in range(2, 7):
            api.send(
                "endpointslices",
                "ADDED" if n == 2 else "MODIFIED",
                endpoints(f"10.244.0.{n}", version=str(n)),
            )
            nat_holds(f"--to-destination 10.244.0.{n}:8080")
        process.kill()
        process.communicate()
        nat_holds("--to-destination 10.244.0.6:8080")
        api.close()
        api.__init__()  # type: ignore[misc]
        api.lists["services"] = [service()]
        api.lists["endpointslices"] = [endpoints("10.244.0.77", version="9")]
        write_kubeconfig(api, tmp_path)
        process = start(api, tmp_path)
        nat_holds("--to-destination 10.244.0.77:8080")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0, log
        nat_holds("--to-destination 10.244.0.77:8080")
        assert "Traceback" not in log
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_cleanup_command_leaves_no_rule(api: Api, tmp_path: Path) -> None:
    write_kubeconfig(api, tmp_path)
    process = start(api, tmp_path)
    nat_holds("KUBE-SERVICES")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "--cleanup"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout == ""


def test_without_iptables_there_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    # A mount namespace with nothing where iptables is.
    command = 'mount -t tmpfs none /usr/sbin && exec "$0" -m proxy --cleanup'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, sys.executable],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 1
    assert done.stderr == (
        "kube-proxy: Could not find iptables on PATH (install it: apt-get install iptables)\n"
    )
