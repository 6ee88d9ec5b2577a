"""Volumes that are about the pod itself: the downward API's files, and the folders that it starts with."""

from __future__ import annotations

from typing import Any

import pytest
from e2e_node import Node
from volume_pods import Case, check, config_map, looking, over, parameters, secret, start_all

from kubeclient import quantity

pytestmark = pytest.mark.e2e

Object = dict[str, Any]
LIMITED = {
    "resources": {
        "limits": {"cpu": "1250m", "memory": "64Mi"},
        "requests": {"cpu": "250m", "memory": "32Mi"},
    }
}


def about(projected: bool, item: Object, **more: Any) -> Object:
    """The volume `v` with one file, `it`."""
    items = {"items": [{"path": "it", **item}]}
    if projected:
        return {"name": "v", "projected": {"sources": [{"downwardAPI": items}], **more}}
    return {"name": "v", "downwardAPI": {**items, **more}}


def resource(name: str, divisor: str = "0") -> Object:
    return {"resourceFieldRef": {"containerName": "main", "resource": name, "divisor": divisor}}


def allocatable(name: str) -> Any:
    """The node's own figure, rounded up to a whole number."""

    def said(node: Node) -> list[str]:
        status = node.kubectl("get", "nodes", "-o", "json").json()["items"][0]["status"]
        return [str(quantity.value(status["allocatable"][name]))]

    return said


def downward(projected: bool) -> list[Case]:
    area = "Projected downwardAPI" if projected else "Downward API volume"
    tag = "p" if projected else "d"
    name = {"fieldRef": {"fieldPath": "metadata.name"}}
    found = []

    def case(title: str, short: str, item: Object, said: Any, container: Object | None = None) -> None:
        script = "cat /v/it; echo" if "mode" not in short else "stat -Lc %a /v/it"
        volume = about(projected, item, **({"defaultMode": 0o400} if short == "default-mode" else {}))
        body = looking(f"{tag}-{short}", script, [volume], container=container)
        found.append(Case(f"[sig-storage] {area} should {title}", body, said))

    case("provide container's cpu limit", "cpu", resource("limits.cpu", "1m"), ["1250"], LIMITED)
    case("provide container's cpu request", "cpur", resource("requests.cpu", "1m"), ["250"], LIMITED)
    case("provide container's memory limit", "mem", resource("limits.memory"), [str(64 << 20)], LIMITED)
    case("provide container's memory request", "memr", resource("requests.memory", "1Mi"), ["32"], LIMITED)
    for kind in ("cpu", "memory"):
        title = f"provide node allocatable ({kind}) as default {kind} limit if the limit is not set"
        case(title, f"all{kind}", resource(f"limits.{kind}"), allocatable(kind))
    case("provide podname only", "name", name, [f"{tag}-name"])
    case("set DefaultMode on files", "default-mode", name, ["400"])
    case("set mode on item file", "item-mode", name | {"mode": 0o400}, ["400"])
    return found


def empty(user: str, mode: str, medium: str) -> Case:
    """Upstream's matrix: whoever the pod is, the file it makes has the mode that it asked for."""
    source = {"medium": "Memory"} if medium == "tmpfs" else {}
    script = (
        f"echo x > /v/file; chmod {mode} /v/file; stat -c '%a %u' /v/file; stat -c %a /v; cat /v/file; "
        """awk '$2 == "/v" {print $3 == "tmpfs" ? "memory" : "disk"}' /proc/mounts"""
    )
    container = {} if user == "root" else {"securityContext": {"runAsUser": 1001}}
    where = "memory" if medium == "tmpfs" else "disk"
    root = "1777" if medium == "tmpfs" else "777"
    said = [f"{int(mode, 8):o} {'0' if user == 'root' else '1001'}", root, "x", where]
    body = looking(
        f"empty-{user}-{mode}-{medium}", script, [{"name": "v", "emptyDir": source}], container=container
    )
    return Case(f"[sig-storage] EmptyDir volumes should support ({user},{mode},{medium})", body, said)


def shared() -> Object:
    body = looking(
        "shared", "until [ -f /v/ready ]; do sleep 0.05; done; cat /v/ready", [{"name": "v", "emptyDir": {}}]
    )
    template = body["spec"]["containers"][0]
    other = {"name": "other", "command": ["sh", "-c", "echo y > /v/ready"]}
    body["spec"]["containers"].append(template | other)
    return body


def modes(medium: str, source: Object) -> Case:
    volumes = [{"name": "v", "emptyDir": source}]
    title = f"[sig-storage] EmptyDir volumes volume on {medium} should have the correct mode"
    name, root = "emptymode-" + medium.replace(" ", "-"), "1777" if medium == "tmpfs" else "777"
    return Case(title, looking(name, "stat -c '%a %u:%g' /v", volumes), [f"{root} 0:0"])


