"""From restartPolicy and the ways that containers end to what a pod comes to: decisions and status together,
lived through on a clock of their own (pod_life.py). tests/e2e/test_lifecycle.py has it with real ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from pod_life import BAD, GOOD, OOM, STAYS, Life, Run
from pods_in_words import down, pod

from kubelet_py.pods.model import SandboxView, Waiting

WORDS = {"ok": GOOD, "bad": BAD, "oom": OOM, "on": STAYS}
SIDECAR = {"name": "s", "restartPolicy": "Always"}

# containers → phase for Always, OnFailure, Never
TABLE = [
    ("ok", "Running", "Succeeded", "Succeeded"),
    ("bad", "Running", "Running", "Failed"),
    ("oom", "Running", "Running", "Failed"),
    ("on", "Running", "Running", "Running"),
    ("ok ok", "Running", "Succeeded", "Succeeded"),
    ("ok bad", "Running", "Running", "Failed"),
    ("bad ok", "Running", "Running", "Failed"),
    ("bad bad", "Running", "Running", "Failed"),
    ("ok oom", "Running", "Running", "Failed"),
    ("bad oom", "Running", "Running", "Failed"),
    ("oom oom", "Running", "Running", "Failed"),
    ("on ok", "Running", "Running", "Running"),
    ("on bad", "Running", "Running", "Running"),
    ("on oom", "Running", "Running", "Running"),
]
ROWS = [
    pytest.param(policy, row[0].split(), phase, id=f"{policy}-{row[0].replace(' ', '-')}")
    for row in TABLE
    for policy, phase in zip(("Always", "OnFailure", "Never"), row[1:], strict=True)
]


def lived(policy: str, ends: Sequence[str], seconds: float = 5.0) -> Life:
    names = [f"c{index}" for index in range(len(ends))]
    life = Life(pod(*names, policy=policy), {n: [WORDS[e]] for n, e in zip(names, ends, strict=True)})
    life.live(seconds)
    return life


@pytest.mark.parametrize(("policy", "ends", "phase"), ROWS)
def test_phase_states_and_restarts(policy: str, ends: list[str], phase: str) -> None:
    """After five seconds: what comes back has been restarted once, at once, and is now held back."""
    life = lived(policy, ends)
    answer = life.status()
    assert answer["phase"] == phase
    assert life.over == (phase in ("Succeeded", "Failed"))
    for word, entry in zip(ends, answer["containerStatuses"], strict=True):
        back = word != "on" and (policy == "Always" or (policy == "OnFailure" and word != "ok"))
        assert entry["restartCount"] == int(back), entry
        assert entry["ready"] == (word == "on")
        if word == "on":
            assert set(entry["state"]) == {"running"} and entry["lastState"] == {}
            continue
        if back:
            assert entry["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        ended = entry["lastState" if back else "state"]["terminated"]
        wanted = {"ok": (0, "Completed"), "bad": (1, "Error"), "oom": (137, "OOMKilled")}[word]
        assert (ended["exitCode"], ended["reason"]) == wanted


@pytest.mark.parametrize(("policy", "ends", "phase"), ROWS)
def test_conditions(policy: str, ends: list[str], phase: str) -> None:
    answer = lived(policy, ends).status()
    found = {c["type"]: (c["status"], c.get("reason")) for c in answer["conditions"]}
    assert found["PodScheduled"] == ("True", None)
    assert found["PodReadyToStartContainers"][0] == "True", "its sandbox is taken away by the agent, later"
    assert found["Initialized"] == ("True", "PodCompleted" if phase == "Succeeded" else None)
    if phase in ("Succeeded", "Failed"):
        wanted = ("False", {"Succeeded": "PodCompleted", "Failed": "PodFailed"}[phase])
    else:
        wanted = ("True", None) if set(ends) == {"on"} else ("False", "ContainersNotReady")
    assert found["ContainersReady"] == found["Ready"] == wanted


def test_the_wait_between_restarts_doubles_from_ten_seconds_to_five_minutes() -> None:
    life = Life(pod(), {"c": [BAD]})
    life.live(2000)
    begins = [when for _, when in life.began]
    waits = [after - before - 1 for before, after in pairwise(begins)]
    assert waits[:8] == [0, 10, 20, 40, 80, 160, 300, 300]
    entry = life.status()["containerStatuses"][0]
    assert entry["restartCount"] == len(begins) - 1


@pytest.mark.parametrize(("seconds", "wait"), [(599.0, 40.0), (601.0, 0.0)])
def test_ten_good_minutes_are_forgiven(seconds: float, wait: float) -> None:
    """A container that ran for twice the longest wait starts over: at once, and then after 10 s."""
    life = Life(pod(), {"c": [BAD, BAD, BAD, Run(1, seconds), BAD]})
    life.live(1000)
    begins = [when for name, when in life.began]
    assert begins[4] - (begins[3] + seconds) == wait
    assert begins[5] - begins[4] - 1 == (80.0 if wait else 10.0)


INIT = [
    pytest.param("Never", [GOOD], [GOOD], "Succeeded", ["i1", "i2", "c"], id="Never"),
    pytest.param("Always", [GOOD], [GOOD], "Running", ["i1", "i2", "c"], id="Always"),
    pytest.param("Never", [GOOD], [BAD], "Failed", ["i1", "i2"], id="Never-fails"),
    pytest.param("Always", [BAD], [GOOD], "Pending", ["i1", "i1"], id="Always-fails"),
    pytest.param("OnFailure", [BAD], [GOOD], "Pending", ["i1", "i1"], id="OnFailure-fails"),
    pytest.param("OnFailure", [GOOD], [BAD, GOOD], "Succeeded", ["i1", "i2", "i2", "c"], id="OnFailure-late"),
]


@pytest.mark.parametrize(("policy", "first", "second", "phase", "begun"), INIT)
def test_init_containers(
    policy: str, first: list[Run], second: list[Run], phase: str, begun: list[str]
) -> None:
    main = STAYS if policy == "Always" else GOOD
    life = Life(pod(policy=policy, init=["i1", "i2"]), {"i1": first, "i2": second, "c": [main]})
    life.live(5)
    answer = life.status()
    assert (answer["phase"], [name for name, _ in life.began]) == (phase, begun)
    found = {c["type"]: (c["status"], c.get("reason")) for c in answer["conditions"]}
    if phase in ("Failed", "Pending"):
        assert found["Initialized"] == ("False", "ContainersNotInitialized")
        [main_status] = answer["containerStatuses"]
        assert main_status["state"] == {"waiting": {"reason": "PodInitializing"}}
    else:
        assert found["Initialized"][0] == "True"
        assert all(entry["ready"] for entry in answer["initContainerStatuses"])


@pytest.mark.parametrize("policy", ["OnFailure", "Never"])
def test_a_sidecar_never_keeps_a_job_and_is_no_part_of_its_result(policy: str) -> None:
    life = Life(pod(policy=policy, init=[SIDECAR]), {"s": [STAYS], "c": [GOOD]})
    life.live()
    assert life.over and [name for name, _ in life.began] == ["s", "c"]
    assert life.status()["phase"] != "Succeeded", "the sidecar still ends"
    life.stop_the_rest()
    assert life.status()["phase"] == "Succeeded"


@pytest.mark.parametrize("policy", ["Always", "OnFailure", "Never"])
def test_a_sidecar_comes_back_whatever_the_pods_policy(policy: str) -> None:
    life = Life(pod(policy=policy, init=[SIDECAR]), {"s": [GOOD], "c": [STAYS]})
    life.live(5)
    answer = life.status()
    assert answer["phase"] == "Running"
    [sidecar] = answer["initContainerStatuses"]
    assert sidecar["restartCount"] == 1 and sidecar["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    found = {c["type"]: c["status"] for c in answer["conditions"]}
    assert (found["Initialized"], found["Ready"]) == ("True", "False")


def test_init_containers_run_anew_in_a_new_sandbox_and_the_pod_is_pending_meanwhile() -> None:
    """As after a reboot of the node: what the main containers did before does not count."""
    life = Life(pod(init=["i"]), {"i": [GOOD, STAYS], "c": [STAYS]})
    life.live(5)
    life.stop_the_rest()
    life.sandboxes = (SandboxView("s0", 0, False),)
    life.live(5)
    assert [name for name, _ in life.began] == ["i", "c", "i"]
    assert life.status(health={})["phase"] == "Pending"


def gated(*conditions: dict[str, str]) -> dict[str, Any]:
    gates = [{"conditionType": "example.com/one"}, {"conditionType": "example.com/two"}]
    life = Life(pod(readinessGates=gates) | {"status": {"conditions": list(conditions)}}, {"c": [STAYS]})
    life.live(5)
    return {c["type"]: c for c in life.status()["conditions"]}


def test_every_gate_has_to_be_open_and_the_shut_ones_are_named() -> None:
    found = gated({"type": "example.com/two", "status": "False"})
    assert found["ContainersReady"]["status"] == "True"
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "ReadinessGatesNotReady")
    assert found["Ready"]["message"] == (
        'corresponding condition of pod readiness gate "example.com/one" does not exist., '
        'the status of pod readiness gate "example.com/two" is not "True", but False'
    )
    both = ({"type": f"example.com/{name}", "status": "True"} for name in ("one", "two"))
    assert gated(*both)["Ready"]["status"] == "True"


def test_an_ended_init_container_of_a_pod_that_the_node_ended_says_how_it_ended() -> None:
    life = Life(pod(init=["i"]), {"i": [BAD], "c": [STAYS]})
    life.live(5)
    answer = life.status(failure=Waiting("DeadlineExceeded", "too old"))
    assert answer["phase"] == "Failed"
    assert answer["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 1


PULLING = {"c": Waiting("ImagePullBackOff"), "c0": Waiting("ImagePullBackOff")}
UNKNOWN, OPEN = "ContainerStatusUnknown", "PodInitializing"
CLOSED = [
    ("it was never started", pod(), {}, "Failed", [], [UNKNOWN]),
    ("its first init container was not", pod(init=["i", "j"]), {}, "Failed", [UNKNOWN, OPEN], [OPEN]),
    ("the second one failed", pod(init=["i", "j"]), {"i": GOOD, "j": BAD}, "Failed",
     ["Completed", "Error"], [OPEN]),
    ("its init container was done", pod(init=["i"]), {"i": GOOD}, "Failed", ["Completed"], [UNKNOWN]),
    ("all ended well", pod(), {"c": GOOD}, "Succeeded", [], ["Completed"]),
    ("one did not start", pod("c", "c0"), {"c": GOOD}, "Failed", [], ["Completed", UNKNOWN]),
    ("one failed", pod("c", "c0"), {"c": GOOD, "c0": BAD}, "Failed", [], ["Completed", "Error"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("why", "spec", "ended", "phase", "init", "main"), CLOSED, ids=[case[0] for case in CLOSED]
)
def test_a_pod_that_is_deleted_comes_to_an_end_in_any_case(
    why: str, spec: dict[str, Any], ended: dict[str, Run], phase: str, init: list[str], main: list[str]
) -> None:
    """Of a container whose turn had come nobody knows how it ended; the others never had their turn."""
    life = Life(spec, {})
    life.sandboxes = (SandboxView("s0", 0, False),)
    life.containers = tuple(down(name, run.code or 0) for name, run in ended.items())
    life.waiting, life.over = dict(PULLING) if UNKNOWN in main else {}, True
    life.pod = {**spec, "metadata": {**spec["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    answer = life.status()
    assert answer["phase"] == phase

    def reasons(key: str) -> list[str]:
        return [next(iter(entry["state"].values()))["reason"] for entry in answer.get(key, [])]

    assert (reasons("initContainerStatuses"), reasons("containerStatuses")) == (init, main)
    assert {c["type"]: c["status"] for c in answer["conditions"]}["Ready"] == "False"


def test_a_pod_is_not_at_its_end_while_something_of_it_still_runs() -> None:
    life = Life(pod("a", "b"), {"a": [STAYS], "b": [STAYS]})
    life.live(1)
    life.containers = tuple(c for c in life.containers if c.name == "a")
    life.over = True
    answer = life.status()
    assert answer["phase"] == "Pending"
    assert "waiting" in answer["containerStatuses"][1]["state"]
