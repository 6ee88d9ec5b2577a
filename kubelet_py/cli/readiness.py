"""Tells the person in front of `up` what has come to life, step by step, until the node is Ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kubelet_py.cli.settings import NodeSettings
from kubelet_py.paths import NodePaths

if TYPE_CHECKING:
    from kubeclient.rest import RestClient

POLL_SECONDS = 0.02


class NotReady(Exception):
    """The node did not become Ready; the message says what was reached and where the logs are."""


def report_until_ready(
    paths: NodePaths, settings: NodeSettings, *, started: float, timeout: float, alive: Callable[[], bool]
) -> None:
    """Print a line per milestone with the seconds since `started` (monotonic); NotReady after `timeout`.

    `alive` says whether the supervisor still runs; once it does not, waiting is pointless.
    """
    wait = _Waiter(paths, started + timeout, alive)
    kubeconfig = paths.kubeconfig("admin")
    wait.until(kubeconfig.exists, "the certificates were not made")
    client = _client(paths)
    wait.until(lambda: _serves(client), "the API server does not answer")
    answered = time.monotonic() - started
    print(f"API server answers on port {settings.secure_port} after {answered:.2f} s", flush=True)
    wait.until(lambda: node_is_ready(client, settings.node_name), f"node {settings.node_name} is not Ready")
    print(f"Node {settings.node_name} is Ready after {time.monotonic() - started:.2f} s", flush=True)
    print(f"Use it:  export KUBECONFIG={kubeconfig}", flush=True)


class _Waiter:
    def __init__(self, paths: NodePaths, deadline: float, alive: Callable[[], bool]) -> None:
        self._paths = paths
        self._deadline = deadline
        self._alive = alive

    def until(self, condition: Callable[[], bool], otherwise: str) -> None:
        while not condition():
            if not self._alive():
                raise NotReady("The supervisor ended")
            if time.monotonic() > self._deadline:
                raise NotReady(f"Gave up waiting: {otherwise} (see the logs in {self._paths.logs})")
            time.sleep(POLL_SECONDS)


def _client(paths: NodePaths) -> RestClient:
    from kubeclient import kubeconfig
    from kubeclient.rest import RestClient

    return RestClient(kubeconfig.load(paths.kubeconfig("admin")), user_agent="kubelet-py-up", timeout=5.0)


def _serves(client: RestClient) -> bool:
    from kubeclient.errors import ApiError

    try:
        return client.raw("GET", "/readyz")[0] == 200
    except ApiError:
        return False


def node_is_ready(client: RestClient, name: str) -> bool:
    """Whether the Node object says Ready=True."""
    from kubeclient.errors import ApiError
    from kubeclient.resources import NODES

    try:
        node = client.get(NODES, name)
    except ApiError:
        return False
    return condition(node, "Ready") == "True"


def condition(obj: dict[str, Any], kind: str) -> str:
    """Status of one of the object's conditions, or "" where it has none such."""
    conditions = obj.get("status", {}).get("conditions", [])
    return next((str(c["status"]) for c in conditions if c["type"] == kind), "")