def of_payload(kind: str, source: Object, path: str, said: str, *objects: Object) -> Case:
    """One file of a volume that is made of files, at a path of its own."""
    mounts = [{"name": "v", "mountPath": "/mnt/file", "subPath": path}]
    body = looking(f"sub-{kind}", "cat /mnt/file; echo", [{"name": "v", **source}], mounts=mounts)
    title = f"[sig-storage] Subpath Atomic writer volumes should support subpaths with {kind} pod"
    return Case(title, body, [said], objects)


def over_a_file() -> Case:
    mounts = [{"name": "v", "mountPath": "/etc/resolv.conf", "subPath": "key"}]
    volumes = [{"name": "v", "configMap": {"name": "subpath"}}]
    body = looking("sub-over-file", "cat /etc/resolv.conf; echo", volumes, mounts=mounts)
    title = (
        "[sig-storage] Subpath Atomic writer volumes should support subpaths with configmap pod with "
        "mountPath of existing file"
    )
    return Case(title, body, ["value"], [config_map("subpath", {"key": "value"})])


SELF = {"items": [{"path": "self", "fieldRef": {"fieldPath": "metadata.name"}}]}
FROM_MAP = {"sources": [{"configMap": {"name": "subpath"}}]}
CASES = [
    *downward(False),
    *downward(True),
    *(
        empty(user, mode, medium)
        for user in ("root", "non-root")
        for mode in ("0644", "0666", "0777")
        for medium in ("tmpfs", "default")
    ),
    Case(
        "[sig-storage] EmptyDir volumes pod should support shared volumes between containers", shared(), ["y"]
    ),
    modes("default medium", {}),
    modes("tmpfs", {"medium": "Memory"}),
    of_payload("configmap", {"configMap": {"name": "subpath"}}, "key", "value",
               config_map("subpath", {"key": "value"})),
    of_payload("secret", {"secret": {"secretName": "subpath"}}, "key", "hidden",
               secret("subpath", {"key": "hidden"})),
    of_payload("downward", {"downwardAPI": SELF}, "self", "sub-downward"),
    of_payload("projected", {"projected": FROM_MAP}, "key", "value"),
    over_a_file(),
]  # fmt: skip


@pytest.fixture(scope="module")
def started(node: Node) -> Node:
    start_all(node, CASES)
    return node


@pytest.mark.parametrize("case", parameters(CASES))
def test_conformance(started: Node, case: Case) -> None:
    check(started, case)


def test_a_folder_in_memory_is_as_large_as_its_limit_or_its_pods(started: Node) -> None:
    """The kernel's own figure, in the pod: sizeLimit, the pod's memory limit where that is less."""
    show = "df -k /v | tail -1 | awk '{print $2}'"
    volume = {"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}}
    small = {"resources": {"limits": {"memory": "16Mi"}}}
    started.apply(looking("sized", show, [volume]), looking("smaller", show, [volume], container=small))
    for name, megabytes in (("sized", 32), ("smaller", 16)):
        started.until(f"{name} over", lambda name=name: started.phase(name) == "Succeeded", 60)
        assert int(started.kubectl("logs", name).out) == megabytes * 1024


def test_a_folder_of_the_pods_group(started: Node) -> None:
    context = {"runAsUser": 1001, "runAsGroup": 3000, "fsGroup": 2000}
    script = "stat -c '%a %g' /v; echo x > /v/file; stat -c %g /v/file; id -G"
    for medium, mode in (("", "2777"), ("Memory", "3777")):
        name = f"grouped{medium.lower()}"
        body = looking(name, script, [{"name": "v", "emptyDir": {"medium": medium}}], securityContext=context)
        started.apply(body)
        started.until(f"{name} over", lambda name=name: started.phase(name) == "Succeeded", 60)
        assert started.kubectl("logs", name).out.splitlines() == [
            f"{mode} 2000", "2000", "3000 2000"
        ]  # fmt: skip


def test_the_root_of_a_volume_of_files_is_as_upstream_makes_it(started: Node) -> None:
    started.apply(config_map("rooted", {"a": "x"}), secret("rooted", {"a": "x"}))
    volumes = [
        {"name": "c", "configMap": {"name": "rooted"}},
        {"name": "s", "secret": {"secretName": "rooted"}},
        {"name": "p", "projected": {"sources": [{"configMap": {"name": "rooted"}}]}},
    ]
    script = "for each in c s p; do stat -c '%a %u:%g' /$each; done"
    started.apply(
        looking("rooted", script, volumes),
        looking("rooted-grouped", script, volumes, securityContext={"fsGroup": 2000}),
    )
    assert over(started, "rooted") == ["777 0:0", "1777 0:0", "1777 0:0"]
    assert over(started, "rooted-grouped") == ["2777 0:2000", "3777 0:2000", "3777 0:2000"]
