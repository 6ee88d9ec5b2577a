"""`sudo ./hack/isolate .venv/bin/python -m tests.bench.kubelet_scale [ROW…]`: the agent with many pods.

    pods       500 pods on one node: the agent's memory (PSS) and what it costs when nothing happens
    exit       a container's end, until the API tells it
    restart    SIGKILL of the agent among 100 pods, until the next one has adopted all
    configmap  a ConfigMap's change, until the file in a pod's volume has it
    probes     300 probes a second, half httpGet and half tcpSocket, answered by busybox's httpd in the pods
    execs      300 exec probes a second of busybox's `true`

All on one node below a temporary root. CPU is the kernel's count of the agent's own time (utime + stime), so
it holds on a machine that has other things to do; seconds do not, so `restart` tells both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "e2e")]

from e2e_node import NODE_IP, Node, make_uplink, pod, sh  # noqa: E402

from kubeclient import kubeconfig  # noqa: E402
from kubeclient.resources import CONFIG_MAPS, PODS  # noqa: E402
from kubeclient.rest import RestClient  # noqa: E402
from tests.bench.__main__ import PodWatch, gone, percentile, ready, running  # noqa: E402

MANY, SOME = 500, 100
PROBES = 300
# relists (30 s), syncFrequency (60 s) and the lease (10 s) all have their turn in it
IDLE_SECONDS = 65
SENDERS = 8
Actions = Callable[[int], tuple[dict[str, Any], dict[str, Any]]]  # by port, readiness and liveness
LONGEST = 300.0  # seconds until all pods are as they should be


class Bench:
    """A node, its API, and its pods."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.client = RestClient(kubeconfig.load(node.kubeconfig), user_agent="bench")
        self.watch = PodWatch(self.client)
        self._alive: set[str] = set()

    def make(self, bodies: list[dict[str, Any]], condition: Callable[[str, dict[str, Any]], bool]) -> float:
        """Create these pods; seconds until the last is `condition`."""
        begun = time.perf_counter()
        with ThreadPoolExecutor(SENDERS) as senders:
            list(senders.map(lambda body: self.client.create(PODS, body, "default"), bodies))
        names = {body["metadata"]["name"] for body in bodies}
        self._alive |= names
        return max(self.watch.until(names, condition, LONGEST).values()) - begun

    def clear(self) -> float:
        """Delete all pods; seconds until the last is gone."""
        names, self._alive = self._alive, set()
        begun = time.perf_counter()
        for name in names:
            self.client.delete(PODS, name, "default", grace_period_seconds=1)
        return max(self.watch.until(names, gone, LONGEST).values(), default=begun) - begun

    def process(self, name: str) -> psutil.Process:
        return psutil.Process(self.node.pid(name))

    def idle(self, seconds: float) -> dict[str, float]:
        """Share of a core (percent) that each process of the node takes while nobody asks for anything."""
        processes = {name: self.process(name) for name in ("agent", "controlplane", "proxy", "supervisor")}
        groups = {name: [process] for name, process in processes.items()}
        groups["shims"] = [psutil.Process(record["shim"]["pid"]) for record in self.records()]
        before, begun = {name: _seconds(group) for name, group in groups.items()}, time.perf_counter()
        time.sleep(seconds)
        span = time.perf_counter() - begun
        return {name: (_seconds(group) - before[name]) / span * 100 for name, group in groups.items()}

    def records(self) -> list[dict[str, Any]]:
        """What the runtime wrote down of each sandbox; those that it has given up begin with a dot."""
        folder = self.node.root / "run/kubelet-py/sandboxes"
        return [json.loads(file.read_text()) for file in folder.glob("[!.]*/state.json")]

    def container_pid(self, container_id: str) -> int:
        """The first process of a container ("kubelet-py://<id>" as the API has it)."""
        folder = self.node.root / "var/lib/kubelet-py/containers" / container_id.rpartition("/")[2]
        return int(json.loads((folder / "state.json").read_text())["process"]["pid"])

    def adopted(self) -> int:
        """How many pods the agent knows of and holds; 0 while it does not answer."""
        pki = self.node.root / "etc/kubelet-py/pki"
        context = ssl._create_unverified_context()
        context.load_cert_chain(pki / "apiserver-kubelet-client.crt", pki / "apiserver-kubelet-client.key")
        connection = HTTPSConnection(NODE_IP, 10250, timeout=5, context=context)
        try:
            connection.request("GET", "/runningpods/")
            return len(json.loads(connection.getresponse().read())["items"])
        except (OSError, ValueError):
            return 0
        finally:
            connection.close()


