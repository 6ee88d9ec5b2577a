"""Which volume a claim gets, and which nodes a pod's claims leave it."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane import claims
from controlplane.controllers.volume_binder import remove_host_path
from controlplane.scheduler.filters import Requests
from controlplane.scheduler.pod_affinity import NO_RULES, Placed
from controlplane.scheduler.snapshot import Snapshot, decide, obstacles
from controlplane.scheduler.volumes import (
    CONFLICT,
    IN_USE,
    NOTHING_FREE,
    UNBOUND,
    Choice,
    Storage,
    before_nodes,
    held,
    on_node,
)

Object = dict[str, Any]


def claim(name: str = "c", size: str = "1Gi", volume: str = "", **more: Any) -> Object:
    metadata: Object = {"name": name, "namespace": "ns", "uid": f"uid-{name}"}
    if volume:
        metadata["annotations"] = {claims.BIND_COMPLETED: "yes"}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    spec |= {"volumeName": volume} if volume else {}
    return {"metadata": metadata, "spec": spec | more, "status": {"phase": "Pending"}}


def volume(
    name: str = "v", size: str = "1Gi", node: str = "", labels: Object | None = None, **more: Any
) -> Object:
    spec: Object = {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": {"storage": size}}
    if node:
        term = {"matchExpressions": [{"key": "host", "operator": "In", "values": [node]}]}
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [term]}}
    metadata = {"name": name, "labels": labels or {}}
    return {"metadata": metadata, "spec": spec | more, "status": {"phase": "Available"}}


def reference(name: str, uid: str = "") -> Object:
    return {"name": name, "namespace": "ns", **({"uid": uid} if uid else {})}


@pytest.mark.parametrize(
    ("asked", "volumes", "wanted"),
    [
        (claim(), [volume()], "v"),
        (claim(), [], None),
        (claim(size="2Gi"), [volume()], None),
        (claim(), [volume("large", "9Gi"), volume("small", "1Gi"), volume("tiny", "1Mi")], "small"),
        (claim(), [volume("b"), volume("a")], "a"),
        (claim(storageClassName="fast"), [volume(), volume("f", storageClassName="fast")], "f"),
        (claim(), [volume(storageClassName="fast")], None),
        (claim(accessModes=["ReadWriteMany"]), [volume()], None),
        (claim(accessModes=["ReadOnlyMany"]), [volume()], "v"),
        (claim(volumeMode="Block"), [volume()], None),
        (claim(volumeMode="Block"), [volume(volumeMode="Block")], "v"),
        (claim(selector={"matchLabels": {"a": "b"}}), [volume(), volume("l", labels={"a": "b"})], "l"),
        (claim(), [volume(claimRef=reference("other"))], None),
        (claim(), [volume("a"), volume("z", "9Gi", claimRef=reference("c"))], "z"),
        (claim(), [volume(claimRef=reference("c", "uid-c"))], "v"),
        (claim(), [volume(claimRef=reference("c", "an-older-claim"))], None),
        (claim(), [volume() | {"status": {"phase": "Released"}}], None),
    ],
)  # fmt: skip
def test_the_smallest_volume_that_suits(asked: Object, volumes: list[Object], wanted: str | None) -> None:
    found = claims.best_match(asked, volumes)
    assert (found["metadata"]["name"] if found else None) == wanted


def test_a_volume_that_is_being_deleted_is_nobodys() -> None:
    leaving = volume()
    leaving["metadata"]["deletionTimestamp"] = "now"
    assert claims.best_match(claim(), [leaving]) is None


POD: Object = {
    "metadata": {"name": "p", "namespace": "ns"},
    "spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]},
}
EPHEMERAL: Object = {"metadata": POD["metadata"], "spec": {"volumes": [{"name": "e", "ephemeral": {}}]}}
WAITS = {"slow": {"volumeBindingMode": claims.WAITS, "provisioner": claims.NO_PROVISIONER}}
MADE = {"made": {"volumeBindingMode": claims.WAITS, "provisioner": "example.com/disks"}}


def storage(*objects: Object, classes: Object | None = None, promised: Object | None = None) -> Storage:
    found_claims = {("ns", o["metadata"]["name"]): o for o in objects if "namespace" in o["metadata"]}
    volumes = {o["metadata"]["name"]: o for o in objects if "namespace" not in o["metadata"]}
    return Storage(found_claims, volumes, classes or {}, promised or {})


LEAVING = claim()
LEAVING["metadata"]["deletionTimestamp"] = "now"
LOST = claim(volume="v")
LOST["status"]["phase"] = "Lost"


@pytest.mark.parametrize(
    ("pod", "known", "wanted"),
    [
        ({"metadata": {}, "spec": {}}, storage(), ""),
        (POD, storage(), 'persistentvolumeclaim "c" not found'),
        (EPHEMERAL, storage(), 'persistentvolumeclaim "p-e" not found'),
        (POD, storage(LEAVING), 'persistentvolumeclaim "c" is being deleted'),
        (POD, storage(LOST), 'persistentvolumeclaim "c" bound to non-existent persistentvolume "v"'),
        (POD, storage(claim()), UNBOUND),
        (POD, storage(claim(storageClassName="slow"), classes=WAITS), ""),
        (POD, storage(claim(volume="v")), ""),
    ],
)
def test_what_forbids_every_node(pod: Object, known: Storage, wanted: str) -> None:
    assert before_nodes(pod, known) == wanted


def names(choices: list[Choice]) -> list[str | None]:
    return [choice.volume["metadata"]["name"] if choice.volume else None for choice in choices]


SLOW = {"storageClassName": "slow"}


@pytest.mark.parametrize(
    ("known", "reasons", "chosen"),
    [
        (storage(claim(volume="v"), volume()), [], []),
        (storage(claim(volume="v"), volume(node="here")), [], []),
        (storage(claim(volume="v"), volume(node="there")), [CONFLICT], []),
        (storage(claim(volume="v")), [CONFLICT], []),
        (storage(claim(**SLOW), volume(node="here", **SLOW), classes=WAITS), [], ["v"]),
        (storage(claim(**SLOW), volume(node="there", **SLOW), classes=WAITS), [NOTHING_FREE], []),
        (storage(claim(**SLOW), volume(**SLOW), classes=WAITS, promised={"v": "other"}), [NOTHING_FREE], []),
        (storage(claim(**SLOW), volume(**SLOW), classes=WAITS, promised={"v": "uid-c"}), [], ["v"]),
        (storage(claim(storageClassName="made"), classes=MADE), [], [None]),
    ],
)  # fmt: skip
def test_what_a_node_is_to_a_pods_claims(
    known: Storage, reasons: list[str], chosen: list[str | None]
) -> None:
    node = {"metadata": {"name": "n", "labels": {"host": "here"}}}
    found, choices = on_node(POD, node, known)
    assert (found, names(choices)) == (reasons, chosen)


def test_two_claims_of_a_pod_get_two_volumes() -> None:
    volumes = [{"name": n, "persistentVolumeClaim": {"claimName": n}} for n in ("a", "b")]
    pod = {"metadata": POD["metadata"], "spec": {"volumes": volumes}}
    asked = claim("a", **SLOW), claim("b", **SLOW)
    known = storage(*asked, volume("x", **SLOW), volume("y", **SLOW), classes=WAITS)
    node = {"metadata": {"name": "n"}}
    assert names(on_node(pod, node, known)[1]) == ["x", "y"]
    short = storage(*asked, volume("x", **SLOW), classes=WAITS)
    assert on_node(pod, node, short)[0] == [NOTHING_FREE]


NOTHING = Requests({}, frozenset())


@pytest.mark.parametrize(
    ("mode", "namespace", "claims_of_other", "reasons"),
    [
        ("ReadWriteOncePod", "ns", ("c",), [IN_USE]),
        ("ReadWriteOncePod", "ns", ("another",), []),
        ("ReadWriteOncePod", "elsewhere", ("c",), []),
        ("ReadWriteOnce", "ns", ("c",), []),
    ],
)
def test_a_claim_for_one_pod_is_nobody_elses(
    mode: str, namespace: str, claims_of_other: tuple[str, ...], reasons: list[str]
) -> None:
    """The other pod is on another node; only its end, not that of pods beside ours, makes room."""
    known = storage(claim(volume="v", accessModes=[mode]), volume())
    other = Placed("there", NOTHING, "", namespace, {}, NO_RULES, claims=claims_of_other)
    assert held(POD, known, [other]) == reasons
    allocatable = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    nodes = {
        name: {"metadata": {"name": name}, "spec": {}, "status": {"allocatable": allocatable}}
        for name in ("here", "there")
    }
    snapshot = Snapshot(nodes, [other], {}, known)
    verdict = decide(POD, NOTHING, "", snapshot)
    wanted = f"0/2 nodes are available: 2 {IN_USE}." if reasons else ""
    assert (verdict.message, verdict.chosen is None) == (wanted, bool(reasons))
    assert obstacles(POD, NOTHING, snapshot, "here", [other]) == reasons
    assert not obstacles(POD, NOTHING, snapshot, "there", [])


BEYOND = ["/etc", "/tmp", "/tmp/", "/tmp/../etc", "/tmp/a/../../etc", "/var/tmp/x", "tmp/x"]


@pytest.mark.parametrize("path", BEYOND)
def test_only_folders_below_tmp_are_deleted(path: str) -> None:
    assert remove_host_path(path) == f"host_path deleter only supports /tmp/.+ but received provided {path}"


def test_a_folder_is_deleted_but_no_link_is_followed(tmp_path: Any) -> None:
    victim, folder, link = tmp_path / "victim", tmp_path / "folder", tmp_path / "link"
    victim.mkdir()
    (victim / "file").write_text("kept")
    folder.mkdir()
    (folder / "inner").symlink_to(victim)
    link.symlink_to(victim)
    if not str(tmp_path).startswith("/tmp/"):
        pytest.skip("pytest's temporary folders are not below /tmp")
    assert "does not follow the links" in remove_host_path(str(link))
    assert "does not follow the links" in remove_host_path(f"{link}/file")
    assert remove_host_path(str(folder)) == "" and not folder.exists()
    assert remove_host_path(str(folder)) == "", "twice is no error"
    assert (victim / "file").read_text() == "kept"
