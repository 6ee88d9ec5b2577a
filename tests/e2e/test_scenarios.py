"""What becomes of a cluster to which things happen: docs/scenarios.md has the same by hand.

One lab for all. Who reaches whom on direct routes and over VXLAN, and Services and NodePorts through every
node are in test_three_nodes.py. Deadlines are upstream's defaults; only pods say by themselves that they
tolerate a silent node for seconds instead of five minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import host_state
import pytest
from e2e_node import KUBECTLS, REPOSITORY
from lab_scenes import (
    Caller,
    Lab,
    Place,
    Processes,
    busybox,
    caller,
    condition,
    on,
    place,
    ready,
    replicated,
    service,
    single,
    template,
    web,
)

from kubeclient.errors import ApiError
from kubeclient.resources import (
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    LEASES,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    SERVICES,
    STATEFUL_SETS,
)

pytestmark = [pytest.mark.e2e, pytest.mark.scenario, pytest.mark.timeout(900)]

Object = dict[str, Any]
FIRST = ("node1", "node2", "node3")
UNREACHABLE = "node.kubernetes.io/unreachable"
STAY = 5  # seconds that these pods tolerate a silent node
IMPATIENT = {
    "tolerations": [
        {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": STAY}
    ]
}
AWAY = 60.0  # seconds without a control plane


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if not KUBECTLS:
        pytest.skip("no kubectl was found, neither Debian's 1.20 in .cache nor one on PATH")
    before = host_state.read()
    root = Path(tempfile.mkdtemp(prefix="kpy-", dir="/tmp"))
    found = Lab(root)
    try:
        found.up(len(FIRST))
        yield found
    finally:
        found.down()
        if root.exists():  # `lab down` removes it where kubectl kept nothing in it
            shutil.rmtree(root)
    assert host_state.settled_difference(before) == []


@pytest.fixture
def here(lab: Lab) -> Iterator[Place]:
    with place(lab, "scene") as found:
        yield found


def test_a_node_that_joins_late_gets_its_share(lab: Lab, here: Place) -> None:
    here.create(DEPLOYMENTS, replicated("idle", 6, template("idle", busybox(["sleep", "3600"]))))
    here.wait_ready("idle", 6)
    assert here.spread("idle") == Counter(dict.fromkeys(FIRST, 2))
    lab.up(4)
    assert here.spread("idle") == Counter(dict.fromkeys(FIRST, 2)), "nobody is moved"
    lab.client.patch(DEPLOYMENTS, "idle", {"spec": {"replicas": 12}}, here.name)
    here.wait_ready("idle", 12)
    assert here.spread("idle") == Counter(dict.fromkeys((*FIRST, "node4"), 3))


def test_a_drain_waits_for_the_budget_and_goes_on(lab: Lab, here: Place) -> None:
    here.create(DEPLOYMENTS, replicated("web", 3, web()))
    budget = {"minAvailable": 3, "selector": {"matchLabels": {"app": "web"}}}
    here.create(POD_DISRUPTION_BUDGETS, {"metadata": {"name": "web"}, "spec": budget})
    pods = here.wait_ready("web", 3)
    name = pods[0]["spec"]["nodeName"]
    leaving = {pod["metadata"]["name"] for pod in pods if pod["spec"]["nodeName"] == name}
    command = lab.kubectl_argv("drain", name, "--timeout=120s")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY
    ) as drain:
        assert drain.stdout is not None
        said = []
        for line in drain.stdout:
            said.append(line)
            if "violate the pod's disruption budget" in line:
                break
        still = {pod["metadata"]["name"] for pod in here.pods("web") if ready(pod) == "True"}
        assert leaving <= still, "it waits"
        lab.client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 4}}, here.name)
        said.extend(drain.stdout)
    assert drain.returncode == 0, "".join(said)
    here.wait_ready("web", 4)
    assert name not in here.spread("web")


def publish(here: Place) -> int:
    """The application's Service, with a port on every node: that port."""
    port = here.create(SERVICES, service("web", "web", type="NodePort"))["spec"]["ports"][0]["nodePort"]
    return int(port)


def call_from(here: Place, *nodes: str) -> None:
    for node in nodes:
        here.create(PODS, caller(node, here.name))
    lab = here.lab
    for node in nodes:
        lab.until(f"caller on {node}", lambda node=node: said_by(here, node)[-1:] == ["answered"])


def said_by(here: Place, node: str) -> list[str]:
    return here.lab.kubectl("logs", f"caller-{node}", "-n", here.name, check=False).out.splitlines()


