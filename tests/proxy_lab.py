"""A small API server for the proxy's process, that can be away, and ways to start the process."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


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
                name = urlsplit(self.path).path.partition(f"/{kind}/")[2]
                if name:
                    self._one(next((i for i in api.lists[kind] if i["metadata"]["name"] == name), None))
                    return
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
                query = parse_qs(urlsplit(self.path).query)
                first = int(query.get("continue", ["0"])[0])
                end = first + int(query.get("limit", ["1000000"])[0])
                more = {"continue": str(end)} if end < len(api.lists[kind]) else {}
                items = api.lists[kind][first:end]
                body = json.dumps({"metadata": {"resourceVersion": "1", **more}, "items": items}).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _one(self, item: dict[str, Any] | None) -> None:
                status = {"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"}
                body = json.dumps(item or status).encode()
                self.send_response(200 if item else 404)
                self.send_header("Content-Type", "application/json")
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


def start(api: Api, folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "proxy", "--kubeconfig", str(folder / "proxy.conf")),
            *("--hostname-override", "n", "--cluster-cidr", "10.244.0.0/16"),
            *("--healthz-bind-address", "127.0.0.1:10256", *more),
        ],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        text=True,
    )


def node(*addresses: str, version: str) -> dict[str, Any]:
    listed = [{"type": "InternalIP", "address": a} for a in addresses]
    return {
        "metadata": {"name": "n", "resourceVersion": version, "uid": "3"},
        "status": {"addresses": listed},
    }


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
