"""status.generate: phases, conditions, container states."""

from __future__ import annotations

from typing import Any

import pytest
from pods_in_words import IP, NOW, down, pod, up, view

from kubelet_py.pods.actions import next_attempt
from kubelet_py.pods.model import ContainerView, Health, PodView, Waiting
from kubelet_py.pods.status import Situation, difference, generate

CRASH = {"c": Waiting("CrashLoopBackOff", "back-off 10s")}


def status(spec: dict[str, Any], holds: PodView, **situation: Any) -> dict[str, Any]:
    return generate(spec, holds, Situation(now=NOW, host_ips=("198.51.100.10",), started_at=NOW, **situation))


def conditions(answer: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in answer["conditions"]}


@pytest.mark.parametrize("codes", [(0,), (1,), (0, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("policy", ["Always", "OnFailure", "Never"])
def test_phase_by_restart_policy_and_exit_codes(policy: str, codes: tuple[int, ...]) -> None:
    names = [f"c{index}" for index in range(len(codes))]
    holds = view(*(down(name, code) for name, code in zip(names, codes, strict=True)))
    wanted = {"Always": "Running", "OnFailure": "Running", "Never": "Failed"}[policy]
    if policy != "Always" and not any(codes):
        wanted = "Succeeded"
    assert status(pod(*names, policy=policy), holds)["phase"] == wanted


@pytest.mark.parametrize(
    ("spec", "holds", "waiting", "phase"),
    [
        (pod(), view(sandbox=False), {}, "Pending"),
        (pod(), view(), {}, "Pending"),
        (pod(), view(up()), {}, "Running"),
        (pod("a", "b"), view(up("a")), {}, "Pending"),
        (pod("a", "b"), view(up("a"), down("b", 1)), {}, "Running"),
        (pod(), view(down(code=1)), CRASH, "Running"),
        (pod(init=["i"]), view(up("i")), {}, "Pending"),
        (pod(init=["i"]), view(down("i", 1)), {"i": Waiting("CrashLoopBackOff")}, "Pending"),
        (pod(init=["i"], policy="Never"), view(down("i", 1)), {}, "Failed"),
        (pod(init=["i"]), view(down("i")), {}, "Pending"),
        (pod(init=["i"]), view(up(), down("i")), {}, "Running"),
    ],
)
def test_phase(spec: dict[str, Any], holds: PodView, waiting: dict[str, Waiting], phase: str) -> None:
    assert status(spec, holds, waiting=waiting)["phase"] == phase


def test_a_running_pod_has_everything_that_clients_read() -> None:
    answer = status(pod(), view(up()))
    assert set(conditions(answer).values()) == {"True"}
    assert (answer["podIP"], answer["hostIP"]) == (IP, "198.51.100.10")
    assert answer["podIPs"] == [{"ip": IP}] and answer["qosClass"] == "BestEffort"
    [entry] = answer["containerStatuses"]
    assert entry["ready"] and entry["started"] and entry["state"]["running"]["startedAt"].endswith("Z")
    assert entry["containerID"] == "kubelet-py://c-0"


def test_a_new_pod_waits_with_upstreams_reasons() -> None:
    plain = status(pod(), view(sandbox=False))
    assert plain["containerStatuses"][0]["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert conditions(plain)["PodReadyToStartContainers"] == "False"
    with_init = status(pod(init=["i"]), view())
    assert with_init["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
    messages = {c["type"]: c.get("message") for c in with_init["conditions"]}
    assert messages["Initialized"] == "containers with incomplete status: [i]"
    assert messages["Ready"] == "containers with unready status: [c]"


def test_every_container_of_a_pod_with_init_containers_waits_for_those() -> None:
    body = pod(init=["i"], ephemeralContainers=[{"name": "d"}])
    answer = status(body, view())
    for key in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        assert answer[key][0]["state"] == {"waiting": {"reason": "PodInitializing"}}


def test_back_off_shows_the_crash_as_last_state() -> None:
    [entry] = status(pod(), view(down(code=3, attempt=2)), waiting=CRASH)["containerStatuses"]
    assert entry["state"]["waiting"] == {"reason": "CrashLoopBackOff", "message": "back-off 10s"}
    assert entry["lastState"]["terminated"]["exitCode"] == 3 and entry["restartCount"] == 2


def test_a_restarted_container_remembers_its_last_end() -> None:
    [entry] = status(pod(), view(up(attempt=1), down(code=9, message="bye")))["containerStatuses"]
    assert entry["lastState"]["terminated"] == {
        "exitCode": 9,
        "reason": "Error",
        "startedAt": entry["lastState"]["terminated"]["startedAt"],
        "finishedAt": entry["lastState"]["terminated"]["finishedAt"],
        "containerID": "kubelet-py://c-0",
        "message": "bye",
    }


@pytest.mark.parametrize("health", [Health(ready=False), Health(started=False, ready=False)])
def test_not_ready_until_the_probes_say_so(health: Health) -> None:
    answer = status(pod(), view(up()), health={"c": health})
    assert answer["phase"] == "Running" and conditions(answer)["Ready"] == "False"
    assert not answer["containerStatuses"][0]["ready"]


def test_readiness_gates_hold_back_ready_only() -> None:
    body = pod(readinessGates=[{"conditionType": "x/gate"}])
    assert conditions(status(body, view(up())))["Ready"] == "False"
    assert conditions(status(body, view(up())))["ContainersReady"] == "True"
    body["status"] = {"conditions": [{"type": "x/gate", "status": "True"}]}
    assert conditions(status(body, view(up())))["Ready"] == "True"


def test_a_pod_that_is_over_stays_over_and_keeps_its_address() -> None:
    body = pod(policy="Never") | {"status": {"phase": "Succeeded", "podIPs": [{"ip": IP}]}}
    answer = status(body, view(down(), ready=False), finished=True)
    assert answer["phase"] == "Succeeded" and answer["podIP"] == IP
    reasons = {c["type"]: c.get("reason") for c in answer["conditions"]}
    assert reasons["Ready"] == "PodCompleted"


def test_a_container_that_vanished_is_said_to_have() -> None:
    old = {"name": "c", "state": {"running": {}}, "restartCount": 2, "ready": True}
    body = pod(policy="Never") | {"status": {"containerStatuses": [old]}}
    [entry] = status(body, PodView("u"))["containerStatuses"]
    assert entry["state"]["terminated"]["reason"] == "ContainerStatusUnknown"
    assert entry["state"]["terminated"]["exitCode"] == 137


@pytest.mark.parametrize(
    ("state", "last"),
    [
        ({"running": {}}, "ContainerStatusUnknown"),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, "Error"),  # it waited for its next start
    ],
)
def test_a_reboot_counts_as_one_restart(state: dict[str, Any], last: str) -> None:
    """However often the status is written before the container is there again."""
    before = {"terminated": {"reason": "Error", "exitCode": 1}}
    old = {"name": "c", "state": state, "lastState": before, "restartCount": 4, "containerID": "x://1"}
    body = pod() | {"status": {"containerStatuses": [old]}}
    for _ in range(3):
        assert next_attempt(body, None, "c") == 5
        [entry] = status(body, PodView("u"))["containerStatuses"]
        assert entry["restartCount"] == 5 and "waiting" in entry["state"]
        assert entry["lastState"]["terminated"]["reason"] == last
        body = pod() | {"status": {"containerStatuses": [entry]}}
    [entry] = status(body, view(up(attempt=5)))["containerStatuses"]
    assert entry["restartCount"] == 5 and entry["lastState"]["terminated"]["reason"] == last


def test_a_forgotten_end_stays_the_last_one_while_its_image_is_missing() -> None:
    old = {"name": "c", "state": {"terminated": {"exitCode": 3}}, "lastState": {}, "containerID": "x://1"}
    body = pod() | {"status": {"phase": "Running", "containerStatuses": [old | {"restartCount": 4}]}}
    answer = status(body, view(), waiting={"c": Waiting("ErrImagePull")})
    [entry] = answer["containerStatuses"]
    assert entry["state"]["waiting"]["reason"] == "ErrImagePull"
    assert entry["lastState"] == {"terminated": {"exitCode": 3}} and answer["phase"] == "Running"


def test_transition_times_stay_while_the_status_stays() -> None:
    first = status(pod(), view(up()))
    body = pod() | {"status": first}
    later = generate(body, view(up()), Situation(now=NOW + 99, host_ips=("198.51.100.10",)))
    assert later["conditions"] == first["conditions"] and later["startTime"] == first["startTime"]
    assert difference(first, later) == {}


def test_difference_names_only_what_changed() -> None:
    old = status(pod(), view(up()))
    new = status(pod(), view(up()), health={"c": Health(ready=False)})
    patch = difference(old, new)
    assert set(patch) == {"conditions", "containerStatuses"}
    assert {c["type"] for c in patch["conditions"]} == {"Ready", "ContainersReady"}
    back = {c["type"]: c for c in difference(new, old)["conditions"]}
    assert back["Ready"]["status"] == "True"
    assert back["Ready"]["reason"] is None and back["Ready"]["message"] is None, "a merge would keep them"
    moved = difference({"podIPs": [{"ip": "a"}]}, {"podIPs": [{"ip": "b"}]})
    assert moved == {"podIPs": [{"ip": "b"}, {"$patch": "delete", "ip": "a"}]}
    assert difference({"message": "x"}, {}) == {"message": None}


def test_an_unknown_container_state_is_no_running_one() -> None:
    holds = view(ContainerView("x", "c", "s", 0, "UNKNOWN"))
    assert "waiting" in status(pod(), holds)["containerStatuses"][0]["state"]


TOO_OLD = Waiting("DeadlineExceeded", "too old")


@pytest.mark.parametrize(
    ("containers", "before", "phase", "reason"),
    [
        ((up(),), "Running", "Running", None),
        ((up("a"), down("b")), "Running", "Running", None),
        ((down(),), "Running", "Failed", "DeadlineExceeded"),
        ((), "Pending", "Failed", "DeadlineExceeded"),
    ],
)
def test_a_pod_that_the_node_ends_has_failed_when_nothing_of_it_runs_any_more(
    containers: tuple[ContainerView, ...], before: str, phase: str, reason: str | None
) -> None:
    body = pod("a", "b") | {"status": {"phase": before, "containerStatuses": [{"name": "a"}]}}
    answer = status(body, view(*containers), failure=TOO_OLD, finished=True)
    assert (answer["phase"], answer.get("reason")) == (phase, reason)


def test_a_refused_pod_tells_only_why_and_a_later_agent_does_not_forget_it() -> None:
    refused = Waiting("OutOfcpu", "Pod was rejected: no")
    answer = status(pod(), view(sandbox=False), failure=refused, finished=True)
    assert answer == {
        "phase": "Failed",
        "reason": "OutOfcpu",
        "message": "Pod was rejected: no",
        "startTime": answer["startTime"],
        "qosClass": "BestEffort",
    }
    again = status(pod() | {"status": answer}, view(sandbox=False), finished=True)
    assert difference(answer, again) == {}, "an agent that starts later has nothing to add"


def test_a_held_back_container_of_a_failed_pod_has_terminated() -> None:
    answer = status(pod(), view(down(code=1)), waiting=CRASH, failure=TOO_OLD, finished=True)
    assert "terminated" in answer["containerStatuses"][0]["state"]
