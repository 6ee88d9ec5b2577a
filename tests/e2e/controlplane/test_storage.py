"""Claims and volumes on the real API server, with the controllers that bind, protect and reclaim them."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from control_plane import Cluster

from kubeclient.errors import NotFound
from kubeclient.resources import (
    EVENTS,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    STORAGE_CLASSES,
    Resource,
)

pytestmark = pytest.mark.e2e

Object = dict[str, Any]


class Lab:
    """Names that no other test has, and a class of its own so that no other test's volume suits."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.tag = secrets.token_hex(3)

    def volume(self, size: str = "1Gi", **spec: Any) -> Object:
        body = {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/nowhere"},
            "storageClassName": self.tag,
        }
        metadata = {"generateName": f"v-{self.tag}-"}
        made: Object = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata}
        return self.cluster.client.create(PERSISTENT_VOLUMES, made | {"spec": body | spec})

    def claim(self, name: str = "c", **spec: Any) -> Object:
        body = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": self.tag,
        }
        made: Object = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}}
        made["spec"] = body | spec
        return self.cluster.client.create(PERSISTENT_VOLUME_CLAIMS, made, self.namespace)

    def storage_class(self, **fields: Any) -> Object:
        body = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": self.tag},
            "provisioner": "kubernetes.io/no-provisioner",
        }
        return self.cluster.client.create(STORAGE_CLASSES, body | fields)

    def pod(self, name: str = "p", claim: str = "c", **spec: Any) -> Object:
        volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]
        body = {"containers": [{"name": "c", "image": "i"}], "volumes": volumes} | spec
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body}
        return self.cluster.client.create(PODS, made, self.namespace)

    def get(self, resource: Resource, name: str) -> Object | None:
        try:
            return self.cluster.client.get(resource, name, self.namespace if resource.namespaced else None)
        except NotFound:
            return None

    def phase(self, resource: Resource, name: str) -> str:
        found = self.get(resource, name)
        return str(found["status"].get("phase")) if found else "gone"

    def becomes(self, resource: Resource, name: str, phase: str) -> Object:
        self.cluster.until(f"{name} {phase}", lambda: self.phase(resource, name) == phase)
        return self.get(resource, name) or {}

    def event(self, name: str, reason: str) -> str:
        def look() -> str:
            found = self.cluster.client.list(EVENTS, field_selector=f"involvedObject.name={name}")["items"]
            here = [e for e in found if e["metadata"]["namespace"] in (self.namespace, "default")]
            return next((e["message"] for e in here if e["reason"] == reason), "")

        return str(self.cluster.until(f"event {reason}", look))


@pytest.fixture
def lab(cluster: Cluster, namespace: str) -> Lab:
    return Lab(cluster, namespace)


@pytest.mark.conformance(
    "[sig-storage] PersistentVolumes CSI Conformance should run through the lifecycle of a PV and a PVC"
)
def test_a_claim_is_bound_to_the_smallest_volume_that_suits(lab: Lab) -> None:
    large, small = (lab.volume(size)["metadata"]["name"] for size in ("5Gi", "2Gi"))
    lab.becomes(PERSISTENT_VOLUMES, small, "Available")
    lab.claim()
    claim = lab.becomes(PERSISTENT_VOLUME_CLAIMS, "c", "Bound")
    assert claim["spec"]["volumeName"] == small
    assert claim["status"]["capacity"] == {"storage": "2Gi"}
    assert claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] == "yes"
    volume = lab.becomes(PERSISTENT_VOLUMES, small, "Bound")
    assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
    assert lab.phase(PERSISTENT_VOLUMES, large) == "Available"
    lab.cluster.client.delete(PERSISTENT_VOLUME_CLAIMS, "c", lab.namespace)
    lab.becomes(PERSISTENT_VOLUME_CLAIMS, "c", "gone")
    lab.becomes(PERSISTENT_VOLUMES, small, "Released")
    lab.cluster.client.delete(PERSISTENT_VOLUMES, small)
    lab.becomes(PERSISTENT_VOLUMES, small, "gone")


@pytest.mark.conformance(
    "[sig-storage] PersistentVolumes CSI Conformance should apply changes to a pv/pvc status"
)
def test_status_has_a_door_of_its_own(lab: Lab) -> None:
    name = lab.volume()["metadata"]["name"]
    lab.becomes(PERSISTENT_VOLUMES, name, "Available")
    lab.claim(storageClassName=f"{lab.tag}-none")
    client = lab.cluster.client
    told = {"status": {"conditions": [{"type": "Tested", "status": "True"}]}}
    changed = client.patch(PERSISTENT_VOLUME_CLAIMS, "c", told, lab.namespace, subresource="status")
    assert changed["status"]["conditions"][0]["type"] == "Tested"
    body = {"status": {"reason": "Tested", "message": "by hand"}}
    assert client.patch(PERSISTENT_VOLUMES, name, body, subresource="status")["status"]["reason"] == "Tested"
    assert client.patch(PERSISTENT_VOLUMES, name, {"status": {"reason": "x"}})["status"]["reason"] == "Tested"


