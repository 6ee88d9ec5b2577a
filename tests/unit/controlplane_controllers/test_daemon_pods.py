"""Which nodes have a daemon's pod, and how an update goes over them."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.controllers import daemon_pods
from controlplane.controllers.daemon_pods import belongs, make_pod, plan, status, update
from controlplane.controllers.stamps import seconds

Object = dict[str, Any]
NOW = seconds("2026-01-01T01:00:00Z")


def daemon_set(
    *, unavailable: int | str = 1, surge: int | str = 0, kind: str = "RollingUpdate", **pod_spec: Any
) -> Object:
    strategy = {"type": kind, "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}], **pod_spec}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template, "updateStrategy": strategy}
    return {"metadata": {"name": "d", "namespace": "n", "uid": "D", "generation": 3}, "spec": spec}


def node(name: str, *, taints: tuple[tuple[str, str], ...] = (), **labels: str) -> Object:
    listed = [{"key": key, "effect": effect} for key, effect in taints]
    return {"metadata": {"name": name, "labels": labels}, "spec": {"taints": listed}, "status": {}}


def pod(
    name: str,
    place: str,
    revision: str = "new",
    *,
    ready: bool = True,
    ending: bool = False,
    phase: str = "Running",
    bound: bool = True,
) -> Object:
    made = make_pod(daemon_set(), place, revision)
    made["metadata"] |= {"name": name, "namespace": "n", "uid": name}
    if ending:
        made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    if bound:
        made["spec"]["nodeName"] = place
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    made["status"] = {"phase": phase, "conditions": conditions if ready else []}
    return made


def nodes(*found: Object) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in found}


THREE = nodes(node("n1"), node("n2"), node("n3"))


def names(pods: Any) -> list[str]:
    return [p["metadata"]["name"] for p in pods]


@pytest.mark.parametrize(
    ("taints", "answer"),
    [
        ((), (True, True)),
        ((("mine", "NoSchedule"),), (False, True)),
        ((("mine", "NoExecute"),), (False, False)),
        ((("mine", "PreferNoSchedule"),), (True, True)),
        ((("node.kubernetes.io/not-ready", "NoExecute"),), (True, True)),
        ((("node.kubernetes.io/disk-pressure", "NoSchedule"),), (True, True)),
        ((("node.kubernetes.io/unschedulable", "NoSchedule"),), (True, True)),
        ((("node.kubernetes.io/network-unavailable", "NoSchedule"),), (False, True)),
    ],
)
def test_taints_that_daemons_live_with(taints, answer) -> None:
    assert belongs(daemon_set(), node("n1", taints=taints)) == answer


def test_host_network_daemons_bring_the_network_up() -> None:
    tainted = node("n1", taints=(("node.kubernetes.io/network-unavailable", "NoSchedule"),))
    assert belongs(daemon_set(hostNetwork=True), tainted) == (True, True)


def test_selectors_choose_nodes() -> None:
    chosen = daemon_set(nodeSelector={"disk": "ssd"})
    assert belongs(chosen, node("n1")) == (False, False)
    assert belongs(chosen, node("n1", disk="ssd")) == (True, True)
    assert belongs(daemon_set(nodeName="n2"), node("n1")) == (False, False)


def test_a_pod_is_pinned_and_keeps_the_templates_own_tolerations() -> None:
    own = {"key": "mine", "operator": "Exists"}
    made = make_pod(daemon_set(tolerations=[own]), "n1", "r")
    assert daemon_pods.place_of(made) == "n1"
    assert made["spec"]["tolerations"][0] == own
    assert len(made["spec"]["tolerations"]) == 7
    assert made["metadata"]["labels"] == {"a": "b", "controller-revision-hash": "r"}


def test_one_pod_on_each_node() -> None:
    found = plan(daemon_set(), THREE, [pod("a", "n1"), pod("b", "n2", bound=False)], "new", NOW)
    assert (found.create, found.delete, found.ended) == (("n3",), (), ())


def test_an_ending_pod_keeps_its_place() -> None:
    found = plan(daemon_set(), nodes(node("n1")), [pod("a", "n1", ending=True)], "new", NOW)
    assert (found.create, found.delete) == ((), ())


def test_what_does_not_belong_goes() -> None:
    tainted = nodes(node("n1", taints=(("mine", "NoExecute"),)), node("n2"))
    pods = [pod("a", "n1"), pod("b", "n2"), pod("c", "n2"), pod("d", "gone", bound=False)]
    assert names(plan(daemon_set(), tainted, pods, "new", NOW).delete) == ["a", "c", "d"]


def test_a_pod_that_ended_is_made_anew() -> None:
    found = plan(daemon_set(), nodes(node("n1")), [pod("a", "n1", phase="Failed", ready=False)], "new", NOW)
    assert names(found.ended) == ["a"]
    assert not found.create


def test_an_update_leaves_few_enough_missing() -> None:
    old = [pod(f"p{n}", f"n{n}", "old") for n in (1, 2, 3)]
    assert names(update(daemon_set(), THREE, old, "new", NOW).delete) == ["p1"]
    assert names(update(daemon_set(unavailable="50%"), THREE, old, "new", NOW).delete) == ["p1", "p2"]
    assert update(daemon_set(kind="OnDelete"), THREE, old, "new", NOW).delete == ()
    going = [pod("p1", "n1", "old", ending=True), *old[1:]]
    assert update(daemon_set(), THREE, going, "new", NOW).delete == ()
    coming = [pod("q1", "n1", ready=False), *old[1:]]
    assert update(daemon_set(), THREE, coming, "new", NOW).delete == ()
    assert names(update(daemon_set(), THREE, [pod("q1", "n1"), *old[1:]], "new", NOW).delete) == ["p2"]


def test_old_pods_that_do_not_serve_go_at_once() -> None:
    sick = [pod("p1", "n1", "old", ready=False), pod("p2", "n2", "old", ready=False), pod("p3", "n3", "old")]
    assert names(update(daemon_set(), THREE, sick, "new", NOW).delete) == ["p1", "p2"]


def test_with_a_surge_the_new_pod_serves_before_the_old_one_goes() -> None:
    surging = daemon_set(unavailable=0, surge=1)
    old = [pod(f"p{n}", f"n{n}", "old") for n in (1, 2, 3)]
    assert update(surging, THREE, old, "new", NOW).create == ("n1",)
    both = [*old, pod("q1", "n1", ready=False)]
    assert update(surging, THREE, both, "new", NOW).create == ()
    assert plan(surging, THREE, both, "new", NOW).delete == ()
    served = [*old, pod("q1", "n1")]
    assert names(plan(surging, THREE, served, "new", NOW).delete) == ["p1"]


def test_status_counts_nodes() -> None:
    cluster = {**THREE, **nodes(node("n4", taints=(("mine", "NoSchedule"),)))}
    pods = [pod("a", "n1"), pod("b", "n2", "old"), pod("c", "n3", ready=False), pod("d", "n4")]
    assert status(daemon_set(), cluster, pods, "new", NOW) == {
        "currentNumberScheduled": 3,
        "desiredNumberScheduled": 3,
        "numberMisscheduled": 1,
        "numberReady": 2,
        "numberAvailable": 2,
        "numberUnavailable": 1,
        "updatedNumberScheduled": 2,
        "observedGeneration": 3,
    }
