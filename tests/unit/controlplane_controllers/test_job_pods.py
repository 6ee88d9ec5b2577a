"""What a Job's pods come to, when it ends, and which pods come next."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.controllers import job_end, job_indexes, job_pods
from controlplane.controllers.job_pods import FAILURES, FINALIZER, next_pods, tally, to_release
from controlplane.controllers.stamps import seconds

Object = dict[str, Any]
NOW = seconds("2026-01-01T01:00:00Z")


def job(status: Object | None = None, **spec: Any) -> Object:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    whole = {"parallelism": 1, "completions": 1, "backoffLimit": 6, "template": template, **spec}
    return {"metadata": {"name": "j", "namespace": "n", "uid": "J"}, "spec": whole, "status": status or {}}


def indexed(status: Object | None = None, **spec: Any) -> Object:
    return job(status, completionMode="Indexed", **spec)


def pod(
    name: str,
    phase: str = "Running",
    *,
    index: int | None = None,
    tracked: bool = True,
    ending: bool = False,
    code: int = 1,
    ended: str = "2026-01-01T00:59:55Z",
    restarts: int = 0,
    failures: int = 0,
    node: str = "n1",
) -> Object:
    metadata: Object = {"name": name, "namespace": "n", "uid": name, "annotations": {}}
    metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
    if tracked:
        metadata["finalizers"] = [FINALIZER]
    if index is not None:
        metadata["annotations"] = {job_indexes.ANNOTATION: str(index), FAILURES: str(failures)}
    if ending:
        metadata["deletionTimestamp"] = ended
    state: Object = {"running": {}}
    if phase in ("Succeeded", "Failed"):
        state = {"terminated": {"exitCode": 0 if phase == "Succeeded" else code, "finishedAt": ended}}
    containers = [{"name": "c", "state": state, "restartCount": restarts}]
    status = {"phase": phase, "containerStatuses": containers}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": status}


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((1, 2), "1,2"), ((0, 2, 3, 4, 9), "0,2-4,9"), ((1, 2, 5, 6, 7), "1,2,5-7")],
)
def test_numbers_are_written_as_upstream_does_and_read_back(numbers, text) -> None:
    assert job_indexes.write(numbers) == text
    assert job_indexes.read(text) == set(numbers)


def test_an_end_is_first_noted_by_uid_then_counted() -> None:
    """Whoever is killed between two writes counts nothing twice and forgets nothing."""
    seen = tally(job(), [pod("a", "Failed"), pod("b", "Succeeded")])
    assert (seen.failed, seen.succeeded) == (0, 0)
    assert (seen.new_failed, seen.new_succeeded) == (("a",), ("b",))
    noted = job({"uncountedTerminatedPods": {"failed": ["a"], "succeeded": ["b"]}})
    again = tally(noted, [pod("a", "Failed"), pod("b", "Succeeded")])
    assert (again.failed, again.new_failed) == (0, ("a",))
    off = tally(noted, [pod("a", "Failed", tracked=False), pod("b", "Succeeded", tracked=False)])
    assert (off.failed, off.succeeded, off.new_failed, off.new_succeeded) == (1, 1, (), ())
    gone = tally(noted, [])
    assert (gone.failed, gone.succeeded) == (1, 1)
    counted = job({"failed": 1, "succeeded": 1})
    assert tally(counted, [pod("a", "Failed", tracked=False)]).failed == 1


def test_only_noted_pods_are_let_go() -> None:
    pods = [pod("a", "Failed"), pod("b")]
    assert to_release(job(), pods, over=False) == []
    noted = job({"uncountedTerminatedPods": {"failed": ["a"]}})
    assert to_release(noted, pods, over=False) == [pods[0]]
    ending = [pod("a", ending=True), pod("b")]
    assert to_release(job(), ending, over=True) == [ending[0]]


def test_an_ending_pod_has_failed_unless_only_ended_ones_are_replaced() -> None:
    assert tally(job(), [pod("a", ending=True)]).new_failed == ("a",)
    waits = tally(job(podReplacementPolicy="Failed"), [pod("a", ending=True)])
    assert (waits.new_failed, waits.terminating) == ((), 1)
    nowhere = tally(job(podReplacementPolicy="Failed"), [pod("a", "Pending", ending=True, node="")])
    assert nowhere.new_failed == ("a",), "no node will say that it has ended"


def test_numbers_that_an_elastic_job_lost_do_not_count() -> None:
    shrunk = indexed({"completedIndexes": "0,3,4", "failedIndexes": "5"}, completions=3)
    seen = tally(shrunk, [pod("a", index=1)])
    assert (seen.succeeded, seen.completed, seen.failed_indexes) == (1, {0}, frozenset())


def test_indexes_count_once() -> None:
    done = indexed({"completedIndexes": "0"}, completions=3)
    pods = [pod("a", "Succeeded", index=0), pod("b", "Succeeded", index=2), pod("c", "Succeeded", index=7)]
    seen = tally(done, pods)
    assert (seen.succeeded, sorted(seen.completed), seen.new_succeeded) == (2, [0, 2], ())
    assert to_release(done, pods, over=False) == [pods[0], pods[2]], "the second is not written yet"


@pytest.mark.parametrize(
    ("spec", "pods", "wanted"),
    [
        ({"parallelism": 3, "completions": 5}, [], 3),
        ({"parallelism": 3, "completions": 2}, [], 2),
        ({"parallelism": 3, "completions": 4}, [pod("a", "Succeeded"), pod("b", "Succeeded")], 2),
        ({"parallelism": 3, "completions": None}, [pod("a")], 3),
        ({"parallelism": 3, "completions": None}, [pod("a", "Succeeded"), pod("b")], 1),
        ({"parallelism": 3, "suspend": True}, [pod("a")], 0),
    ],
)
def test_how_many_should_run(spec, pods, wanted) -> None:
    found = job(**spec)
    assert job_pods.wanted(found, tally(found, pods)) == wanted


def test_the_next_pod_waits_longer_with_each_failure_in_a_row() -> None:
    def wait(*pods: Object) -> float:
        return next_pods(job(), tally(job(), pods), pods, 1, NOW)[1]

    assert wait() == 0
    assert wait(pod("a", "Failed", ended="2026-01-01T00:59:55Z")) == 5
    two = pod("b", "Failed", ended="2026-01-01T00:59:50Z"), pod("a", "Failed", ended="2026-01-01T00:59:55Z")
    assert wait(*two) == 15
    assert wait(*two, pod("c", "Succeeded", ended="2026-01-01T00:59:53Z")) == 5
    assert wait(pod("a", "Failed", ended="2026-01-01T00:00:00Z")) == 0
    refused = pod("a", "Failed")
    refused["status"] = {"phase": "Failed", "reason": "OutOfcpu"}
    assert wait(refused) == 0, "its containers never were; it was made an hour ago"
    many = [pod(f"p{n}", "Failed", ended="2026-01-01T01:00:00Z") for n in range(40)]
    assert wait(*many) == 600


def test_free_indexes_get_pods_that_know_their_number() -> None:
    found = indexed({"completedIndexes": "0"}, completions=4, parallelism=3)
    pods = [pod("a", index=1)]
    bodies, _ = next_pods(found, tally(found, pods), pods, 2, NOW)
    assert [body["metadata"]["generateName"] for body in bodies] == ["j-2-", "j-3-"]
    first = bodies[0]
    assert first["metadata"]["annotations"][job_indexes.ANNOTATION] == "2"
    assert first["metadata"]["labels"][job_indexes.ANNOTATION] == "2"
    assert first["spec"]["hostname"] == "j-2"
    assert first["spec"]["containers"][0]["env"][0]["name"] == "JOB_COMPLETION_INDEX"
    assert first["metadata"]["finalizers"] == [FINALIZER]


def test_each_index_has_its_own_limit() -> None:
    found = indexed(completions=2, parallelism=2, backoffLimitPerIndex=1, backoffLimit=2**31 - 1)
    pods = [pod("a", "Failed", index=0, ended="2026-01-01T00:00:00Z")]
    seen = tally(found, pods)
    assert not seen.failed_indexes
    bodies, _ = next_pods(found, seen, pods, 2, NOW)
    assert [body["metadata"]["annotations"][FAILURES] for body in bodies] == ["1", "0"]
    rules = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]}
    forgiving = indexed(completions=1, backoffLimitPerIndex=1, podFailurePolicy=rules)
    lost = pod("x", "Failed", index=0, ended="2026-01-01T00:00:00Z")
    lost["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]
    bodies, _ = next_pods(forgiving, tally(forgiving, [lost]), [lost], 1, NOW)
    assert bodies[0]["metadata"]["annotations"][FAILURES] == "0", "the node's fault"
    pods = [pod("b", "Failed", index=0, failures=1), pod("c", "Succeeded", index=1)]
    seen = tally(found, pods)
    assert seen.failed_indexes == {0}
    end = job_end.decide(found, pods, seen, NOW)
    assert end is not None
    assert (end.kind, end.reason) == ("FailureTarget", "FailedIndexes")


def test_twins_and_done_numbers_go_first() -> None:
    found = indexed({"completedIndexes": "2"}, completions=3, parallelism=2)
    pods = [pod("a", index=0), pod("b", index=0), pod("c", index=2), pod("d", index=1)]
    doomed = {p["metadata"]["name"] for p in job_pods.too_many(found, tally(found, pods), NOW)}
    assert "c" in doomed
    assert len(doomed & {"a", "b"}) == 1
    assert "d" not in doomed


def decided(found: Object, *pods: Object, now: float = NOW) -> str | None:
    end = job_end.decide(found, pods, tally(found, pods), now)
    return None if end is None else f"{end.kind}: {end.reason}"


def test_how_a_job_ends() -> None:
    assert decided(job(), pod("a")) is None
    assert decided(job(), pod("a", "Succeeded")) == "SuccessCriteriaMet: CompletionsReached"
    assert decided(job(completions=2), pod("a", "Succeeded")) is None
    assert decided(job(completions=None), pod("a", "Succeeded"), pod("b")) is None
    assert decided(job(completions=None), pod("a", "Succeeded")) == "SuccessCriteriaMet: CompletionsReached"
    assert decided(job(backoffLimit=0), pod("a", "Failed")) == "FailureTarget: BackoffLimitExceeded"
    assert decided(job(backoffLimit=1), pod("a", "Failed")) is None
    assert decided(job({"failed": 1}, backoffLimit=1), pod("a", "Failed")) is not None


def test_restarts_count_where_the_node_restarts() -> None:
    template = {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}
    limited = job(backoffLimit=2, template=template)
    assert decided(limited, pod("a", restarts=1)) is None
    assert decided(limited, pod("a", restarts=2)) == "FailureTarget: BackoffLimitExceeded"
    assert decided(job(backoffLimit=2), pod("a", restarts=2)) is None


def test_a_deadline_counts_from_the_start_and_not_while_suspended() -> None:
    started = {"startTime": "2026-01-01T00:59:00Z"}
    assert decided(job(started, activeDeadlineSeconds=61), pod("a")) is None
    assert decided(job(started, activeDeadlineSeconds=60), pod("a")) == "FailureTarget: DeadlineExceeded"
    assert decided(job(started, activeDeadlineSeconds=60, suspend=True), pod("a")) is None


def test_rules_for_failed_pods() -> None:
    rules = [
        {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
    ]
    found = job(podFailurePolicy={"rules": rules}, backoffLimit=0)
    end = job_end.decide(found, [pod("a", "Failed", code=42)], tally(found, []), NOW)
    assert end is not None
    assert end.reason == "PodFailurePolicy"
    text = "Container c for pod n/a failed with exit code 42 matching FailJob rule at index 0"
    assert end.message == text
    disrupted = pod("a", "Failed", code=137)
    disrupted["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]
    assert decided(found, disrupted) is None
    assert to_release(found, [disrupted], over=False) == [disrupted], "nothing is left to be counted"
    assert decided(found, pod("a", "Failed", code=3)) == "FailureTarget: BackoffLimitExceeded"


def test_a_success_policy_ends_it_early() -> None:
    policy = {"rules": [{"succeededIndexes": "0,2-3", "succeededCount": 2}]}
    found = indexed(completions=5, parallelism=5, successPolicy=policy)
    running = [pod("x", index=1)]
    assert decided(found, pod("a", "Succeeded", index=0), *running) is None
    both = pod("a", "Succeeded", index=0), pod("b", "Succeeded", index=3)
    assert decided(found, *both, *running) == "SuccessCriteriaMet: SuccessPolicy"


def test_what_was_decided_stays() -> None:
    condition = {"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "message": "m"}
    late = job({"conditions": [condition]})
    assert decided(late, pod("a", "Succeeded")) == "FailureTarget: DeadlineExceeded"