def _seconds(processes: list[psutil.Process]) -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def _tell(what: str, measured: str, goal: str) -> None:
    print(f"| {what} | {measured} | {goal} |", flush=True)


def pods(bench: Bench) -> None:
    span = bench.make([pod(f"many-{number}") for number in range(MANY)], running)
    agent = bench.process("agent")
    _tell(f"{MANY} pods at once, all Running", f"{span:.1f} s", "works")
    time.sleep(5)
    shares = bench.idle(IDLE_SECONDS)
    memory = agent.memory_full_info().pss / 1e6
    _tell(f"PSS of the agent, {MANY} pods", f"{memory:.0f} MB, {agent.num_threads()} threads", "≤ 150 MB")
    others = ", ".join(f"{name} {share:.1f}" for name, share in shares.items() if name != "agent")
    _tell(f"idle CPU of the agent, {MANY} pods", f"{shares['agent']:.1f} % of a core ({others})", "≤ 10 %")
    span = bench.clear()
    _tell(f"{MANY} pods deleted with grace 1, all gone", f"{span:.1f} s", "works")


def container_exit(bench: Bench) -> None:
    """SIGKILL to the first process; restartPolicy Never, so that the end is the last thing said."""
    spans = []
    for number in range(50):
        name = f"exit-{number}"
        bench.make([pod(name, restartPolicy="Never")], running)
        status = bench.client.get(PODS, name, "default")["status"]["containerStatuses"][0]
        process = bench.container_pid(status["containerID"])
        time.sleep(0.2)  # what a start leaves to do is done
        begun = time.perf_counter()
        os.kill(process, signal.SIGKILL)
        spans.append(bench.watch.until({name}, _terminated)[name] - begun)
    bench.clear()
    p50, p99 = statistics.median(spans) * 1e3, percentile(spans, 0.99) * 1e3
    _tell("container exit to its status in the API (50), p50 / p99", f"{p50:.0f} / {p99:.0f} ms", "≤ 50 ms")


def _terminated(kind: str, obj: dict[str, Any]) -> bool:
    statuses = obj.get("status", {}).get("containerStatuses") or [{}]
    return "terminated" in (statuses[0].get("state") or {})


def restart(bench: Bench) -> None:
    bench.make([pod(f"stay-{number}") for number in range(SOME)], running)
    before = {record["pause"]["pid"] for record in bench.records()}
    spans, costs, downs = [], [], []
    for _ in range(5):
        time.sleep(11)  # the supervisor starts one that lived long enough anew at once
        old = bench.process("agent")
        begun = time.perf_counter()
        old.kill()
        while (new := _agent(bench.node)) in (0, old.pid):
            time.sleep(0.002)
        downs.append(time.perf_counter() - begun)
        agent = psutil.Process(new)
        while bench.adopted() != SOME:
            time.sleep(0.01)
        spans.append(time.perf_counter() - begun)
        costs.append(_seconds([agent]))
    after = {record["pause"]["pid"] for record in bench.records()}
    assert after == before, f"pods were started anew: {after - before} for {before - after}"
    bench.clear()
    span, cost, down = (statistics.median(values) for values in (spans, costs, downs))
    measured = (
        f"{span:.2f} s (worst of 5: {max(spans):.2f}), new process after {down:.2f} s, its CPU {cost:.2f} s"
    )
    _tell(f"SIGKILL of the agent to {SOME} pods adopted", measured, "≤ 1 s")


def _agent(node: Node) -> int:
    try:
        state = json.loads((node.root / "run/kubelet-py/supervisor.json").read_text())
    except FileNotFoundError:
        return 0
    return int(state["children"].get("agent", [0])[0])