def test_a_claim_without_a_volume_says_why_it_waits(lab: Lab) -> None:
    lab.claim(storageClassName="")
    text = "no persistent volumes available for this claim and no storage class is set"
    assert lab.event("c", "FailedBinding") == text
    lab.claim("unknown", storageClassName=f"{lab.tag}-none")
    wanted = f'storageclass.storage.k8s.io "{lab.tag}-none" not found'
    assert lab.event("unknown", "ProvisioningFailed") == wanted
    lab.storage_class(provisioner="example.com/disks")
    lab.claim("made")
    assert "external provisioner 'example.com/disks'" in lab.event("made", "ExternalProvisioning")
    found = lab.get(PERSISTENT_VOLUME_CLAIMS, "made") or {}
    assert found["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"] == "example.com/disks"
    assert lab.phase(PERSISTENT_VOLUME_CLAIMS, "made") == "Pending"


def test_a_claim_that_waits_is_bound_when_its_pod_has_a_node(lab: Lab) -> None:
    """Only the volume on the second node is large enough: the pod goes there, and the claim with it."""
    lab.storage_class(volumeBindingMode="WaitForFirstConsumer")

    def on(node: str) -> Object:
        term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        return {"required": {"nodeSelectorTerms": [term]}}

    lab.volume("1Mi", nodeAffinity=on("n1"))
    fitting = lab.volume("1Gi", nodeAffinity=on("n2"))["metadata"]["name"]
    lab.claim()
    text = "waiting for first consumer to be created before binding"
    assert lab.event("c", "WaitForFirstConsumer") == text
    lab.pod()
    pod = lab.becomes(PODS, "p", "Running")
    assert pod["spec"]["nodeName"] == "n2"
    assert (lab.get(PERSISTENT_VOLUME_CLAIMS, "c") or {})["spec"]["volumeName"] == fitting


def test_a_pod_whose_claims_are_not_ready_stays_pending(lab: Lab) -> None:
    lab.pod("lost", claim="nowhere")
    no_help = "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    wanted = f'0/2 nodes are available: persistentvolumeclaim "nowhere" not found. {no_help}'
    assert lab.event("lost", "FailedScheduling") == wanted
    lab.claim()
    lab.pod()
    wanted = f"0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. {no_help}"
    assert lab.event("p", "FailedScheduling") == wanted
    lab.volume()
    lab.becomes(PODS, "p", "Running")


def test_a_claim_for_one_pod_is_had_by_one(lab: Lab) -> None:
    lab.volume(accessModes=["ReadWriteOncePod"])
    lab.claim(accessModes=["ReadWriteOncePod"])
    lab.pod("first")
    lab.becomes(PODS, "first", "Running")
    lab.pod("second")
    text = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
    nobody = "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
    assert lab.event("second", "FailedScheduling") == f"0/2 nodes are available: 2 {text}. {nobody}"
    lab.cluster.client.delete(PODS, "first", lab.namespace)
    lab.becomes(PODS, "second", "Running")


def test_a_claim_in_use_is_kept_until_its_pod_is_gone(lab: Lab) -> None:
    name = lab.volume()["metadata"]["name"]
    lab.claim()
    lab.pod()
    lab.becomes(PODS, "p", "Running")
    lab.cluster.client.delete(PERSISTENT_VOLUME_CLAIMS, "c", lab.namespace)
    lab.cluster.client.delete(PERSISTENT_VOLUMES, name)
    for resource, title in ((PERSISTENT_VOLUME_CLAIMS, "c"), (PERSISTENT_VOLUMES, name)):
        found = lab.get(resource, title)
        assert found is not None and found["metadata"].get("deletionTimestamp")
    lab.cluster.client.delete(PODS, "p", lab.namespace)
    lab.becomes(PERSISTENT_VOLUME_CLAIMS, "c", "gone")
    lab.becomes(PERSISTENT_VOLUMES, name, "gone")


