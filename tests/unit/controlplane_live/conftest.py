"""A real API server on a loopback port, with certificates of its own, for a whole module of tests."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from controlplane import authority
from controlplane.apiserver.app import ApiServer, ServerOptions
from controlplane.apiserver.registry import Write
from controlplane.apiserver.resources import lookup
from controlplane.apiserver.users import SERVER
from controlplane.event_loop import new_event_loop
from controlplane.storage.sqlite import SqliteStore

Object = dict[str, Any]
Change = Callable[[Object], Object]
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


@dataclass
class Client:
    """requests with one identity; answers are (code, decoded body)."""

    base: str
    ca: str
    cert: tuple[str, str] | None = None
    token: str = ""
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.session.trust_env = False
        self.session.verify = self.ca
        if self.cert:
            self.session.cert = self.cert
        if self.token:
            self.session.headers["Authorization"] = f"Bearer {self.token}"

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        return self.session.request(method, self.base + path, data=body, headers=sent, timeout=10)

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        answer = self.send(method, path, body, **headers)
        return answer.status_code, answer.json()

    def must(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        code, answered = self(method, path, body, **headers)
        assert code in (200, 201), answered
        return answered

    def patch(self, path: str, body: Any, kind: str = MERGE) -> Any:
        return self.must("PATCH", path, body, Content_Type=kind)

    def events(self, path: str, seconds: int = 1, **headers: str) -> list[Object]:
        """Everything that a watch says until its timeout."""
        separator = "&" if "?" in path else "?"
        answer = self.send("GET", f"{path}{separator}watch=1&timeoutSeconds={seconds}", **headers)
        return [json.loads(line) for line in answer.text.splitlines()]

    def first_events(self, path: str, count: int) -> list[Object]:
        """The first events of a watch, without waiting for its timeout."""
        url = f"{self.base}{path}{'&' if '?' in path else '?'}watch=1"
        with self.session.get(url, stream=True, timeout=10) as answer:
            found: list[Object] = []
            for line in answer.iter_lines():
                found.append(json.loads(line))
                if len(found) == count:
                    break
            return found


@dataclass
class Live:
    """The server and clients of its users."""

    server: ApiServer
    loop: asyncio.AbstractEventLoop
    folder: Path
    base: str
    admin: Client
    kubelet: Client
    anonymous: Client
    with_tokens: list[Client] = field(default_factory=list)

    def with_token(self, token: str) -> Client:
        client = Client(self.base, str(self.folder / "pki/ca.crt"), token=token)
        self.with_tokens.append(client)
        return client

    def store(self, kind: tuple[str, str, str], namespace: str, name: str, change: Change) -> None:
        """Writes past all rules, as a version of the server may have done that had fewer of them."""
        info = lookup(*kind)
        assert info is not None
        write = self.server.registry.amend(info, namespace, name, change, Write(SERVER))
        asyncio.run_coroutine_threadsafe(write, self.loop).result(10)

    def close(self) -> None:
        """End all connections. uvloop's close() waits without end for one that is open, and a failed test's
        traceback keeps its client."""
        for client in (self.admin, self.kubelet, self.anonymous, *self.with_tokens):
            client.session.close()


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("cluster")
    authority.ensure(authority.Cluster(folder, "127.0.0.1", "n1", 6443))
    loop = new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> ApiServer:
        options = ServerOptions(folder / "pki", "127.0.0.1", 0, "192.0.2.1")
        server = ApiServer(options, SqliteStore(folder / "store"))
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    base, ca = f"https://127.0.0.1:{server.port}", str(folder / "pki/ca.crt")
    clients = [Client(base, ca, _certificate(folder, user)) for user in ("admin", "kubelet")]
    live = Live(server, loop, folder, base, *clients, Client(base, ca))
    try:
        yield live
    finally:
        live.close()
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def api(live: Live) -> Client:
    return live.admin


@pytest.fixture
def namespace(api: Client, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    name = api.must("POST", "/api/v1/namespaces", {"metadata": {"generateName": "t-"}})["metadata"]["name"]
    return str(name)


def _certificate(folder: Path, user: str) -> tuple[str, str]:
    data = yaml.safe_load((folder / f"{user}.conf").read_text())["users"][0]["user"]
    paths = []
    for name in ("client-certificate-data", "client-key-data"):
        path = folder / f"{user}-{name}"
        path.write_bytes(base64.b64decode(data[name]))
        paths.append(str(path))
    return paths[0], paths[1]


def pod(name: str, **spec: Any) -> Object:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "busybox"}], **spec}}