def nobody_failed(here: Place, *nodes: str) -> None:
    for node in nodes:
        said = said_by(here, node)
        assert [line for line in said if not line.startswith("answered")] == [], node


def test_a_rolling_update_while_a_node_reboots_fails_no_request(lab: Lab, here: Place) -> None:
    rolling = {"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 2}}}
    here.create(DEPLOYMENTS, replicated("web", 4, web(), **rolling))
    port = publish(here)
    before = {pod["metadata"]["uid"] for pod in here.wait_ready("web", 4)}
    assert "node3" in here.spread("web")
    call_from(here, "node1", "node2")
    with ExitStack() as stack:
        callers = [stack.enter_context(Caller(lab.address(name), port)) for name in ("node1", "node2")]
        change = {"spec": {"template": {"metadata": {"annotations": {"release": "2"}}}}}
        lab.client.patch(DEPLOYMENTS, "web", change, here.name)
        lab.node("node3", "stop")
        lab.node("node3", "start", "--wait")
        lab.kubectl("rollout", "status", "deployment/web", "-n", here.name, "--timeout=120s")
        asked = [each.answered for each in callers]
        lab.until(
            "some more answers", lambda: all(c.answered > n for c, n in zip(callers, asked, strict=True))
        )
    assert [each.failures for each in callers] == [[], []]
    nobody_failed(here, "node1", "node2")
    lab.until(
        "four of the second release", lambda: not before & {p["metadata"]["uid"] for p in running(here)}
    )
    assert len(running(here)) == 4


def running(here: Place) -> list[Object]:
    return [pod for pod in here.pods("web") if ready(pod) == "True"]


def test_everything_answers_while_the_control_plane_is_away(lab: Lab, here: Place) -> None:
    here.create(DEPLOYMENTS, replicated("web", 3, web()))
    port = publish(here)
    exec_probe = {"exec": {"command": ["test", "-e", "/tmp/well"]}, "periodSeconds": 1}
    probed = busybox("touch /tmp/well; sleep 3600", livenessProbe=exec_probe, readinessProbe=exec_probe)
    here.create(PODS, single("probed", probed))
    mortal = busybox("sleep 15; exit 3")
    here.create(PODS, single("mortal", mortal))
    before = {pod["metadata"]["uid"] for pod in here.wait_ready("web", 3)}
    here.wait_ready("probed", 1)
    call_from(here, "node1", "node2")
    with ExitStack() as stack:
        callers = [stack.enter_context(Caller(lab.address(name), port)) for name in FIRST]
        lab.node("control", "kill")
        left = time.time()
        lab.until("a minute", lambda: time.time() - left > AWAY, 2 * AWAY)
        with pytest.raises(ApiError):
            lab.client.list(NODES)
        asked = [each.answered for each in callers]
        lab.until("answers still", lambda: all(c.answered > n for c, n in zip(callers, asked, strict=True)))
        back = time.time()
        lab.node("control", "start")
        lab.mend()
    assert [each.failures for each in callers] == [[]] * len(callers), lab.words()
    nobody_failed(here, "node1", "node2")
    assert {pod["metadata"]["uid"] for pod in here.wait_ready("web", 3)} == before, "nobody was evicted"
    (found,) = here.wait_ready("probed", 1)
    assert found["status"]["containerStatuses"][0]["restartCount"] == 0
    lab.until("what ended meanwhile is told", lambda: restarted_between(here, left, back))
    lab.client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 4}}, here.name)
    here.wait_ready("web", 4)


def restarted_between(here: Place, left: float, back: float) -> bool:
    """Whether the pod that ends again and again was started while nobody could tell the API."""
    (pod,) = here.pods("mortal")
    entry = pod["status"]["containerStatuses"][0]
    parts = [
        (entry.get(key) or {}).get(kind) or {}
        for key in ("state", "lastState")
        for kind in entry.get(key) or {}
    ]
    starts = [seconds(part["startedAt"]) for part in parts if part.get("startedAt")]
    return any(left < start < back for start in starts)


def seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


KILLED, APART = "node3", "node2"


