"""What `kubectl get` prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from controlplane.apiserver.resources import RESOURCES, ResourceInfo, by_kind, lookup
from controlplane.apiserver.tables import columns_of, table
from controlplane.apiserver.tables_text import human_duration, selector

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC).timestamp()
BORN = "2026-01-01T11:55:00Z"
META = {"name": "x", "namespace": "default", "creationTimestamp": BORN}


def row(obj: dict[str, Any]) -> dict[str, str]:
    """The cells by column name."""
    info = by_kind(obj["apiVersion"], obj["kind"])
    assert info is not None
    found = table(info, [obj], include_object="None", version="v1", resource_version="1", now=NOW)
    names = [column["name"] for column in found["columnDefinitions"]]
    return dict(zip(names, found["rows"][0]["cells"], strict=True))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (150, "2m30s"),
        (599, "9m59s"),
        (600, "10m"),
        (179 * 60 + 59, "179m"),
        (180 * 60, "3h"),
        (5 * 3600 + 12 * 60, "5h12m"),
        (8 * 3600 + 59 * 60, "8h"),
        (47 * 3600, "47h"),
        (48 * 3600, "2d"),
        (74 * 3600, "3d2h"),
        (8 * 86400 + 3600, "8d"),
        (729 * 86400, "729d"),
        (740 * 86400, "2y10d"),
        (3000 * 86400, "8y"),
    ],
)
def test_human_duration(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def pod(status: dict[str, Any], **more: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "c"}], **more.pop("spec", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**META, **more.pop("metadata", {})},
        "spec": spec,
        "status": status,
    }


def state(restarts: int = 0, ready: bool = False, last: str = "", **kind: Any) -> dict[str, Any]:
    out = {"name": "c", "restartCount": restarts, "ready": ready, "state": kind}
    if last:
        out["lastState"] = {"terminated": {"finishedAt": last}}
    return out


RUNNING = {"running": {"startedAt": BORN}}
INIT = {"initContainers": [{"name": "i"}, {"name": "j"}]}
SIDECAR = {"initContainers": [{"name": "c", "restartPolicy": "Always"}]}
READY = {"type": "Ready", "status": "True"}


@pytest.mark.parametrize(
    ("obj", "ready", "status", "restarts"),
    [
        (pod({"phase": "Pending"}), "0/1", "Pending", "0"),
        (
            pod({"phase": "Running", "containerStatuses": [state(ready=True, **RUNNING)]}),
            "1/1",
            "Running",
            "0",
        ),
        (
            pod(
                {
                    "phase": "Running",
                    "containerStatuses": [state(3, last=BORN, waiting={"reason": "CrashLoopBackOff"})],
                }
            ),
            "0/1",
            "CrashLoopBackOff",
            "3 (5m ago)",
        ),
        (
            pod({"phase": "Failed", "containerStatuses": [state(terminated={"exitCode": 3})]}),
            "0/1",
            "ExitCode:3",
            "0",
        ),
        (
            pod(
                {
                    "phase": "Failed",
                    "containerStatuses": [state(terminated={"exitCode": 1, "reason": "Error"})],
                }
            ),
            "0/1",
            "Error",
            "0",
        ),
        (
            pod({"phase": "Failed", "containerStatuses": [state(terminated={"exitCode": 137, "signal": 9})]}),
            "0/1",
            "Signal:9",
            "0",
        ),
        (
            pod(
                {
                    "phase": "Succeeded",
                    "containerStatuses": [state(terminated={"exitCode": 0, "reason": "Completed"})],
                }
            ),
            "0/1",
            "Completed",
            "0",
        ),
        (
            pod(
                {
                    "phase": "Running",
                    "conditions": [READY],
                    "containerStatuses": [
                        state(terminated={"exitCode": 0, "reason": "Completed"}),
                        state(ready=True, **RUNNING),
                    ],
                },
                spec={"containers": [{"name": "a"}, {"name": "b"}]},
            ),
            "1/2",
            "Running",
            "0",
        ),
        (
            pod({"phase": "Pending", "initContainerStatuses": [state(**RUNNING)]}, spec=INIT),
            "0/1",
            "Init:0/2",
            "0",
        ),
        (
            pod(
                {
                    "phase": "Pending",
                    "initContainerStatuses": [
                        state(terminated={"exitCode": 0, "reason": "Completed"}),
                        state(2, waiting={"reason": "CrashLoopBackOff"}),
                    ],
                },
                spec=INIT,
            ),
            "0/1",
            "Init:CrashLoopBackOff",
            "2",
        ),
        (
            pod(
                {"phase": "Pending", "initContainerStatuses": [state(terminated={"exitCode": 5})]}, spec=INIT
            ),
            "0/1",
            "Init:ExitCode:5",
            "0",
        ),
        (
            pod(
                {
                    "phase": "Running",
                    "initContainerStatuses": [{**state(1, ready=True, **RUNNING), "started": True}],
                    "containerStatuses": [state(ready=True, **RUNNING)],
                },
                spec=SIDECAR,
            ),
            "2/2",
            "Running",
            "1",
        ),
        (
            pod(
                {"phase": "Running", "containerStatuses": [state(ready=True, **RUNNING)]},
                metadata={"deletionTimestamp": BORN},
            ),
            "1/1",
            "Terminating",
            "0",
        ),
        (
            pod({"phase": "Succeeded", "reason": "Evicted"}, metadata={"deletionTimestamp": BORN}),
            "0/1",
            "Evicted",
            "0",
        ),
        (
            pod({"phase": "Running", "reason": "NodeLost"}, metadata={"deletionTimestamp": BORN}),
            "0/1",
            "Unknown",
            "0",
        ),
        (
            pod({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
            "0/1",
            "SchedulingGated",
            "0",
        ),
        (
            pod({"phase": "Pending", "containerStatuses": [state(waiting={"reason": "ImagePullBackOff"})]}),
            "0/1",
            "ImagePullBackOff",
            "0",
        ),
    ],
)
def test_pod_status(obj: dict[str, Any], ready: str, status: str, restarts: str) -> None:
    cells = row(obj)
    assert (cells["Ready"], cells["Status"], cells["Restarts"]) == (ready, status, restarts)
    assert cells["Age"] == "5m"


def test_wide_columns_of_a_pod() -> None:
    bare = row(pod({}))
    assert (bare["IP"], bare["Node"], bare["Nominated Node"], bare["Readiness Gates"]) == ("<none>",) * 4
    gates = {"readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}], "nodeName": "n"}
    full = row(pod({"podIP": "10.0.0.1", "conditions": [{"type": "a", "status": "True"}]}, spec=gates))
    assert (full["IP"], full["Node"], full["Readiness Gates"]) == ("10.0.0.1", "n", "1/2")


def test_a_node() -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {**META, "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.32.0"},
        },
    }
    cells = row(node)
    assert (cells["Status"], cells["Roles"]) == ("Ready,SchedulingDisabled", "control-plane")
    assert (cells["Internal-IP"], cells["External-IP"], cells["OS-Image"]) == (
        "10.0.0.1",
        "<none>",
        "<unknown>",
    )


@pytest.mark.parametrize(
    ("spec", "external", "ports"),
    [
        ({"type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": [{"port": 80}]}, "<none>", "80/TCP"),
        (
            {"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}, {"port": 80}]},
            "<none>",
            "53:30053/UDP,80/TCP",
        ),
        ({"type": "LoadBalancer"}, "<pending>", "<none>"),
        ({"type": "ExternalName", "externalName": "a.b"}, "a.b", "<none>"),
        ({"type": "ClusterIP", "externalIPs": ["1.1.1.1", "2.2.2.2"]}, "1.1.1.1,2.2.2.2", "<none>"),
    ],
)
def test_services(spec: dict[str, Any], external: str, ports: str) -> None:
    cells = row({"apiVersion": "v1", "kind": "Service", "metadata": META, "spec": spec})
    assert (cells["External-IP"], cells["Port(s)"]) == (external, ports)


def test_a_deployment() -> None:
    template = {"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}}
    spec = {"replicas": 3, "selector": {"matchLabels": {"app": "w"}}, "template": template}
    status = {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": META,
        "spec": spec,
        "status": status,
    }
    assert list(row(deployment).values()) == ["x", "2/3", 3, 1, "5m", "a,b", "x,y", "app=w"]


def test_events_of_both_groups_read_the_same() -> None:
    about = {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"}
    old = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": META,
        "involvedObject": about,
        "reason": "Started",
        "type": "Normal",
        "message": "Started c \n",
        "firstTimestamp": "2026-01-01T11:00:00Z",
        "lastTimestamp": BORN,
        "count": 4,
        "source": {"component": "kubelet", "host": "n"},
    }
    new = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": META,
        "regarding": about,
        "reason": "Started",
        "type": "Normal",
        "note": "Started c \n",
        "deprecatedFirstTimestamp": "2026-01-01T11:00:00Z",
        "deprecatedLastTimestamp": BORN,
        "deprecatedCount": 4,
        "deprecatedSource": {"component": "kubelet", "host": "n"},
    }
    assert row(old) == row(new)
    assert list(row(old).values()) == [
        "5m",
        "Normal",
        "Started",
        "pod/p",
        "spec.containers{c}",
        "kubelet, n",
        "Started c",
        "60m",
        4,
        "x",
    ]


def test_endpoints_show_three_and_count_the_rest() -> None:
    addresses = [{"ip": f"10.0.0.{n}"} for n in range(1, 6)]
    subsets = [{"addresses": addresses, "ports": [{"port": 80}]}]
    obj = {"apiVersion": "v1", "kind": "Endpoints", "metadata": META, "subsets": subsets}
    assert row(obj)["Endpoints"] == "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more..."
    assert row({**obj, "subsets": []})["Endpoints"] == "<none>"


def test_selectors() -> None:
    terms = [
        {"key": "t", "operator": "In", "values": ["b", "a"]},
        {"key": "old", "operator": "DoesNotExist"},
    ]
    assert selector({"matchLabels": {"a": "b"}, "matchExpressions": terms}) == "a=b,t in (a,b),!old"
    assert selector({}) == "<none>"


PODS = lookup("", "v1", "pods")


@pytest.mark.parametrize(
    ("include", "keys"), [("Metadata", {"kind", "apiVersion", "metadata"}), ("None", None)]
)
def test_rows_carry_what_was_asked_for(include: str, keys: set[str] | None) -> None:
    assert PODS is not None
    obj = pod({"phase": "Succeeded"})
    found = table(PODS, [obj], include_object=include, version="v1", resource_version="7", now=NOW)
    assert found["metadata"] == {"resourceVersion": "7"}
    embedded = found["rows"][0]["object"]
    assert (set(embedded) if embedded else None) == keys
    assert found["rows"][0]["conditions"][0]["reason"] == "Succeeded"
    whole = table(PODS, [obj], include_object="Object", version="v1", resource_version="7", now=NOW)
    assert whole["rows"][0]["object"] is obj


def test_later_watch_events_need_no_columns() -> None:
    assert PODS is not None
    found = table(
        PODS, [], include_object="None", version="v1", resource_version="1", now=NOW, with_columns=False
    )
    assert found["columnDefinitions"] == []


@pytest.mark.parametrize("info", [info for info in RESOURCES if info.stored], ids=lambda info: info.plural)
def test_every_kind_prints_a_bare_object(info: ResourceInfo) -> None:
    obj = {"apiVersion": info.api_version, "kind": info.kind, "metadata": META}
    assert len(row(obj)) == len(columns_of(info))


# Columns that 1.32 has and the recorded 1.20 server had not, or had with another type.
NEWER = {"VolumeAttributesClass", "Restarts", "Status", "RequestedDuration"}


def test_columns_are_those_of_a_real_server(oracle: Callable[[str], Any]) -> None:
    recorded = oracle("columns.json")
    compared = 0
    for info in RESOURCES:
        wanted = recorded.get(f"{info.group}/{info.plural}" if info.group else info.plural)
        if wanted is None or not info.stored:
            continue
        compared += 1
        mine = [[column.name, column.type, column.format, column.priority] for column in columns_of(info)]
        assert [item for item in wanted if item not in mine and item[0] not in NEWER] == [], info.plural
        assert [item for item in mine if item not in wanted and item[0] not in NEWER] == [], info.plural
        both = [item for item in mine if item in wanted]
        assert both == [item for item in wanted if item in mine], info.plural
    assert compared > 30


def test_a_row_is_that_of_a_real_server(oracle: Callable[[str], Any]) -> None:
    recorded = {
        name: json.loads(body)
        for name, _, _, body in oracle("samples.json")
        if name in ("table pod", "get pod deleting")
    }
    obj, printed = recorded["get pod deleting"], recorded["table pod"]
    assert PODS is not None
    born = datetime.fromisoformat(obj["metadata"]["creationTimestamp"]).timestamp()
    found = table(PODS, [obj], include_object="Metadata", version="v1", resource_version="225", now=born + 4)
    wanted = [str(cell) for cell in printed["rows"][0]["cells"]]
    assert [str(cell) for cell in found["rows"][0]["cells"]] == wanted
    assert found["rows"][0]["object"] == printed["rows"][0]["object"]