def configmap(bench: Bench) -> None:
    """The file as the container sees it, through /proc/<pid>/root."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"key": "0"}}
    bench.client.create(CONFIG_MAPS, body, "default")
    volume = {"name": "settings", "configMap": {"name": "settings"}}
    container = {"volumeMounts": [{"name": "settings", "mountPath": "/settings"}]}
    bodies = [pod(f"map-{number}", container=container, volumes=[volume]) for number in range(20)]
    bench.make(bodies, running)
    files = []
    for number in range(20):
        status = bench.client.get(PODS, f"map-{number}", "default")["status"]["containerStatuses"][0]
        files.append(Path(f"/proc/{bench.container_pid(status['containerID'])}/root/settings/key"))
    firsts, lasts = [], []
    time.sleep(2)  # the watch of a new pod's ConfigMap begins within a second
    for number in range(1, 21):
        begun = time.perf_counter()
        bench.client.patch(CONFIG_MAPS, "settings", {"data": {"key": str(number)}}, "default")
        seen = []
        while len(seen) < len(files):
            seen = [file for file in files if _text(file) == str(number)]
            if seen and len(firsts) < number:
                firsts.append(time.perf_counter() - begun)
            time.sleep(0.001)
        lasts.append(time.perf_counter() - begun)
    bench.clear()
    bench.client.delete(CONFIG_MAPS, "settings", "default")
    first, last = statistics.median(firsts) * 1e3, statistics.median(lasts) * 1e3
    _tell(
        "ConfigMap change to the file in the first / last of 20 pods",
        f"{first:.0f} / {last:.0f} ms (worst {max(lasts) * 1e3:.0f})",
        "≤ 2 s",
    )


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""  # opened through the folder that was just replaced


def probes(bench: Bench) -> None:
    """Two probes a second for each container, one by HTTP and one by TCP; five containers a pod."""
    _probe(bench, "half httpGet, half tcpSocket", _by_network)


def execs(bench: Bench) -> None:
    """The same by two commands."""
    command = {"exec": {"command": ["true"]}}
    _probe(bench, "all exec", lambda port: (command, command))


def _probe(bench: Bench, what: str, actions: Actions) -> None:
    containers_each = 5
    count = PROBES // (2 * containers_each)
    bench.make([_probed(f"probed-{number}", containers_each, actions) for number in range(count)], ready)
    time.sleep(5)
    before, begun = _probe_count(bench), time.perf_counter()
    share = bench.idle(20)["agent"]
    rate = (_probe_count(bench) - before) / (time.perf_counter() - begun)
    bench.clear()
    _tell(
        f"CPU of the agent with {PROBES} probes a second wanted ({what})",
        f"{share:.1f} % of a core at {rate:.0f} a second",
        "≤ 20 %",
    )


def _by_network(port: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"httpGet": {"port": port, "path": "/hostname"}}, {"tcpSocket": {"port": port}}


def _probed(name: str, count: int, actions: Actions) -> dict[str, Any]:
    body = pod(name)
    every = {"periodSeconds": 1, "timeoutSeconds": 5}
    body["spec"]["containers"] = [
        {
            "name": f"server-{port}",
            "image": "busybox",
            "imagePullPolicy": "IfNotPresent",
            "command": ["httpd", "-f", "-p", str(port), "-h", "/etc"],
            "readinessProbe": {**actions(port)[0], **every},
            "livenessProbe": {**actions(port)[1], **every},
        }
        for port in range(8000, 8000 + count)
    ]
    return body


def _probe_count(bench: Bench) -> int:
    done = bench.node.kubectl("get", "--raw", f"/api/v1/nodes/{_node_name(bench)}/proxy/metrics/probes")
    lines = [line for line in done.out.splitlines() if line.startswith("prober_probe_total")]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)


def _node_name(bench: Bench) -> str:
    return bench.node.kubectl("get", "nodes", "-o", "name").out.strip().removeprefix("node/")


ROWS: dict[str, Callable[[Bench], None]] = {
    "exit": container_exit,
    "configmap": configmap,
    "probes": probes,
    "execs": execs,
    "restart": restart,
    "pods": pods,
}


@contextmanager
def bench_node() -> Iterator[Bench]:
    """A node that may have 500 pods: 550 are allowed, and a /22 has addresses for 1,021."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed copy has its bytecode beside it
    outside = f"kpyscale{os.getpid()}"
    make_uplink(outside)
    root = Path(tempfile.mkdtemp(prefix="kpy-", dir="/tmp"))
    node = Node(root, outside)
    try:
        file = root / "kubelet.json"
        file.write_text(json.dumps({"maxPods": MANY + 50}))
        node.import_busybox()
        node.cli("up", "--detach", "--kubelet-config", str(file), "--node-cidr-mask-size", "22")
        yield Bench(node)
    finally:
        node.cli("reset", "--yes", check=False, timeout=300)
        sh("ip", "link", "del", "up0")
        sh("ip", "netns", "del", outside)
        shutil.rmtree(root)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.kubelet_scale", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"any of {', '.join(ROWS)} (default all)")
    args = parser.parse_args()
    unknown = set(args.rows) - set(ROWS)
    if unknown:
        parser.error(f"unknown row {', '.join(sorted(unknown))} (known: {', '.join(ROWS)})")
    if os.geteuid() != 0:
        parser.error("this needs root: sudo ./hack/isolate .venv/bin/python -m tests.bench.kubelet_scale")
    with bench_node() as bench:
        print("| what | measured | goal |\n|---|---|---|", flush=True)
        for name, row in ROWS.items():
            if not args.rows or name in args.rows:
                row(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
