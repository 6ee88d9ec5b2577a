"""compute_pod_actions as tables: pod + what runs + clock → one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from pods_in_words import NOW, down, pod, up, view

from kubelet_py.pods.actions import compute_pod_actions, next_attempt
from kubelet_py.pods.backoff import BackoffEntry
from kubelet_py.pods.model import ContainerView, Health, PodView, SandboxView

SIDECAR = {"name": "s1", "restartPolicy": "Always"}
DEAD = Health(failed="liveness")

CASES: list[tuple[str, dict[str, Any], PodView, str]] = [
    ("a new pod gets a sandbox", pod(), view(sandbox=False), "create sandbox attempt 0"),
    ("then its containers", pod("a", "b"), view(), "start a attempt 0, start b attempt 0"),
    ("what runs is left alone", pod(), view(up()), "nothing to do"),
    ("Always restarts success", pod(), view(down()), "start c attempt 1"),
    ("Always restarts failure", pod(), view(down(code=1)), "start c attempt 1"),
    ("OnFailure restarts failure", pod(policy="OnFailure"), view(down(code=1)), "start c attempt 1"),
    ("OnFailure is over with success", pod(policy="OnFailure"), view(down()), "stop the sandbox, over"),
    ("Never is over with failure", pod(policy="Never"), view(down(code=1)), "stop the sandbox, over"),
    ("Never waits for others", pod("a", "b", policy="Never"), view(down("a", 1), up("b")), "nothing to do"),
    ("a dead sandbox is emptied first", pod(), view(up(), ready=False), "stop the sandbox"),
    ("then made again", pod(), view(down(), ready=False), "create sandbox attempt 1"),
    ("not for Never", pod(policy="Never"), view(down(), ready=False), "stop the sandbox, over"),
    ("init containers come first", pod(init=["i1", "i2"]), view(), "start i1 attempt 0"),
    ("one after the other", pod(init=["i1", "i2"]), view(down("i1")), "start i2 attempt 0"),
    ("each to its end", pod(init=["i1", "i2"]), view(up("i1")), "nothing to do"),
    ("main after all", pod(init=["i1"]), view(down("i1")), "start c attempt 0"),
    ("failed init is retried", pod(init=["i1"]), view(down("i1", 1)), "start i1 attempt 1"),
    ("failed init ends it", pod(init=["i1"], policy="Never"), view(down("i1", 1)), "stop the sandbox, over"),
    ("init is not run again", pod(init=["i1"]), view(down("c", 1), down("i1")), "start c attempt 1"),
    ("a sidecar starts first", pod(init=[SIDECAR]), view(), "start s1 attempt 0"),
    ("main beside the sidecar", pod(init=[SIDECAR]), view(up("s1")), "start c attempt 0"),
    ("a sidecar does not keep a pod", pod(init=[SIDECAR], policy="Never"), view(down(), up("s1")),
     "stop the sandbox, over"),
    ("a dead sidecar comes back", pod(init=[SIDECAR]), view(up(), down("s1", 1)), "start s1 attempt 1"),
    ("a crashed sidecar holds up no init", pod(init=[SIDECAR, "i"]), view(down("i", 1), down("s1", 1)),
     "start s1 attempt 1, start i attempt 1"),
    ("nor the main containers", pod(init=[SIDECAR, "i"]), view(down("i"), down("s1", 1)),
     "start s1 attempt 1, start c attempt 0"),
    ("one that never started does", pod(init=[SIDECAR, "i"]), view(down("s1", 1)), "start s1 attempt 1"),
    ("a lost sidecar starts again", pod(init=[SIDECAR, "i"]), view(up("i")), "start s1 attempt 0"),
    ("created but never started", pod(), view(ContainerView("x", "c", "s", 0, "CREATED")),
     "kill c, start c attempt 1"),
    ("another image replaces", pod(), view(up(spec_hash="old")), "kill c"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spec", "holds", "sentence"), CASES, ids=[case[0] for case in CASES])
def test_actions(name: str, spec: dict[str, Any], holds: PodView, sentence: str) -> None:
    assert compute_pod_actions(spec, holds, NOW).describe() == sentence


@pytest.mark.parametrize(
    ("health", "sentence"),
    [
        (Health(), "nothing to do"),
        (Health(ready=False), "nothing to do"),
        (Health(failed="liveness"), "kill c"),
        (Health(started=False, failed="startup"), "kill c"),
    ],
)
def test_a_probe_that_failed_kills_and_only_liveness_and_startup_do(health: Health, sentence: str) -> None:
    actions = compute_pod_actions(pod(), view(up()), NOW, health={"c": health})
    assert actions.describe() == sentence


CHANGED = {"spec_hash": "old"}
KILLS: list[tuple[str, dict[str, Any], ContainerView, dict[str, Health], str]] = [
    ("changed", pod(), up(**CHANGED), {}, "definition changed, will be restarted"),
    ("changed, Never", pod(policy="Never"), up(**CHANGED), {}, "definition changed, will be restarted"),
    ("OnFailure", pod(policy="OnFailure"), up(), {"c": DEAD}, "failed liveness probe, will be restarted"),
    ("Never", pod(policy="Never"), up(), {"c": DEAD}, "failed liveness probe"),
    ("sidecar", pod(init=[SIDECAR], policy="Never"), up("s1"), {"s1": DEAD}, "failed liveness probe"),
    ("sidecar changed", pod(init=[SIDECAR]), up("s1", **CHANGED), {"s1": DEAD}, "definition changed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "running", "health", "text"), [kill[1:] for kill in KILLS], ids=[kill[0] for kill in KILLS]
)
def test_a_kill_says_whether_the_container_comes_back(
    spec: dict[str, Any], running: ContainerView, health: dict[str, Health], text: str
) -> None:
    (kill,) = compute_pod_actions(spec, view(running), NOW, health=health).kills
    sidecar = running.name == "s1"
    assert kill.message == f"{'Init container' if sidecar else 'Container'} {running.name} {text}"
    assert kill.returns == (sidecar or "restarted" in text)


@pytest.mark.parametrize("policy", ["OnFailure", "Never"])
@pytest.mark.parametrize("code", [0, 143])
def test_what_was_killed_to_come_back_does_so_whatever_its_exit_code(policy: str, code: int) -> None:
    ended = view(down(code=code))
    actions = compute_pod_actions(pod(policy=policy), ended, NOW, returning={"c-0"})
    assert actions.describe() == "start c attempt 1"
    once = compute_pod_actions(pod(policy="Never"), view(down(attempt=1), down()), NOW, returning={"c-0"})
    assert once.describe() == "stop the sandbox, over", "its next attempt ended by itself"


def test_an_init_container_whose_image_is_changed_runs_to_its_end() -> None:
    body = pod(init=["i1"])
    assert compute_pod_actions(body, view(up("i1", **CHANGED)), NOW).describe() == "nothing to do"


def test_main_waits_for_a_sidecar_that_has_not_started() -> None:
    actions = compute_pod_actions(
        pod(init=[SIDECAR]), view(up("s1")), NOW, health={"s1": Health(started=False)}
    )
    assert actions.describe() == "nothing to do"


def test_what_comes_after_a_sidecar_goes_on_while_that_is_held_back() -> None:
    entries = {"s1": BackoffEntry(10.0, NOW - 5)}
    crashed = view(down("i", 1), down("s1", 1, ago=3))
    actions = compute_pod_actions(pod(init=[SIDECAR, "i"]), crashed, NOW, backoffs=entries)
    assert actions.describe() == "start i attempt 1, hold s1 back 10s"


def test_a_second_crash_is_held_back_until_ten_seconds_after_it_ended() -> None:
    entries = {"c": BackoffEntry(10.0, NOW - 5)}
    actions = compute_pod_actions(pod(), view(down(code=1, ago=3)), NOW, backoffs=entries)
    assert actions.describe() == "hold c back 10s"
    assert actions.postponed[0].until == NOW + 7
    later = compute_pod_actions(pod(), view(down(code=1, ago=3)), NOW + 7, backoffs=entries)
    assert later.describe() == "start c attempt 1"


def test_one_that_is_killed_to_come_back_waits_as_if_it_had_been_started_before_it_ended() -> None:
    """Upstream starts it in the same sync, and counts from the end of the attempt before."""

    def told(entry: BackoffEntry | None, *containers: ContainerView, returning: str) -> str:
        entries = {"c": entry} if entry is not None else {}
        return compute_pod_actions(
            pod(), view(*containers), NOW, backoffs=entries, returning={returning}
        ).describe()

    tens = BackoffEntry(10.0, NOW - 60)
    assert told(None, down(), returning="c-0") == "start c attempt 1"
    assert told(tens, down(ago=1), returning="c-0") == "start c attempt 1", "it is the first to end"
    ends = (down(attempt=1, ago=1), down(ago=12))
    assert told(tens, *ends, returning="c-1") == "start c attempt 2", "11 s after the one before"
    assert told(tens, *ends, returning="") == "hold c back 10s", "it ended by itself"
    ends = (down(attempt=1, ago=3), down(ago=12))
    assert told(tens, *ends, returning="c-1") == "hold c back 10s", "9 s after the one before"
    starts = compute_pod_actions(
        pod(), view(down(attempt=1, ago=1), down(ago=12)), NOW, returning={"c-1"}
    ).starts
    assert starts[0].since == NOW - 12, "from which the next wait is worked out"


def test_dead_attempts_do_not_pile_up() -> None:
    actions = compute_pod_actions(
        pod(), view(up(attempt=3), down(attempt=2), down(attempt=1), down(attempt=0)), NOW
    )
    assert actions.remove_containers == ("c-1", "c-0")


def test_an_old_sandbox_goes_with_its_last_container() -> None:
    boxes = (SandboxView("s", 1, True, ips=("1.2.3.4",)), SandboxView("old", 0, False))
    assert compute_pod_actions(pod(), PodView("u", boxes, (up(),)), NOW).remove_sandboxes == ("old",)
    kept = PodView("u", boxes, (up(attempt=1), down(sandbox="old")))
    assert compute_pod_actions(pod(), kept, NOW).remove_sandboxes == ()


def test_the_restart_count_goes_on_after_a_reboot() -> None:
    body = pod() | {
        "status": {"containerStatuses": [{"name": "c", "containerID": "kubelet-py://1", "restartCount": 4}]}
    }
    assert next_attempt(body, None, "c") == 5
    assert next_attempt(pod(), None, "c") == 0


@pytest.mark.parametrize("state", ["CREATED", "EXITED"])
def test_a_container_that_never_ran_in_a_dead_sandbox_keeps_nobody_waiting(state: str) -> None:
    """Its shim was killed between its creation and its start: there is nothing to stop, now or later."""
    dead = PodView("u", (SandboxView("s", 0, False),), (ContainerView("x", "c", "s", 1, state),))
    assert compute_pod_actions(pod(), dead, NOW).describe() == "create sandbox attempt 1"