def test_what_is_reclaimed(lab: Lab) -> None:
    """Delete removes a hostPath below /tmp and the volume; elsewhere the volume has failed and says why."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="kpy-reclaim-") as parent:
        folder = Path(parent) / "data"
        folder.mkdir()
        (folder / "file").write_text("x")
        inside = lab.volume(hostPath={"path": str(folder)}, persistentVolumeReclaimPolicy="Delete")
        lab.claim()
        lab.becomes(PERSISTENT_VOLUME_CLAIMS, "c", "Bound")
        lab.cluster.client.delete(PERSISTENT_VOLUME_CLAIMS, "c", lab.namespace)
        lab.becomes(PERSISTENT_VOLUMES, inside["metadata"]["name"], "gone")
        assert not folder.exists()
    made = lab.volume(hostPath={"path": "/etc"}, persistentVolumeReclaimPolicy="Delete")
    outside = made["metadata"]["name"]
    lab.claim("d")
    lab.becomes(PERSISTENT_VOLUME_CLAIMS, "d", "Bound")
    lab.cluster.client.delete(PERSISTENT_VOLUME_CLAIMS, "d", lab.namespace)
    failed = lab.becomes(PERSISTENT_VOLUMES, outside, "Failed")
    text = "host_path deleter only supports /tmp/.+ but received provided /etc"
    assert failed["status"]["message"] == text == lab.event(outside, "VolumeFailedDelete")


def test_a_claim_that_loses_its_volume_says_so(lab: Lab) -> None:
    name = lab.volume()["metadata"]["name"]
    lab.claim()
    lab.becomes(PERSISTENT_VOLUME_CLAIMS, "c", "Bound")
    client = lab.cluster.client
    client.patch(PERSISTENT_VOLUMES, name, {"metadata": {"finalizers": None}}, kind="merge")
    client.delete(PERSISTENT_VOLUMES, name)
    lab.becomes(PERSISTENT_VOLUME_CLAIMS, "c", "Lost")
    text = "Bound claim has lost its PersistentVolume. Data on the volume is lost!"
    assert lab.event("c", "ClaimLost") == text


def test_a_volume_may_be_reserved_from_either_side(lab: Lab) -> None:
    reserved = lab.volume(claimRef={"name": "c", "namespace": lab.namespace})["metadata"]["name"]
    other = lab.volume("1Gi")["metadata"]["name"]
    lab.claim("d", volumeName=other)
    lab.claim()
    for name, volume in (("c", reserved), ("d", other)):
        assert lab.becomes(PERSISTENT_VOLUME_CLAIMS, name, "Bound")["spec"]["volumeName"] == volume
    lab.claim("late", volumeName=other)  # not before: of two that wait for one volume either may get it
    assert lab.event("late", "FailedBinding") == f'volume "{other}" already bound to a different claim.'


def test_the_default_class_is_given_to_claims_that_name_none(lab: Lab) -> None:
    marked = {"storageclass.kubernetes.io/is-default-class": "true"}
    lab.storage_class(metadata={"name": lab.tag, "annotations": marked})
    try:
        made: Callable[..., Object] = lab.claim
        assert made("none", storageClassName=None)["spec"]["storageClassName"] == lab.tag
        assert made("empty", storageClassName="")["spec"]["storageClassName"] == ""
    finally:
        lab.cluster.client.delete(STORAGE_CLASSES, lab.tag)


def test_an_ephemeral_volume_has_a_claim_of_its_own(lab: Lab) -> None:
    lab.volume()
    asked = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": lab.tag,
    }
    template = {"metadata": {"labels": {"a": "b"}}, "spec": asked}
    lab.pod(volumes=[{"name": "e", "ephemeral": {"volumeClaimTemplate": template}}])
    pod = lab.becomes(PODS, "p", "Running")
    claim = lab.becomes(PERSISTENT_VOLUME_CLAIMS, "p-e", "Bound")
    assert claim["metadata"]["labels"] == {"a": "b"}
    assert claim["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"]
    lab.cluster.client.delete(PODS, "p", lab.namespace)
    lab.becomes(PERSISTENT_VOLUME_CLAIMS, "p-e", "gone")


@pytest.mark.conformance(
    "[sig-storage] StorageClasses CSI Conformance should run through the lifecycle of a StorageClass"
)
def test_the_life_of_a_storage_class(lab: Lab) -> None:
    client = lab.cluster.client
    made = lab.storage_class()
    assert made["reclaimPolicy"] == "Delete" and made["volumeBindingMode"] == "Immediate"
    patched = client.patch(STORAGE_CLASSES, lab.tag, {"metadata": {"labels": {"a": "b"}}})
    assert client.get(STORAGE_CLASSES, lab.tag) == patched
    listed = client.list(STORAGE_CLASSES, label_selector="a=b")["items"]
    assert [each["metadata"]["name"] for each in listed] == [lab.tag]
    client.update(STORAGE_CLASSES, patched | {"metadata": patched["metadata"] | {"labels": {"a": "c"}}})
    client.delete(STORAGE_CLASSES, lab.tag)
    assert lab.get(STORAGE_CLASSES, lab.tag) is None
