"""What a pod comes to, by its restartPolicy and the ways its containers end, with real containers: the table
of tests/unit/kubelet_py/test_lifecycle.py, made all at once on one node."""

from __future__ import annotations

from typing import Any

import pytest
from e2e_node import Node, need_kubectl, pod

pytestmark = pytest.mark.e2e

POLICIES = ("Always", "OnFailure", "Never")
# Upstream's own table has one container; a second one shows that a pod is judged by all of them.
ENDS = ("ok", "bad", "oom", "ok ok", "ok bad", "bad bad", "bad oom", "on ok", "on bad")
LINES = {"ok": "exit 0", "bad": "exit 3", "oom": "exec tail /dev/zero", "on": "exec sleep 3600"}
RESULTS = {"ok": (0, "Completed"), "bad": (3, "Error"), "oom": (137, "OOMKilled")}
ROWS = [(policy, ends) for policy in POLICIES for ends in ENDS]
SECONDS = 120


def name_of(policy: str, ends: str) -> str:
    return f"{policy.lower()}-{ends.replace(' ', '-')}"


def row_pod(policy: str, ends: str) -> dict[str, Any]:
    body = pod(name_of(policy, ends), restartPolicy=policy, labels={"table": "phases"})
    template = body["spec"]["containers"][0]
    limit = {"limits": {"memory": "16Mi"}, "requests": {"memory": "1Mi"}}
    body["spec"]["containers"] = [
        template
        | {"name": f"c{index}", "command": ["sh", "-c", LINES[word]]}
        | ({"resources": limit} if word == "oom" else {})
        for index, word in enumerate(ends.split())
    ]
    return body


def comes_back(policy: str, word: str) -> bool:
    return word != "on" and (policy == "Always" or (policy == "OnFailure" and word != "ok"))


def wanted_phase(policy: str, ends: str) -> str:
    words = ends.split()
    if "on" in words or any(comes_back(policy, word) for word in words):
        return "Running"
    return "Succeeded" if set(words) == {"ok"} else "Failed"


