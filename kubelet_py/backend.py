"""What the kubelet's HTTPS server asks of the agent: pods, containers, logs, streams into them.

Texts of LookupError reach kubectl's user, so they are upstream's (kubelet_pods.go).
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kubelet_py.config import Config
from kubelet_py.configz import to_document
from kubelet_py.instruments import Instrument
from kubelet_py.node.meter import Meter
from kubelet_py.node.usage import NodeUsage
from kubelet_py.pods import timeline
from kubelet_py.pods.durations import Distribution
from kubelet_py.pods.model import ContainerView, Object, epoch, every_container, host_network, timestamp
from kubelet_py.pods.pleg import Pleg
from kubelet_py.pods.pod_manager import PodManager
from kubelet_py.pods.prober import Prober
from kubelet_py.pods.pull_counts import PullCounts
from kubelet_py.pods.record import PodRecord
from kubelet_py.pods.timed_runtime import TimedRuntime
from kubelet_py.pods.timeline import Timelines
from kubelet_py.volumes.manager import plugin
from kubelet_py.volumes.plugin import kind_of
from runtime.streams import Stream

CLONE_NEWNET = 0x40000000
CONNECT_SECONDS = 10.0
HEAR_SECONDS = 10.0


class AgentBackend:
    """Implements kubelet_py.server.app.Backend."""

    def __init__(
        self,
        manager: PodManager,
        pleg: Pleg,
        runtime: TimedRuntime,
        meter: Meter,
        prober: Prober,
        config: Config,
        timelines: Timelines,
        pulls: PullCounts,
        instruments: Callable[[], Sequence[Instrument]],
        expiries: Callable[[], Mapping[str, float]],
        heard: Callable[[float], bool],
    ) -> None:
        """`heard(seconds)` waits that long until the agent has heard of all its pods; whether it has."""
        self._heard = heard
        self._manager = manager
        self._pleg = pleg
        self._runtime = runtime
        self._meter = meter
        self._prober = prober
        self._config = config
        self._timelines = timelines
        self._pulls = pulls
        self._instruments = instruments
        self._expiries = expiries

    def measure(self, *, disks: bool, network: bool, detail: bool) -> NodeUsage:
        return self._meter.measure(disks=disks, network=network, detail=detail)

    def probe_results(self) -> list[tuple[Mapping[str, str], Mapping[str, int], Distribution]]:
        return self._prober.results()

    def instruments(self) -> Sequence[Instrument]:
        return [*self._instruments(), *self._meter.instruments]

    def expiries(self) -> Mapping[str, float]:
        return self._expiries()

    def volume_counts(self) -> dict[tuple[str, str], int]:
        """How many volumes of each plugin are wanted, and how many are there, in upstream's words."""
        counts: Counter[tuple[str, str]] = Counter()
        for record in self._manager.records():
            for volume in record.pod["spec"].get("volumes") or ():
                name = plugin(kind_of(volume))
                if not record.cleaned:
                    counts[name, "desired_state_of_world"] += 1
                if volume["name"] in (record.volumes or {}):
                    counts[name, "actual_state_of_world"] += 1
        return counts

    def pods(self) -> list[Object]:
        answer = []
        for record in self._manager.records():
            status = record.status or record.pod.get("status") or {}
            answer.append({**record.pod, "status": status})
        return answer

    def running_pods(self) -> list[Object]:
        """As the runtime has them: only names and images."""
        answer = []
        for record in self._manager.records():
            view = self._pleg.view(record.uid)
            if view.sandbox is None or not view.sandbox.ready:
                continue
            metadata = {key: record.pod["metadata"][key] for key in ("name", "namespace", "uid")}
            running = [{"name": c.name, "image": c.image, "resources": {}} for c in view.running()]
            answer.append({"metadata": metadata, "spec": {"containers": running}, "status": {}})
        return answer

    def timeline(self, namespace: str, pod: str) -> Object:
        record = self._record(namespace, pod, None)
        created = epoch(record.pod["metadata"].get("creationTimestamp") or timestamp(record.seen_at))
        return timeline.document(record.pod, created, record.seen_at, self._timelines.of(record.uid))

    def starts(self) -> Distribution:
        return self._timelines.starts()

    def operations(self) -> dict[str, Distribution]:
        return {**self._timelines.operations(), **self._runtime.operations(), **self._pulls.operations()}

    def settings(self) -> Object:
        return to_document(self._config)

    def container_id(self, namespace: str, pod: str, container: str, uid: str | None = None) -> str:
        """The id of the running attempt."""
        record = self._record(namespace, pod, uid)
        attempts = self._attempts(record, pod, container)
        if not attempts or attempts[0].state != "RUNNING":
            raise LookupError(f'container not found ("{container}")')
        return attempts[0].id

    def container_running(self, namespace: str, pod: str, container: str) -> bool:
        record = self._manager.find(namespace, pod)
        if record is None:
            return False
        latest = self._pleg.view(record.uid).latest(container)
        return latest is not None and latest.state == "RUNNING"

    def log_path(self, namespace: str, pod: str, container: str, *, previous: bool) -> Path:
        record = self._record(namespace, pod, None)
        attempts = self._attempts(record, pod, container)
        if previous:
            # While a container waits for its restart, the attempt that crashed is the previous one.
            waiting = container in record.waiting and attempts[:1] and attempts[0].state == "EXITED"
            ended = attempts if waiting else attempts[1:]
            if not ended:
                raise LookupError(f'previous terminated container "{container}" in pod "{pod}" not found')
            return self._log_of(ended[0])
        if not attempts and (gone := _terminated(record.status or {}, container)):
            raise LookupError(f"unable to retrieve container logs for {gone}")
        if not attempts or (attempts[0].started_at is None and attempts[0].state != "EXITED"):
            waiting_for = record.waiting.get(container)
            reason = waiting_for.reason if waiting_for else "ContainerCreating"
            if waiting_for is not None and reason in ("ErrImagePull", "ImagePullBackOff"):
                text = "trying and failing to pull image"
                raise LookupError(f'container "{container}" in pod "{pod}" is waiting to start: {text}')
            raise LookupError(f'container "{container}" in pod "{pod}" is waiting to start: {reason}')
        return self._log_of(attempts[0])

    def exec(
        self, container_id: str, argv: Sequence[str], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> Stream:
        return self._runtime.exec(container_id, argv, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)

    def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Stream:
        return self._runtime.attach(container_id, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)

    def port_forward(self, namespace: str, pod: str, port: int) -> socket.socket:
        """A connection to the pod's own loopback: made by a thread that is inside its network namespace."""
        record = self._record(namespace, pod, None)
        if host_network(record.pod):
            return socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS)
        sandbox = self._pleg.view(record.uid).sandbox
        if sandbox is None or not sandbox.ready:
            raise LookupError(f'pod "{pod}" has no running sandbox')
        return connect_inside(sandbox.netns, port)

    def _record(self, namespace: str, pod: str, uid: str | None) -> PodRecord:
        record = self._manager.find(namespace, pod, uid)
        if record is None and self._heard(HEAR_SECONDS):
            # An agent that has just come back serves before the API has told it the pods that run here.
            record = self._manager.find(namespace, pod, uid)
        if record is None:
            raise LookupError(f'pod "{pod}" does not exist')
        return record

    def _attempts(self, record: PodRecord, pod: str, container: str) -> tuple[ContainerView, ...]:
        if all(spec["name"] != container for spec in every_container(record.pod)):
            raise LookupError(f'container "{container}" not found in pod "{pod}"')
        return self._pleg.view(record.uid).attempts(container)

    def _log_of(self, container: ContainerView) -> Path:
        return Path(self._runtime.container(container.id).config.log_path)


def _terminated(status: Object, container: str) -> str:
    """The id under which the container was told to have ended, "" when it was not: its record may be gone,
    where the disk was full."""
    for kind in ("containerStatuses", "initContainerStatuses"):
        for entry in status.get(kind) or ():
            if entry["name"] == container:
                return str((entry.get("state") or {}).get("terminated", {}).get("containerID", ""))
    return ""


def connect_inside(netns: str, port: int) -> socket.socket:
    """Connect to 127.0.0.1:port in another network namespace. Raises OSError.

    A socket stays in the namespace it was made in, and setns changes only the thread that calls it; so a
    throwaway thread makes the socket.
    """
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(descriptor, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"Could not enter {netns}")
            finally:
                os.close(descriptor)
            made.append(socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="port-forward")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    made[0].settimeout(None)
    return made[0]
