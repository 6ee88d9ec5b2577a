"""Jobs and CronJobs over fake nodes: counting, ends, numbers, suspension, what is left of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from control_plane import Cluster, Kubectl

from controlplane.controllers.job_pods import FINALIZER
from kubeclient.errors import Invalid, NotFound
from kubeclient.resources import CRON_JOBS, EVENTS, JOBS, PODS, RESOURCE_QUOTAS

pytestmark = pytest.mark.e2e

Object = dict[str, Any]
INDEX = "batch.kubernetes.io/job-completion-index"


def job_spec(**spec: Any) -> Object:
    containers = [{"name": "c", "image": "one"}]
    return {"template": {"spec": {"restartPolicy": "Never", "containers": containers}}, **spec}


def create(cluster: Cluster, namespace: str, **spec: Any) -> Object:
    return cluster.client.create(JOBS, {"metadata": {"name": "work"}, "spec": job_spec(**spec)}, namespace)


def job(cluster: Cluster, namespace: str) -> Object:
    return cluster.client.get(JOBS, "work", namespace)


def condition(found: Object, kind: str) -> Object | None:
    listed = (found.get("status") or {}).get("conditions") or ()
    return next((c for c in listed if c["type"] == kind and c["status"] == "True"), None)


def wait_for(cluster: Cluster, namespace: str, kind: str) -> Object:
    """The Job once it has that condition."""

    def there() -> Object | None:
        found = job(cluster, namespace)
        return found if condition(found, kind) else None

    return dict(cluster.until(f"job {kind}", there))


def active(cluster: Cluster, namespace: str) -> list[Object]:
    return [
        pod
        for pod in cluster.pods(namespace)
        if pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp")
    ]


def succeeded(cluster: Cluster, namespace: str) -> int:
    for node in cluster.nodes:
        node.look_again()  # what it wanted to say while nobody listened
    return int(job(cluster, namespace)["status"].get("succeeded", 0))


@pytest.fixture
def exits(cluster: Cluster) -> Iterator[Callable[[Callable[[Object], int | None]], None]]:
    """Say how pods exit from now on; None: they go on."""

    def decide(answer: Callable[[Object], int | None]) -> None:
        for node in cluster.nodes:
            node.exit_code = answer
            node.look_again()

    yield decide
    for node in cluster.nodes:
        node.exit_code = lambda pod: None


def test_a_job_completes_and_holds_no_pod(cluster: Cluster, namespace: str, exits, kubectl: Kubectl) -> None:
    exits(lambda pod: 0)
    create(cluster, namespace, completions=5, parallelism=2)
    done = wait_for(cluster, namespace, "Complete")
    status = done["status"]
    assert (status["succeeded"], status.get("failed", 0), status.get("active", 0)) == (5, 0, 0)
    assert status["completionTime"] >= status["startTime"]
    assert not status.get("uncountedTerminatedPods")
    assert [c["type"] for c in status["conditions"]] == ["SuccessCriteriaMet", "Complete"]
    pods = cluster.pods(namespace)
    assert len(pods) == 5
    assert not [pod for pod in pods if FINALIZER in (pod["metadata"].get("finalizers") or [])]
    waited = kubectl("wait", "--for=condition=complete", "job/work", "-n", namespace, "--timeout=20s")
    assert waited.returncode == 0, waited.stderr
    assert kubectl("delete", "job", "work", "-n", namespace).returncode == 0
    cluster.until("its pods are gone with it", lambda: not cluster.pods(namespace))


def test_a_job_of_another_controller_is_left_alone(cluster: Cluster, namespace: str, exits) -> None:
    exits(lambda pod: 0)
    foreign = {"metadata": {"name": "foreign"}, "spec": job_spec(managedBy="acme.io/other")}
    found = cluster.client.create(JOBS, foreign, namespace)
    create(cluster, namespace)
    wait_for(cluster, namespace, "Complete")  # ours, made after it
    assert not [p for p in cluster.pods(namespace) if p["metadata"]["name"].startswith("foreign")]
    same = cluster.client.get(JOBS, "foreign", namespace)
    assert same["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]
    with pytest.raises(Invalid, match=r"spec\.managedBy: .*field is immutable"):
        cluster.client.patch(JOBS, "foreign", {"spec": {"managedBy": None}}, namespace, kind="merge")


def test_too_many_failures_end_it(cluster: Cluster, namespace: str, exits) -> None:
    exits(lambda pod: 3)
    create(cluster, namespace, backoffLimit=0)
    failed = wait_for(cluster, namespace, "Failed")
    assert failed["status"]["failed"] == 1
    found = condition(failed, "Failed")
    assert found is not None
    assert (found["reason"], found["message"]) == (
        "BackoffLimitExceeded",
        "Job has reached the specified backoff limit",
    )

    def told() -> bool:
        events = cluster.client.list(EVENTS, namespace)["items"]
        return any(e["reason"] == "BackoffLimitExceeded" and e["type"] == "Warning" for e in events)

    cluster.until("an event says so", told)


def test_numbers_are_done_once_each_and_a_lost_pod_is_made_again(
    cluster: Cluster, namespace: str, exits
) -> None:
    create(cluster, namespace, completions=3, parallelism=3, completionMode="Indexed")
    cluster.until("three run", lambda: len(active(cluster, namespace)) == 3)
    first = {pod["metadata"]["annotations"][INDEX]: pod for pod in active(cluster, namespace)}
    assert sorted(first) == ["0", "1", "2"]
    assert first["1"]["spec"]["hostname"] == "work-1"
    exits(lambda pod: 0 if pod["metadata"]["annotations"][INDEX] == "2" else None)
    cluster.until("2 is done", lambda: job(cluster, namespace)["status"].get("completedIndexes") == "2")
    assert len(active(cluster, namespace)) == 2
    exits(lambda pod: 0)
    done = wait_for(cluster, namespace, "Complete")
    assert (done["status"]["completedIndexes"], done["status"]["succeeded"]) == ("0-2", 3)


def test_a_rule_ends_it_at_once_and_takes_the_others_along(cluster: Cluster, namespace: str, exits) -> None:
    rules = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]
    create(cluster, namespace, completions=2, parallelism=2, podFailurePolicy={"rules": rules})
    cluster.until("two run", lambda: len(active(cluster, namespace)) == 2)
    chosen = active(cluster, namespace)[0]["metadata"]["name"]
    exits(lambda pod: 42 if pod["metadata"]["name"] == chosen else None)
    failed = wait_for(cluster, namespace, "Failed")
    found = condition(failed, "Failed")
    assert found is not None
    assert found["reason"] == "PodFailurePolicy"
    assert found["message"] == (
        f"Container c for pod {namespace}/{chosen} failed with exit code 42 matching FailJob rule at index 0"
    )
    assert not active(cluster, namespace)


def test_suspended_it_has_no_pods_and_their_end_is_no_failure(
    cluster: Cluster, namespace: str, exits
) -> None:
    create(cluster, namespace, completions=2, parallelism=2)
    cluster.until("two run", lambda: len(active(cluster, namespace)) == 2)
    cluster.client.patch(JOBS, "work", {"spec": {"suspend": True}}, namespace)
    suspended = wait_for(cluster, namespace, "Suspended")
    cluster.until("no pods", lambda: not cluster.pods(namespace))
    assert "startTime" not in suspended["status"]
    cluster.client.patch(JOBS, "work", {"spec": {"suspend": False}}, namespace)
    cluster.until("two run again", lambda: len(active(cluster, namespace)) == 2)
    exits(lambda pod: 0)
    done = wait_for(cluster, namespace, "Complete")
    assert done["status"].get("failed", 0) == 0


def test_a_deadline_ends_running_pods(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, activeDeadlineSeconds=1)
    failed = wait_for(cluster, namespace, "Failed")
    found = condition(failed, "Failed")
    assert found is not None
    assert found["reason"] == "DeadlineExceeded"
    assert not active(cluster, namespace)


def test_an_ended_job_goes_when_its_time_is_over(cluster: Cluster, namespace: str, exits) -> None:
    exits(lambda pod: 0)
    create(cluster, namespace, ttlSecondsAfterFinished=0)

    def gone() -> bool:
        try:
            job(cluster, namespace)
        except NotFound:
            return True
        return False

    cluster.until("the job is gone", gone)
    cluster.until("its pods, too", lambda: not cluster.pods(namespace))


def test_pods_that_outlive_their_job_are_not_held(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace)
    cluster.until("one runs", lambda: len(active(cluster, namespace)) == 1)
    cluster.client.delete(JOBS, "work", namespace, propagation_policy="Orphan")

    def free() -> bool:
        pods = cluster.pods(namespace)
        return len(pods) == 1 and FINALIZER not in (pods[0]["metadata"].get("finalizers") or [])

    cluster.until("its finalizer is off", free)
    cluster.client.delete(PODS, cluster.pods(namespace)[0]["metadata"]["name"], namespace)
    cluster.until("it can be deleted", lambda: not cluster.pods(namespace))


def test_a_pod_that_no_longer_matches_is_let_go_and_not_held(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace)
    cluster.until("one runs", lambda: len(active(cluster, namespace)) == 1)
    name = active(cluster, namespace)[0]["metadata"]["name"]
    labels = {"batch.kubernetes.io/controller-uid": "another", "controller-uid": "another"}
    cluster.client.patch(PODS, name, {"metadata": {"labels": labels}}, namespace)

    def let_go() -> bool:
        metadata = cluster.client.get(PODS, name, namespace)["metadata"]
        return not metadata.get("ownerReferences") and not metadata.get("finalizers")

    cluster.until("it is nobody's", let_go)
    cluster.until("another has its place", lambda: len(active(cluster, namespace)) == 2)


def test_what_ended_is_counted_though_the_next_pod_is_refused(
    cluster: Cluster, namespace: str, exits
) -> None:
    exits(lambda pod: 0)
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"count/pods": "2"}}}
    cluster.client.create(RESOURCE_QUOTAS, quota, namespace)
    create(cluster, namespace, completions=3, parallelism=2)
    cluster.until("two are counted", lambda: succeeded(cluster, namespace) == 2)
    for pod in cluster.pods(namespace):
        cluster.client.delete(PODS, pod["metadata"]["name"], namespace)
    wait_for(cluster, namespace, "Complete")


def test_a_control_plane_that_is_killed_counts_nothing_twice(
    cluster: Cluster, namespace: str, exits
) -> None:
    exits(lambda pod: 0)
    create(cluster, namespace, completions=12, parallelism=3)
    cluster.until("some are counted", lambda: succeeded(cluster, namespace) > 1)
    cluster.process.kill()
    cluster.process.start()
    cluster.until("all twelve", lambda: succeeded(cluster, namespace) >= 12, 40)
    done = wait_for(cluster, namespace, "Complete")
    assert done["status"]["succeeded"] == 12
    ended = [pod for pod in cluster.pods(namespace) if pod["status"]["phase"] == "Succeeded"]
    assert len(ended) == 12

def test_a_run_of_a_cron_job_by_hand(cluster: Cluster, namespace: str, exits, kubectl: Kubectl) -> None:
    body = {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": job_spec()}}
    exits(lambda pod: 0)
    cluster.client.create(CRON_JOBS, {"metadata": {"name": "tick"}, "spec": body}, namespace)
    made = kubectl("create", "job", "work", "--from=cronjob/tick", "-n", namespace)
    if 'no kind "CronJob" is registered' in made.stderr:
        pytest.skip("this kubectl is older than CronJobs of batch/v1 (1.21)")
    assert made.returncode == 0, made.stderr
    wait_for(cluster, namespace, "Complete")


def test_a_cron_job_runs_by_its_clock_and_clears_up(cluster: Cluster, namespace: str, exits) -> None:
    body = {"schedule": "@every 1s", "successfulJobsHistoryLimit": 1, "jobTemplate": {"spec": job_spec()}}
    exits(lambda pod: 0)
    cluster.client.create(CRON_JOBS, {"metadata": {"name": "tick"}, "spec": body}, namespace)

    def ran() -> Object | None:
        status: Object = cluster.client.get(CRON_JOBS, "tick", namespace).get("status") or {}
        return status if status.get("lastSuccessfulTime") else None

    cluster.until("a run has succeeded", ran)
    cluster.client.patch(CRON_JOBS, "tick", {"spec": {"suspend": True}}, namespace)

    def cleared() -> bool:
        jobs = cluster.client.list(JOBS, namespace)["items"]
        status = cluster.client.get(CRON_JOBS, "tick", namespace)["status"]
        return len(jobs) == 1 and bool(condition(jobs[0], "Complete")) and "active" not in status

    cluster.until("one job of its history is left", cleared)


@pytest.mark.parametrize("policy", ["Forbid", "Replace"])
def test_runs_that_would_overlap(cluster: Cluster, namespace: str, policy: str) -> None:
    body = {"schedule": "* * * * *", "concurrencyPolicy": policy, "jobTemplate": {"spec": job_spec()}}
    made = cluster.client.create(CRON_JOBS, {"metadata": {"name": "tick"}, "spec": body}, namespace)
    running = {"metadata": {"name": "earlier"}, "spec": job_spec()}
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "tick", "uid": made["metadata"]["uid"]}
    running["metadata"]["ownerReferences"] = [owner | {"controller": True}]
    cluster.client.create(JOBS, running, namespace)
    tick = lambda: cluster.client.get(CRON_JOBS, "tick", namespace)["status"]  # noqa: E731
    cluster.until("it is known", lambda: tick().get("active"))
    # As if the last run had been two minutes ago: the next one is due now.
    past = {"status": {"lastScheduleTime": "2026-01-01T00:00:00Z"}}
    cluster.client.patch(CRON_JOBS, "tick", past, namespace, subresource="status")
    if policy == "Forbid":

        def told() -> bool:
            events = cluster.client.list(EVENTS, namespace)["items"]
            return any(event["reason"] == "JobAlreadyActive" for event in events)

        cluster.until("an event says why not", told)
        assert [j["metadata"]["name"] for j in cluster.client.list(JOBS, namespace)["items"]] == ["earlier"]
    else:

        def replaced() -> bool:
            names = [j["metadata"]["name"] for j in cluster.client.list(JOBS, namespace)["items"]]
            return len(names) == 1 and names[0].startswith("tick-")

        cluster.until("the new run is the only one", replaced)


def test_what_makes_no_sense_is_refused(cluster: Cluster, namespace: str) -> None:
    bad = {"schedule": "61 * * * *", "timeZone": "Mars/Olympus", "jobTemplate": {"spec": job_spec()}}
    with pytest.raises(Invalid) as caught:
        cluster.client.create(CRON_JOBS, {"metadata": {"name": "tick"}, "spec": bad}, namespace)
    assert "spec.schedule" in str(caught.value)
    assert "unknown time zone Mars/Olympus" in str(caught.value)
    with pytest.raises(Invalid, match="when completion mode is Indexed"):
        create(cluster, namespace, completionMode="Indexed", parallelism=1)
    with pytest.raises(Invalid, match="requires indexed completion mode"):
        create(cluster, namespace, backoffLimitPerIndex=1)
