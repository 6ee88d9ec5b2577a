"""A lab that all scenarios share, the application that runs in it, and those who ask it all the time.

The application is written as one should be: it is ready when it can answer, and when it is told to end it
says first that it is not ready and answers for some seconds more. So whoever asks it through a Service need
never see a failure, whatever happens to one of its pods.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e_node import KUBECTLS, Done, main_kubectls, run_command

from kubeclient.errors import ApiError, NotFound
from kubeclient.kubeconfig import load
from kubeclient.resources import NAMESPACES, NODES, PODS, Resource
from kubeclient.rest import RestClient

Object = dict[str, Any]
PATIENCE = 90.0  # seconds for what takes a few on a quiet machine
PORT = 8080
LINGER = 8  # seconds that the application answers after it was told to end; time enough to be taken out
SERVE = f"""
mkdir -p /tmp/www && echo $HOSTNAME > /tmp/www/index.html && touch /tmp/www/ready
trap 'rm -f /tmp/www/ready; sleep {LINGER}; exit 0' TERM
httpd -f -p {PORT} -h /tmp/www &
wait
"""
# By name and by address: the static busybox cannot do both at once, and its own -T ends in a crash.
CALL = """
while :; do
    if nslookup web.$0.svc.cluster.local > /tmp/found && timeout 20 wget -q -O /tmp/answer http://$WEB_SERVICE_HOST/
    then echo answered
    else echo failed $(date) $(cat /tmp/found)
    fi
    sleep 0.1
done
"""


class Lab:
    """The commands that a person would type, and a client of the API for what tests ask all the time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kubeconfig = ""
        self._client: RestClient | None = None

    @property
    def client(self) -> RestClient:
        if self._client is None:
            self._client = RestClient(load(Path(self._kubeconfig)))
        return self._client

    def up(self, nodes: int) -> None:
        self.cli("up", "--nodes", str(nodes), timeout=240)
        self._kubeconfig = self.cli("kubeconfig").out.strip()
        busybox = shutil.which("busybox")
        assert busybox, "busybox-static is needed"
        self.cli("image", "from-binary", busybox, "--name", "busybox")

    def down(self) -> None:
        if self._client is not None:
            self._client.close()
        self.cli("down")

    def cli(self, *argv: str, check: bool = True, timeout: float = 2 * PATIENCE) -> Done:
        command = [sys.executable, "-m", "kubelet_py", "lab", "--root", str(self.root), *argv]
        return run_command(command, check=check, timeout=timeout, env=dict(os.environ))

    def node(self, name: str, *argv: str) -> None:
        """`kubelet-py lab node NAME VERB …`"""
        self.cli("node", name, *argv)

    def kubectl_argv(self, *argv: str) -> list[str]:
        return [KUBECTLS[main_kubectls()[-1]], "--kubeconfig", self._kubeconfig, *argv]

    def kubectl(self, *argv: str, check: bool = True) -> Done:
        environment = os.environ | {"HOME": str(self.root)}
        return run_command(self.kubectl_argv(*argv), check=check, timeout=2 * PATIENCE, env=environment)

    def machines(self) -> dict[str, Object]:
        """What `lab status` says, by the machines' names."""
        done = self.cli("status", "--output", "json", check=False)
        return {row["name"]: row for row in json.loads(done.out)["machines"]}

    def address(self, name: str) -> str:
        return str(self.machines()[name]["address"])

    def mend(self) -> None:
        """Every machine on, connected, schedulable and Ready, whatever a test left."""
        for name, row in self.machines().items():
            if row["power"] != "on":
                self.node(name, "start")
            if row["cable"] not in ("ok", "-"):
                self.node(name, "heal")
        for node in self.until("the API answers", self._nodes):
            if node["spec"].get("unschedulable"):
                self.client.patch(NODES, node["metadata"]["name"], {"spec": {"unschedulable": None}})
        self.until("all nodes Ready", lambda: {ready(n) for n in self._nodes()} == {"True"})

    def _nodes(self) -> list[Object]:
        try:
            return list(self.client.list(NODES)["items"])
        except ApiError:
            return []

    def until(self, what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Ask again and again until `condition` is true; fail with `what` and the last answer."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"Not within {seconds:.0f} s: {what}; last answer {answer!r}\n{self.words()}"
                )
            time.sleep(0.1)
        return answer

    def words(self) -> str:
        pods = self.kubectl("get", "pods,nodes", "-A", "-o", "wide", check=False).out
        events = self.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp", check=False).out.splitlines()
        logs = [f"--- {name}\n{self.cli('logs', name, check=False).out}" for name in self.machines()]
        return "\n".join([pods, *events[-60:], *logs])

    def find(self, resource: Resource, name: str, namespace: str | None = None) -> Object | None:
        try:
            return self.client.get(resource, name, namespace)
        except NotFound:
            return None


