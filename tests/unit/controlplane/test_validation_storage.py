"""Refusals of volumes and claims, in upstream's words."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.apiserver.validation import validate_create, validate_update
from tests.unit.controlplane.test_validation import prepared

Object = dict[str, Any]
TERM = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n"]}]}
AFFINITY = {"required": {"nodeSelectorTerms": [TERM]}}
FROZEN = (
    "spec: Forbidden: spec is immutable after creation except resources.requests and "
    "volumeAttributesClassName for bound claims"
)


def volume(**spec: Any) -> Object:
    body = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/data"}}
    body |= spec
    kept = {key: value for key, value in body.items() if value is not None}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"}, "spec": kept}


def claim(**spec: Any) -> Object:
    body = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}} | spec
    metadata = {"name": "c", "namespace": "default"}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": body}


def texts(obj: Object, old: Object | None = None) -> list[str]:
    from controlplane.apiserver.resources import by_kind

    info = by_kind(obj["apiVersion"], obj["kind"])
    assert info is not None
    if old is None:
        return [cause.text for cause in validate_create(info, prepared(obj))]
    return [cause.text for cause in validate_update(info, prepared(obj), old)]


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        (volume(), None),
        (volume(hostPath=None), "spec: Required value: must specify a volume type"),
        (volume(nfs={"server": "s", "path": "/p"}),
         "spec.nfs: Forbidden: may not specify more than 1 volume type"),
        (volume(hostPath=None, nfs={"server": "s", "path": "p"}),
         'spec.nfs.path: Invalid value: "p": must be an absolute path'),
        (volume(hostPath={"path": "/a/../b"}),
         "spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"),
        (volume(hostPath=None, local={"path": "/l"}),
         "spec.nodeAffinity: Required value: Local volume requires node affinity"),
        (volume(hostPath=None, local={"path": "/l"}, nodeAffinity=AFFINITY), None),
        (volume(capacity=None), "spec.capacity: Required value"),
        (volume(capacity={"storage": "0"}),
         'spec.capacity[storage]: Invalid value: "0": must be greater than zero'),
        (volume(accessModes=["Sometimes"]),
         'spec.accessModes: Unsupported value: "Sometimes": supported values: "ReadOnlyMany", '
         '"ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"'),
        (volume(accessModes=["ReadWriteOnce", "ReadWriteOncePod"]),
         "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"),
        (volume(persistentVolumeReclaimPolicy="Burn"),
         'spec.persistentVolumeReclaimPolicy: Unsupported value: "Burn": supported values: "Delete", '
         '"Recycle", "Retain"'),
        (claim(), None),
        (claim(accessModes=[]), "spec.accessModes: Required value: at least 1 access mode is required"),
        (claim(resources={}), "spec.resources[storage]: Required value"),
        (claim(resources={"requests": {"storage": "-1"}}),
         'spec.resources[storage]: Invalid value: "-1": must be greater than zero'),
    ],
)  # fmt: skip
def test_what_is_refused_at_creation(obj: Object, wanted: str | None) -> None:
    assert texts(obj) == ([wanted] if wanted else [])


def bound(size: str = "1Gi", **spec: Any) -> Object:
    stored = prepared(claim(resources={"requests": {"storage": size}}, volumeName="v", **spec))
    return stored | {"status": {"phase": "Bound"}}


@pytest.mark.parametrize(
    ("new", "old", "wanted"),
    [
        (claim(volumeName="v"), prepared(claim()), None),
        (claim(volumeName="w"), bound(), FROZEN),
        (claim(accessModes=["ReadWriteMany"]), prepared(claim()), FROZEN),
        (claim(storageClassName="x"), prepared(claim()), None),
        (claim(storageClassName="x"), prepared(claim(storageClassName="y")), FROZEN),
        (claim(resources={"requests": {"storage": "2Gi"}}), prepared(claim()), FROZEN),
        (claim(volumeName="v", resources={"requests": {"storage": "2Gi"}}), bound(), None),
        (claim(volumeName="v"), bound("2Gi"),
         "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"),
        (volume(hostPath={"path": "/other"}), prepared(volume()),
         "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"),
        (volume(persistentVolumeReclaimPolicy="Delete"), prepared(volume()), None),
        (volume(nodeAffinity=AFFINITY), prepared(volume()), None),
    ],
)  # fmt: skip
def test_what_may_change(new: Object, old: Object, wanted: str | None) -> None:
    assert texts(new, old) == ([wanted] if wanted else [])
