"""The control plane as a process, and nodes that only say that their pods run.

A fake node does over the real API what a kubelet does: it registers itself, renews its Lease, reports its
pods Running and Ready, and deletes them for good when they are to end. So what the controllers do is seen
whole, with nothing of the runtime in the way.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
import yaml

from controlplane import authority
from kubeclient.errors import ApiError, ServerUnavailable
from kubeclient.informer import Informer
from kubeclient.kubeconfig import load
from kubeclient.resources import DEPLOYMENTS, LEASES, NAMESPACES, NODES, PODS, REPLICA_SETS
from kubeclient.rest import RestClient

Object = dict[str, Any]
Kubectl = Callable[..., subprocess.CompletedProcess[str]]


class Process:
    """One control plane on a loopback port."""

    def __init__(self, folder: Path, *, controllers: str, flags: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.flags = flags
        self.controllers = controllers
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        authority.ensure(authority.Cluster(folder, "127.0.0.1", "n1", self.port))
        user = yaml.safe_load((folder / "admin.conf").read_text())["users"][0]["user"]
        for name in ("certificate", "key"):
            (folder / name).write_bytes(base64.b64decode(user[f"client-{name}-data"]))
        self.running: subprocess.Popen[str] | None = None

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "controlplane.main",
            f"--config-dir={self.folder}",
            f"--data-dir={self.folder / 'store'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--controllers={self.controllers}",
            *self.flags,
        ]

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self.running = subprocess.Popen(
                self.command(), stderr=log, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if self.request("GET", "/readyz").status_code == 200:
                    return
            except requests.ConnectionError:
                assert self.running.poll() is None, (self.folder / "log").read_text()
        raise AssertionError("the control plane was not ready after 20 s")

    def session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.folder / "pki/ca.crt")
        session.cert = (str(self.folder / "certificate"), str(self.folder / "key"))
        return session

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> requests.Response:
        with self.session() as session:
            return session.request(
                method, f"https://127.0.0.1:{self.port}{path}", json=body, timeout=10, **options
            )

    def end(self, number: int) -> int:
        assert self.running is not None
        self.running.send_signal(number)
        code = self.running.wait(10)
        self.running = None
        return code

    def kill(self) -> None:
        if self.running is not None:
            self.end(signal.SIGKILL)


class FakeNode:
    """Runs nothing, says that everything runs; a Lease every `beat` seconds, unless it is `silent`."""

    def __init__(self, client: RestClient, name: str, *, beat: float = 10.0) -> None:
        self.client = client
        self.name = name
        self.beat = beat
        self.silent = False
        self.hold_endings = False
        self.ready: Callable[[Object], bool] = lambda pod: True
        self.exit_code: Callable[[Object], int | None] = lambda pod: None
        self._ended: set[str] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._register()
        self._pods = Informer(client, PODS, field_selector=f"spec.nodeName={name}", on_event=self._on_pod)
        self._pods.start()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._pods.stop()
        self._thread.join()

    def speak(self) -> None:
        """Be heard again: what a kubelet does that finds itself called Unknown, and its pods not Ready."""
        self.silent = False
        self._renew()
        stamp = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": _now()}
        self.client.patch(NODES, self.name, {"status": {"conditions": [stamp]}}, subresource="status")
        self.release_endings()

    def release_endings(self) -> None:
        self.hold_endings = False
        for pod in self._pods.list():
            self._on_pod("MODIFIED", pod, None)

    def _register(self) -> None:
        capacity = {"cpu": "4", "memory": "8Gi", "pods": "110"}
        condition = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
        status = {"capacity": capacity, "allocatable": capacity, "conditions": [condition]}
        self.client.create(NODES, {"metadata": {"name": self.name}, "status": status})

    def _beat(self) -> None:
        self._renew()
        while not self._stopped.wait(self.beat):
            if not self.silent:
                # A control plane that is away is asked again at the next beat, as a kubelet does.
                with contextlib.suppress(ServerUnavailable):
                    self._renew()

    def _renew(self) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        lease = {"metadata": {"name": self.name}, "spec": {"holderIdentity": self.name, "renewTime": stamp}}
        self.client.update(LEASES, lease | {"metadata": {"name": self.name, "namespace": "kube-node-lease"}})

    def _on_pod(self, kind: str, pod: Object, old: Object | None) -> None:
        # The watch's thread and the test's: one after the other, and what has ended does not run again.
        # Nor is anything lost that a control plane did not hear because it was killed: it is told again.
        with self._lock:
            while not self._stopped.is_set():
                try:
                    self._step(kind, pod)
                except ServerUnavailable:
                    self._stopped.wait(0.1)
                else:
                    return

    def _step(self, kind: str, pod: Object) -> None:
        metadata, status = pod["metadata"], pod.get("status") or {}
        try:
            if kind == "DELETED" or self.silent:
                return
            if metadata.get("deletionTimestamp"):
                if not self.hold_endings:
                    if metadata.get("finalizers") and metadata["uid"] not in self._ended:
                        self._end(pod, 143)
                    self.client.delete(PODS, metadata["name"], metadata["namespace"], grace_period_seconds=0)
            elif metadata["uid"] in self._ended:
                return
            elif status.get("phase") != "Running" and self.ready(pod):
                condition = {"type": "Ready", "status": "True", "lastTransitionTime": _now()}
                body = {"status": {"phase": "Running", "podIP": "10.244.0.9", "conditions": [condition]}}
                self.client.patch(PODS, metadata["name"], body, metadata["namespace"], subresource="status")
            elif status.get("phase") == "Running" and (code := self.exit_code(pod)) is not None:
                self._end(pod, code)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    def look_again(self) -> None:
        """Take the next step of each pod, also those whose `exit_code` is another now."""
        for pod in self._pods.list():
            self._on_pod("MODIFIED", pod, None)

    def _end(self, pod: Object, code: int) -> None:
        ended = {"exitCode": code, "finishedAt": _now(), "reason": "Error" if code else "Completed"}
        name = pod["spec"]["containers"][0]["name"]
        entry = {"name": name, "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
        condition = {"type": "Ready", "status": "False", "lastTransitionTime": _now()}
        status = {
            "phase": "Failed" if code else "Succeeded",
            "conditions": [condition],
            "containerStatuses": [{**entry, "state": {"terminated": ended}}],
        }
        metadata = pod["metadata"]
        self.client.patch(
            PODS, metadata["name"], {"status": status}, metadata["namespace"], subresource="status"
        )
        self._ended.add(metadata["uid"])


class Cluster:
    """The process with a client for it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.client = RestClient(load(process.folder / "admin.conf"))
        self.nodes: list[FakeNode] = []

    def new_namespace(self) -> str:
        made = self.client.create(NAMESPACES, {"metadata": {"generateName": "t-"}})
        return str(made["metadata"]["name"])

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 20) -> Any:
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            if time.monotonic() > deadline:
                words = (self.process.folder / "log").read_text().splitlines()[-15:]
                raise AssertionError(f"Not within {seconds} s: {what}\n" + "\n".join(words))
            time.sleep(0.02)
        return answer

    def pods(self, namespace: str, selector: str | None = None) -> list[Object]:
        return list(self.client.list(PODS, namespace, label_selector=selector)["items"])

    def sets(self, namespace: str) -> list[Object]:
        """ReplicaSets by revision."""
        found = self.client.list(REPLICA_SETS, namespace)["items"]
        return sorted(found, key=lambda s: int(s["metadata"]["annotations"][REVISION]))

    def deploy(self, namespace: str, name: str, replicas: int, image: str = "one", **spec: Any) -> Object:
        return self.client.create(DEPLOYMENTS, deployment(name, replicas, image, **spec), namespace)

    def wait_complete(self, namespace: str, name: str) -> Object:
        def complete() -> Object | None:
            found = self.client.get(DEPLOYMENTS, name, namespace)
            status, wanted = found.get("status") or {}, found["spec"]["replicas"]
            done = status.get("observedGeneration") == found["metadata"]["generation"]
            counts = (status.get(n, 0) for n in ("replicas", "updatedReplicas", "availableReplicas"))
            return found if done and all(count == wanted for count in counts) else None

        return dict(self.until(f"deployment {name} complete", complete))

    def change(self, namespace: str, name: str, spec: Object) -> None:
        self.client.patch(DEPLOYMENTS, name, {"spec": spec}, namespace)


REVISION = "deployment.kubernetes.io/revision"


def template(labels: dict[str, str], image: str) -> Object:
    return {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}}


def deployment(name: str, replicas: int, image: str, **spec: Any) -> Object:
    labels = {"app": name}
    body = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template(labels, image)}
    return {"metadata": {"name": name}, "spec": body | spec}


def image(name: str) -> Object:
    """A Deployment's spec patch that starts a rollout."""
    return {"template": {"spec": {"containers": [{"name": "c", "image": name}]}}}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