class Place:
    """A namespace of the lab, for one test."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name

    def create(self, resource: Resource, body: Object) -> Object:
        return self.lab.client.create(resource, body, self.name)

    def pods(self, app: str) -> list[Object]:
        return list(self.lab.client.list(PODS, self.name, label_selector=f"app={app}")["items"])

    def spread(self, app: str) -> Counter[str]:
        """How many pods that are not ending each node has."""
        staying = [pod for pod in self.pods(app) if not pod["metadata"].get("deletionTimestamp")]
        return Counter(pod["spec"].get("nodeName", "") for pod in staying)

    def wait_ready(self, app: str, count: int) -> list[Object]:
        """Wait until so many pods, and no others, are there and Ready; these."""

        def there() -> list[Object]:
            found = self.pods(app)
            good = [p for p in found if ready(p) == "True" and not p["metadata"].get("deletionTimestamp")]
            return good if len(good) == len(found) == count else []

        return list(self.lab.until(f"{count} pods of {app} Ready", there))


@contextmanager
def place(lab: Lab, name: str) -> Iterator[Place]:
    made = lab.client.create(NAMESPACES, {"metadata": {"generateName": f"{name}-"}})["metadata"]["name"]
    try:
        yield Place(lab, made)
    finally:
        lab.mend()
        lab.client.delete(NAMESPACES, made)
        lab.until(f"namespace {made} gone", lambda: lab.find(NAMESPACES, made) is None)


def ready(obj: Mapping[str, Any]) -> str:
    """The Ready condition of a node or pod; "" while it has none."""
    return str(condition(obj, "Ready").get("status", ""))


def condition(obj: Mapping[str, Any], kind: str) -> Object:
    found = (obj.get("status") or {}).get("conditions") or []
    return next((c for c in found if c["type"] == kind), {})


def busybox(script: Sequence[str] | str, **container: Any) -> Object:
    command = ["sh", "-c", script] if isinstance(script, str) else list(script)
    return {
        "name": "main",
        "image": "busybox",
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        **container,
    }


def template(app: str, container: Object, **spec: Any) -> Object:
    body = {"containers": [container], "terminationGracePeriodSeconds": 1, **spec}
    return {"metadata": {"labels": {"app": app}}, "spec": body}


def replicated(name: str, replicas: int, pods: Object, **spec: Any) -> Object:
    """A Deployment's or StatefulSet's body."""
    body = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": pods}
    return {"metadata": {"name": name}, "spec": body | spec}


def web(**spec: Any) -> Object:
    """Pods of the application."""
    probe = {"httpGet": {"path": "/ready", "port": PORT}, "periodSeconds": 1, "failureThreshold": 1}
    container = busybox(SERVE, readinessProbe=probe | {"timeoutSeconds": 10})
    return template("web", container, **{"terminationGracePeriodSeconds": 30} | spec)


def service(name: str, app: str, **spec: Any) -> Object:
    body = {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": PORT}], **spec}
    return {"metadata": {"name": name}, "spec": body}


def single(name: str, container: Object, **spec: Any) -> Object:
    """A pod of its own."""
    made = template(name, container, **spec)
    return {"metadata": made["metadata"] | {"name": name}, "spec": made["spec"]}


def on(node: str) -> Object:
    return {"nodeSelector": {"kubernetes.io/hostname": node}}


def caller(node: str, namespace: str) -> Object:
    """A pod that asks the Service web over and over, and writes down how it went."""
    return single(f"caller-{node}", busybox(["sh", "-c", CALL, namespace]), **on(node))


class Caller:
    """Asks a node's port from outside, over and over, while the block lasts."""

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.answered = 0
        self.failures: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._over.wait(0.05):
            connection = http.client.HTTPConnection(self.address, self._port, timeout=20)
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                if answer.status == 200 and answer.read():
                    self.answered += 1
                else:
                    self.failures.append(f"{time.strftime('%H:%M:%S')} status {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{time.strftime('%H:%M:%S')} {type(error).__name__}: {error}")
            finally:
                connection.close()


class Processes:
    """Counts, while the block lasts, how many containers of each identity run on all machines at once.

    The lab's machines share this kernel: what runs in any of them is seen from here, whatever the API says.
    """

    def __init__(self, mark: str) -> None:
        self.most: Counter[str] = Counter()
        self._mark = mark.encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def running(self) -> Counter[str]:
        """By the last word of its command line; of a container only process 1, not what that forks."""
        found: Counter[str] = Counter()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    word = (folder / "cmdline").read_bytes().rpartition(b"\0")[0].rpartition(b"\0")[2]
                    if word.startswith(self._mark) and _is_first(folder):
                        found[word.decode()] += 1
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return found

    def _run(self) -> None:
        while not self._over.wait(0.3):
            self.most |= self.running()


def _is_first(process: Path) -> bool:
    """Whether it is process 1 of its own PID namespace."""
    lines = (process / "status").read_text().splitlines()
    numbers = next(line for line in lines if line.startswith("NSpid:")).split()
    return numbers[-1] == "1"