def test_a_node_is_killed_and_another_one_cut_off(lab: Lab, here: Place) -> None:
    """Both fall silent at once, which spares a minute; one comes back with all it ran, one with nothing."""
    where = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [*FIRST]}]}
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [where]}}
    }
    word = busybox(["sh", "-c", "while :; do sleep 1; done", f"{here.name}/$(NAME)"])
    word["env"] = [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    pods = template("id", word, affinity=affinity, **IMPATIENT)
    here.create(SERVICES, service("id", "id", clusterIP="None"))
    here.create(STATEFUL_SETS, replicated("id", 3, pods, serviceName="id", podManagementPolicy="Parallel"))
    here.create(DEPLOYMENTS, replicated("web", 4, web(affinity=affinity, **IMPATIENT)))
    publish(here)
    here.create(PODS, single("patient", busybox(["sleep", "3600"]), **on(KILLED)))
    first = {pod["spec"]["nodeName"]: pod for pod in here.wait_ready("id", 3)}
    assert set(first) == set(FIRST)
    here.wait_ready("web", 4)
    (stays,) = here.wait_ready("patient", 1)
    with Processes(f"{here.name}/") as processes:
        lab.node(KILLED, "kill")
        lab.node(APART, "partition")
        for name in (KILLED, APART):
            node = lab.until(f"{name} Unknown", lambda name=name: unknown(lab, name))
            renewed = lab.client.get(LEASES, name, "kube-node-lease")["spec"]["renewTime"]
            silent = seconds(condition(node, "Ready")["lastTransitionTime"]) - seconds(renewed)
            assert 38 <= silent <= 50, "40 s of silence, in whole seconds, on a machine that may be busy"
        lab.until("their endpoints gone", lambda: published(here) == {"node1"})
        here_and_gone = [first[KILLED]["metadata"]["uid"], first[APART]["metadata"]["uid"]]
        lab.until("both evicted", lambda: set(ending(here)) >= set(here_and_gone))
        for name in (KILLED, APART):
            assert STAY - 1 <= evicted_after(lab, here, name) <= STAY + 10, name
        lab.until(
            "four of web elsewhere", lambda: len(running(here)) == 4 and here.spread("web") == {"node1": 4}
        )
        # What was evicted from a silent node is still there, in the API and, on one of the two, in the world.
        assert set(ending(here)) == set(here_and_gone)
        assert processes.running().keys() == {word_of(here, first[name]) for name in ("node1", APART)}
        assert lab.client.get(PODS, "patient", here.name)["metadata"].get("deletionTimestamp") is None
        lab.node(APART, "heal")
        lab.until(f"{APART} Ready", lambda: ready(lab.client.get(NODES, APART)) == "True")
        lab.until(
            "made again", lambda: identity(here, first[APART]) not in ("", first[APART]["metadata"]["uid"])
        )
        assert identity(here, first[KILLED]) == first[KILLED]["metadata"]["uid"], "nobody says that it ended"
        lab.node(KILLED, "start", "--wait")
        last = here.wait_ready("id", 3)
        here.wait_ready("web", 4)
        (again,) = here.wait_ready("patient", 1)
    assert again["metadata"]["uid"] == stays["metadata"]["uid"], "it tolerates a silent node for five minutes"
    assert {pod["metadata"]["name"] for pod in last} == {"id-0", "id-1", "id-2"}
    assert set(processes.most.values()) == {1} and len(processes.most) == 3, "none ran twice at any time"
    for name in FIRST:
        lab.until(
            f"{name} untainted", lambda name=name: not lab.client.get(NODES, name)["spec"].get("taints")
        )


def unknown(lab: Lab, name: str) -> Object | None:
    node = lab.client.get(NODES, name)
    return node if ready(node) == "Unknown" else None


def published(here: Place) -> set[str]:
    """Nodes of the application's endpoints that are ready."""
    selector = "kubernetes.io/service-name=web"
    slices = here.lab.client.list(ENDPOINT_SLICES, here.name, label_selector=selector)["items"]
    found = [endpoint for each in slices for endpoint in each.get("endpoints") or []]
    return {endpoint["nodeName"] for endpoint in found if endpoint["conditions"]["ready"]}


def ending(here: Place) -> list[str]:
    return [p["metadata"]["uid"] for p in here.pods("id") if p["metadata"].get("deletionTimestamp")]


def evicted_after(lab: Lab, here: Place, name: str) -> float:
    """Seconds from the node's taint to the decision that its pod goes."""
    taints = lab.client.get(NODES, name)["spec"]["taints"]
    added = next(seconds(t["timeAdded"]) for t in taints if t["effect"] == "NoExecute")
    pod = next(p for p in here.pods("id") if p["spec"]["nodeName"] == name)
    target = condition(pod, "DisruptionTarget")
    assert target["reason"] == "DeletionByTaintManager"
    return seconds(target["lastTransitionTime"]) - added


def word_of(here: Place, pod: Object) -> str:
    return f"{here.name}/{pod['metadata']['name']}"


def identity(here: Place, pod: Object) -> str:
    """The uid of the pod that has that one's name now."""
    found = here.lab.find(PODS, pod["metadata"]["name"], here.name)
    return str(found["metadata"]["uid"]) if found else ""
