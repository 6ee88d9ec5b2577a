"""Tells the person in front of `up` what has come to life, step by step, until the node is Ready.

After a `down` the Node object still says Ready=True, as it was last reported. So only a report counts that
is newer than the agent: the Lease tells that it is back (to the microsecond), and the condition's heartbeat
(to the second) that it has looked. An agent whose supervisor was killed goes on reporting until the next
supervisor ends it, so the agent that counts is that of the supervisor that runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kubelet_py.cli import login
from kubelet_py.cli.errors import AddressRefused
from kubelet_py.cli.settings import NodeSettings
from kubelet_py.cli.supervisor import SupervisorState, read_state
from kubelet_py.node import announcement
from kubelet_py.paths import NodePaths

if TYPE_CHECKING:
    from kubeclient.rest import RestClient

POLL_SECONDS = 0.02
LEASE_NAMESPACE = "kube-node-lease"
PROCESSES = ("supervisor", "controlplane", "agent", "proxy")


class NotReady(Exception):
    """The node did not become Ready; the message says what was reached and where the logs are."""


def report_until_ready(
    paths: NodePaths, settings: NodeSettings, *, started: float, timeout: float, alive: Callable[[], bool]
) -> None:
    """Print a line per milestone with the seconds since `started` (monotonic); NotReady after `timeout`,
    AddressRefused as soon as the agent says so. Returns when all of the node's processes were started: the
    supervisor may put one off for longer than the node takes to be Ready.

    `alive` says whether the supervisor still runs; once it does not, waiting is pointless.
    """
    began = time.time() - (time.monotonic() - started)
    wait = _Waiter(paths, started + timeout, alive)
    # A joined node's kubeconfig is made by its agent, when the API server has signed its certificate.
    kubeconfig = paths.kubeconfig("kubelet" if settings.server else "admin")
    missing = "the node did not get a certificate" if settings.server else "the certificates were not made"
    wait.until(kubeconfig.exists, lambda: missing)
    client = _Client(paths)
    wait.until(lambda: _serves(client.current()), lambda: "the API server does not answer")
    answered = time.monotonic() - started
    where = f"at {settings.server}" if settings.server else f"on port {settings.secure_port}"
    print(f"API server answers {where} after {answered:.2f} s", flush=True)
    name = settings.node_name

    def ready() -> bool:
        refuse(paths, began)
        since = agent_start(paths)
        return since is not None and node_is_ready(client.current(), name, since)

    try:
        wait.until(ready, lambda: why_not_ready(client.current(), name))
    finally:
        client.close()
    print(f"Node {name} is Ready after {time.monotonic() - started:.2f} s", flush=True)
    wait.until(
        lambda: not unstarted(paths, settings),
        lambda: f"not started yet: {', '.join(unstarted(paths, settings))}",
    )
    paths.kubeconfig("bootstrap-kubelet").unlink(missing_ok=True)  # its token has done its work
    if not settings.server:
        print(f"Use it:  export KUBECONFIG={kubeconfig}", flush=True)


class _Waiter:
    def __init__(self, paths: NodePaths, deadline: float, alive: Callable[[], bool]) -> None:
        self._paths = paths
        self._deadline = deadline
        self._alive = alive

    def until(self, condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
        while not condition():
            if not self._alive():
                raise NotReady("The supervisor ended")
            if time.monotonic() > self._deadline:
                raise NotReady(f"Gave up waiting: {otherwise()} (see the logs in {self._paths.logs})")
            time.sleep(POLL_SECONDS)


class _Client:
    """A client by the kubeconfig as it is now: one of an earlier start may still name another port. It is
    read again only when it is another file: that takes 2 ms of the processor that the server starts on.
    """

    def __init__(self, paths: NodePaths) -> None:
        self._paths = paths
        self._read: tuple[tuple[str, int, int], RestClient] | None = None

    def current(self) -> RestClient:
        file = login.own_kubeconfig(self._paths)
        found = file.stat()
        stamp = str(file), found.st_ino, found.st_mtime_ns
        if self._read is None or self._read[0] != stamp:
            self.close()
            self._read = stamp, login.client(self._paths, "up")
        return self._read[1]

    def close(self) -> None:
        if self._read is not None:
            self._read[1].close()


def expected(settings: NodeSettings | None) -> tuple[str, ...]:
    """The processes that this node should have: the control plane of a joined one is elsewhere."""
    joined = settings is not None and settings.server
    return tuple(name for name in PROCESSES if not (joined and name == "controlplane"))


def _living(paths: NodePaths) -> SupervisorState | None:
    """What the supervisor that runs wrote; None where none runs, or it has not started anything yet."""
    state = read_state(paths.run)
    return state if state is not None and state.supervisor.alive() else None


def agent_start(paths: NodePaths) -> float | None:
    """When the running supervisor started its agent, the last time (epoch seconds)."""
    state = _living(paths)
    agent = state.children.get("agent") if state is not None else None
    return agent.started() if agent is not None else None


def unstarted(paths: NodePaths, settings: NodeSettings) -> list[str]:
    """Which of the node's processes the running supervisor has not started yet."""
    state = _living(paths)
    started = {"supervisor", *state.children} if state is not None else set()
    return [name for name in expected(settings) if name not in started]


def _serves(client: RestClient) -> bool:
    from kubeclient.errors import ApiError

    try:
        return client.raw("GET", "/readyz")[0] == 200
    except ApiError:
        return False


def refuse(paths: NodePaths, since: float) -> None:
    """Raise AddressRefused where an agent that started after `since` (epoch seconds) must not register."""
    try:
        written = announcement.file(paths).stat().st_mtime
    except FileNotFoundError:
        return
    said = announcement.read(paths)
    if written >= since and said is not None and said.refused:
        raise AddressRefused(said.refused)


def node_is_ready(client: RestClient, name: str, since: float) -> bool:
    """Whether an agent that started after `since` (epoch seconds) says Ready=True of the node."""
    from kubeclient.errors import ApiError
    from kubeclient.resources import LEASES, NODES

    try:
        if not is_reported_ready(client.get(NODES, name), since):
            return False
        renewed = client.get(LEASES, name, LEASE_NAMESPACE)["spec"].get("renewTime", "")
    except ApiError:
        return False
    return _epoch(renewed) >= since


def is_reported_ready(node: dict[str, Any], since: float) -> bool:
    """Whether the Node's Ready condition is True, by a heartbeat in the second of `since` or later."""
    for entry in node.get("status", {}).get("conditions", []):
        if entry["type"] == "Ready":
            return entry["status"] == "True" and _epoch(entry.get("lastHeartbeatTime", "")) >= int(since)
    return False


def _epoch(stamp: str) -> float:
    """Seconds of an API timestamp; 0 for none."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def why_not_ready(client: RestClient, name: str) -> str:
    """What the node itself says about not being Ready, if it was heard at all."""
    from kubeclient.errors import ApiError
    from kubeclient.resources import NODES

    try:
        node = client.get(NODES, name)
    except ApiError as error:
        return f"node {name} is not Ready: {error}"
    entries = node.get("status", {}).get("conditions", [])
    reasons = [e.get("message", "") for e in entries if e["type"] == "Ready" and e["status"] != "True"]
    return f"node {name} is not Ready" + (f": {reasons[0]}" if reasons else "")


def condition(obj: dict[str, Any], kind: str) -> str:
    """Status of one of the object's conditions, or "" where it has none such."""
    conditions = obj.get("status", {}).get("conditions", [])
    return next((str(c["status"]) for c in conditions if c["type"] == kind), "")
