from __future__ import annotations

from typing import Any

import pytest

from controlplane.controllers.expectations import Expectations
from controlplane.controllers.node_ipam import Network, free_part
from controlplane.controllers.node_taints import change_taints, eviction_delay
from controlplane.controllers.pod_ownership import pod_from_template
from controlplane.controllers.pod_readiness import available_in, is_active
from controlplane.controllers.replicaset import deletion_order
from controlplane.controllers.stamps import seconds
from kubeclient.resources import REPLICA_SETS

NOW = seconds("2026-01-01T01:00:00Z")


def pod(
    name: str,
    *,
    node: str = "n",
    phase: str = "Running",
    ready: str | None = "2026-01-01T00:00:00Z",
    restarts: int = 0,
    created: str = "2026-01-01T00:00:00Z",
    cost: str = "0",
) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": ready}] if ready else []
    annotations = {"controller.kubernetes.io/pod-deletion-cost": cost}
    return {
        "metadata": {"name": name, "creationTimestamp": created, "annotations": annotations},
        "spec": {"nodeName": node},
        "status": {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": [{"restartCount": restarts}],
        },
    }


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (pod("a", node=""), pod("b")),
        (pod("a", phase="Pending"), pod("b", phase="Unknown")),
        (pod("a", phase="Unknown"), pod("b")),
        (pod("a", ready=None), pod("b")),
        (pod("a", cost="-1"), pod("b")),
        (pod("a", ready="2026-01-01T00:30:00Z"), pod("b")),
        (pod("a", restarts=3), pod("b")),
        (pod("a", created="2026-01-01T00:10:00Z"), pod("b")),
    ],
)
def test_who_is_deleted_first(first, later) -> None:
    assert sorted([later, first], key=lambda p: deletion_order(p, NOW)) == [first, later]


def test_availability_counts_from_readiness() -> None:
    assert available_in(pod("a", ready=None), 10, NOW) is None
    assert available_in(pod("a", ready="2026-01-01T00:59:56Z"), 10, NOW) == 6
    assert available_in(pod("a"), 10, NOW) == 0
    assert available_in(pod("a", ready="2026-01-01T00:59:59Z"), 0, NOW) == 0


def test_finished_and_ending_pods_are_not_active() -> None:
    ending = pod("a")
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert [is_active(p) for p in (pod("a"), pod("a", phase="Failed"), ending)] == [True, False, False]


def test_expectations_hold_until_seen_or_five_minutes_old() -> None:
    now = [0.0]
    expectations = Expectations(lambda: now[0])
    assert expectations.fulfilled("k")
    expectations.expect("k", creations=2)
    expectations.created("k")
    assert not expectations.fulfilled("k")
    expectations.created("k")
    assert expectations.fulfilled("k")
    expectations.expect("k", deletions=["u"])
    assert not expectations.fulfilled("k")
    now[0] = 301.0
    assert expectations.fulfilled("k")


def test_a_pod_of_the_template_shares_nothing_with_it() -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}}
    owner = {"metadata": {"name": "web-x", "uid": "u"}}
    made = pod_from_template(template, owner, REPLICA_SETS)
    made["spec"]["containers"][0]["name"] = made["metadata"]["labels"]["a"] = "changed"
    assert template["spec"]["containers"][0]["name"] == "c"
    assert template["metadata"]["labels"] == {"a": "b"}
    assert made["metadata"]["generateName"] == "web-x-"
    assert made["metadata"]["ownerReferences"][0]["controller"] is True


NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
FOREIGN = {"key": "mine", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("ready", "keys"), [("True", []), ("False", [NOT_READY] * 2), ("Unknown", [UNREACHABLE] * 2)]
)
def test_taints_follow_readiness_and_leave_others_alone(ready, keys) -> None:
    before = [FOREIGN, {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
    after = change_taints(before, {"Ready": ready}, "now")
    assert after is not None
    assert after[0] == FOREIGN
    assert [t["key"] for t in after[1:]] == keys
    assert change_taints(after, {"Ready": ready}, "later") is None


@pytest.mark.parametrize(
    ("condition", "key"),
    [
        ("MemoryPressure", "memory-pressure"),
        ("DiskPressure", "disk-pressure"),
        ("PIDPressure", "pid-pressure"),
        ("NetworkUnavailable", "network-unavailable"),
    ],
)
def test_a_condition_keeps_new_pods_away_and_evicts_nobody(condition, key) -> None:
    taint = {"key": f"node.kubernetes.io/{key}", "effect": "NoSchedule", "timeAdded": "now"}
    pressed = {"Ready": "True", condition: "True"}
    assert change_taints([FOREIGN], pressed, "now") == [FOREIGN, taint]
    assert change_taints([FOREIGN, taint], pressed, "later") is None
    assert change_taints([FOREIGN, taint], {"Ready": "True", condition: "False"}, "later") == [FOREIGN]
    assert change_taints([taint], {"Ready": "True", condition: "Unknown"}, "later") == []


def test_a_cordoned_node_carries_its_taint_beside_others() -> None:
    cordon = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": "now"}
    assert change_taints([], {"Ready": "True"}, "now", unschedulable=True) == [cordon]
    assert change_taints([cordon], {"Ready": "True"}, "later") == []
    both = change_taints([cordon], {"Ready": "False"}, "later", unschedulable=True)
    assert both is not None
    assert [(t["key"], t["effect"], t["timeAdded"]) for t in both] == [
        (NOT_READY, "NoSchedule", "later"),
        ("node.kubernetes.io/unschedulable", "NoSchedule", "now"),
        (NOT_READY, "NoExecute", "later"),
    ]


@pytest.mark.parametrize(
    ("tolerations", "delay"),
    [
        ([], 0.0),
        ([{"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 300}], 300.0),
        ([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"}], None),
        ([{"operator": "Exists"}], None),
        ([{"key": NOT_READY, "operator": "Exists"}], 0.0),
    ],
)
def test_how_long_a_pod_stays_on_a_silent_node(tolerations, delay) -> None:
    taints = [{"key": UNREACHABLE, "effect": "NoExecute"}, {"key": UNREACHABLE, "effect": "NoSchedule"}]
    assert eviction_delay({"spec": {"tolerations": tolerations}}, taints) == delay


def test_nodes_get_the_lowest_free_range() -> None:
    from ipaddress import ip_network

    cluster: Network = ip_network("10.244.0.0/22")
    assert free_part(cluster, []) == "10.244.0.0/24"
    assert free_part(cluster, ["10.244.0.0/24", "10.244.2.0/24"]) == "10.244.1.0/24"
    assert free_part(cluster, ["10.244.0.0/22"]) is None
    assert free_part(cluster, ["10.244.0.0/24"], 23) == "10.244.2.0/23"