def settled(policy: str, ends: str, status: dict[str, Any]) -> bool:
    """Has it come as far as the table tells of? What comes back has ended twice and is held back."""
    entries = status.get("containerStatuses") or []
    if len(entries) != len(ends.split()):
        return False
    for word, entry in zip(ends.split(), entries, strict=True):
        waits = entry["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"
        if comes_back(policy, word) and not (waits and entry["restartCount"] >= 1):
            return False
        stays = "running" if word == "on" else "terminated"
        if not comes_back(policy, word) and stays not in entry["state"]:
            return False
    return bool(status["phase"] == wanted_phase(policy, ends))


@pytest.fixture(scope="module")
def table(node: Node) -> dict[str, dict[str, Any]]:
    """Every row's pod as it is once all of them have settled; a row that has not shows as it is then."""
    node.apply(*(row_pod(policy, ends) for policy, ends in ROWS))
    last: dict[str, dict[str, Any]] = {}
    kept: dict[str, dict[str, Any]] = {}

    def look() -> bool:
        pods = node.kubectl("get", "pods", "-l", "table=phases", "-o", "json").json()["items"]
        last.update({body["metadata"]["name"]: body["status"] for body in pods})
        for policy, ends in ROWS:
            name = name_of(policy, ends)
            if name not in kept and settled(policy, ends, last[name]):
                kept[name] = last[name]  # a restart that is due later would change it
        return len(kept) == len(ROWS)

    try:
        node.until("every row settled", look, SECONDS)
    except AssertionError:
        return last | kept
    node.kubectl("delete", "pod", "-l", "table=phases", "--force", "--grace-period=0")
    return kept


@pytest.mark.conformance(
    "[sig-node] Container Runtime blackbox test when starting a container that exits should run with the "
    "expected status"
)
@pytest.mark.parametrize(("policy", "ends"), ROWS, ids=[name_of(*row) for row in ROWS])
def test_phase_states_restarts_and_conditions(
    table: dict[str, dict[str, Any]], policy: str, ends: str
) -> None:
    status = table[name_of(policy, ends)]
    assert status["phase"] == wanted_phase(policy, ends)
    for word, entry in zip(ends.split(), status["containerStatuses"], strict=True):
        back = comes_back(policy, word)
        assert entry["ready"] == (word == "on")
        if word == "on":
            assert "running" in entry["state"] and entry["restartCount"] == 0
            continue
        if back:
            waiting = entry["state"]["waiting"]
            assert waiting["reason"] == "CrashLoopBackOff"
            assert waiting["message"].startswith("back-off 10s restarting failed container=")
        ended = entry["lastState" if back else "state"]["terminated"]
        assert (ended["exitCode"], ended["reason"]) == RESULTS[word]
        assert ended["startedAt"] <= ended["finishedAt"] and ended["containerID"]
        assert (entry["restartCount"] >= 1) == back
    conditions = {c["type"]: (c["status"], c.get("reason")) for c in status["conditions"]}
    assert conditions["PodScheduled"] == ("True", None)
    reason = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(status["phase"], "ContainersNotReady")
    assert conditions["Ready"] == conditions["ContainersReady"] == ("False", reason)
    assert conditions["Initialized"][0] == "True"


def test_conditions_of_a_pod_that_is_ready_and_of_one_behind_a_gate(node: Node) -> None:
    need_kubectl("1.24", "patch --subresource")
    gate = "example.com/gate"
    node.apply(pod("plain"), pod("gated", readinessGates=[{"conditionType": gate}]))
    node.wait_running("plain", "gated")

    def conditions(name: str) -> dict[str, tuple[str, str | None]]:
        found = node.get("pod", name)["status"]["conditions"]
        return {c["type"]: (c["status"], c.get("reason")) for c in found}

    true = ("True", None)
    ours = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    assert conditions("plain") == dict.fromkeys(ours, true)
    assert conditions("gated") == conditions("plain") | {"Ready": ("False", "ReadinessGatesNotReady")}
    patch = '{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}'
    node.kubectl("patch", "pod", "gated", "--subresource=status", "-p", patch)
    node.until("Ready", lambda: conditions("gated")["Ready"] == true)
    assert conditions("gated")[gate] == true, "what another writer says stays"
    node.kubectl("delete", "pod", "plain", "gated")


def test_deleted_pods_come_to_an_end_that_whoever_holds_them_can_read(node: Node) -> None:
    """As a Job does with its finalizer: it counts what its pods came to."""
    polite = "trap 'exit {}' TERM; touch /tmp/up; sleep 3600 & wait"
    bodies = [
        pod("held-good", polite.format(0), terminationGracePeriodSeconds=20),
        pod("held-bad", polite.format(5), terminationGracePeriodSeconds=20),
        pod("held-pulling", container={"image": "registry.invalid/no/such", "imagePullPolicy": "Always"}),
    ]
    for body in bodies:
        body["metadata"]["finalizers"] = ["example.com/counted"]
    node.apply(*bodies)
    for name in ("held-good", "held-bad"):
        node.until(
            "its trap is set",
            lambda name=name: not node.kubectl("exec", name, "--", "test", "-e", "/tmp/up", check=False).code,
        )

    def waits() -> str:
        entries = node.get("pod", "held-pulling")["status"].get("containerStatuses") or [{"state": {}}]
        return str(entries[0]["state"].get("waiting", {}).get("reason"))

    node.until("its pull fails", lambda: waits() in ("ErrImagePull", "ImagePullBackOff"), 60)
    node.kubectl("delete", "pod", "--wait=false", *(body["metadata"]["name"] for body in bodies))
    wanted = {"held-good": ("Succeeded", 0), "held-bad": ("Failed", 5), "held-pulling": ("Failed", 137)}
    for name, (phase, code) in wanted.items():
        node.until(f"{name} {phase}", lambda name=name, phase=phase: node.phase(name) == phase)
        [entry] = node.get("pod", name)["status"]["containerStatuses"]
        assert entry["state"]["terminated"]["exitCode"] == code
    release = '{"metadata":{"finalizers":null}}'
    for name in wanted:
        node.kubectl("patch", "pod", name, "-p", release)
        node.until(f"{name} gone", lambda name=name: node.kubectl("get", "pod", name, check=False).code)
