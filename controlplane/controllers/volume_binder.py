"""Binds claims to persistent volumes, and says of each what it is: Available, Bound, Released, Pending, Lost.

Binding is two writes, volume first: its claimRef names the claim, then the claim's volumeName names the
volume. Whoever is cut off between them finds the half that was done and goes on. Volumes are not made here: a
class's own provisioner does that, and this controller only asks it by upstream's annotations. What a volume
held is deleted for hostPath only, below /tmp, as upstream's plugin has it.
Source: upstream's pkg/controller/volume/persistentvolume/pv_controller.go; events have its texts.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable

from controlplane import claims
from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from kubeclient.errors import NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES
from kubeclient.rest import RestClient

DELETABLE = re.compile("/tmp/.+")
_NO_PLUGIN = 'error getting {} volume plugin for volume "{}": no {} volume plugin matched'
PROVISIONERS = ("volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner")


class VolumeBinder(Controller):
    """Keys: "namespace/name" is a claim, "/name" a volume. `remove` deletes a folder of this host."""

    name = "volume-binder"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        remove: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._remove = remove or remove_host_path
        self._claims = informers.of(PERSISTENT_VOLUME_CLAIMS, self._on_claim)
        self._volumes = informers.of(PERSISTENT_VOLUMES, self._on_volume)
        self._classes = informers.of(STORAGE_CLASSES, self._on_class)

    def _on_claim(self, kind: str, new: Object, old: Object | None) -> None:
        self.enqueue(kind, new)
        if new["spec"].get("volumeName"):
            self.queue.add(f"/{new['spec']['volumeName']}")

    def _on_volume(self, kind: str, new: Object, old: Object | None) -> None:
        self.enqueue(kind, new)
        self._waiting_claims(claims.class_name(new))
        reference = new["spec"].get("claimRef")
        if reference:
            self.queue.add(f"{reference.get('namespace', '')}/{reference.get('name', '')}")

    def _on_class(self, kind: str, new: Object, old: Object | None) -> None:
        self._waiting_claims(new["metadata"]["name"])

    def _waiting_claims(self, class_name: str) -> None:
        for claim in self._claims.list():
            if not claims.is_bound(claim) and claims.class_name(claim) == class_name:
                self.enqueue("MODIFIED", claim)

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        if namespace is None:
            volume = self._volumes.get(name)
            if volume is not None:
                self._sync_volume(volume)
            return
        claim = self._claims.get(name, namespace)
        if claim is None or claim["metadata"].get("deletionTimestamp"):
            return
        if claims.BIND_COMPLETED in claims.annotations_of(claim):
            self._sync_bound(claim)
        elif claim["spec"].get("volumeName"):
            self._sync_chosen(claim, claim["spec"]["volumeName"])
        else:
            self._sync_unbound(claim)

    # claims

    def _sync_unbound(self, claim: Object) -> None:
        class_name = claims.class_name(claim)
        storage_class = self._classes.get(class_name) if class_name else None
        volumes = self._volumes.list()
        if claims.waits(claim, storage_class):
            # The scheduler chooses, or somebody has reserved a volume already.
            volumes = [volume for volume in volumes if claims.reserved_for(volume, claim)]
        found = claims.best_match(claim, volumes)
        if found is not None:
            self._bind(found, claim)
            return
        self._set_claim_phase(claim, "Pending")
        if claims.waits(claim, storage_class):
            text = "waiting for first consumer to be created before binding"
            self.recorder.event(claim, "Normal", "WaitForFirstConsumer", text)
        elif not class_name:
            text = "no persistent volumes available for this claim and no storage class is set"
            self.recorder.event(claim, "Normal", "FailedBinding", text)
        elif storage_class is None:
            text = f'storageclass.storage.k8s.io "{class_name}" not found'
            self.recorder.event(claim, "Warning", "ProvisioningFailed", text)
        else:
            self._ask_provisioner(claim, storage_class["provisioner"])

    def _ask_provisioner(self, claim: Object, provisioner: str) -> None:
        if provisioner == claims.NO_PROVISIONER:
            text = f"no volume plugin matched name: {provisioner}"
            self.recorder.event(claim, "Warning", "ProvisioningFailed", text)
            return
        wanted = dict.fromkeys(PROVISIONERS, provisioner)
        if not wanted.items() <= claims.annotations_of(claim).items():
            self._annotate(claim, wanted)
        text = (
            f"Waiting for a volume to be created either by the external provisioner '{provisioner}' or "
            "manually by the system administrator. If volume creation is delayed, please verify that the "
            "provisioner is running and correctly registered."
        )
        self.recorder.event(claim, "Normal", "ExternalProvisioning", text)

    def _sync_chosen(self, claim: Object, name: str) -> None:
        """The claim names a volume, by its author's wish."""
        volume = self._volumes.get(name)
        if volume is None:
            self._set_claim_phase(claim, "Pending")
        elif not volume["spec"].get("claimRef") or claims.reserved_for(volume, claim):
            problem = claims.mismatch(volume, claim)
            if not problem:
                self._bind(volume, claim)
                return
            text = f'Cannot bind to requested volume "{name}": {problem}'
            self.recorder.event(claim, "Warning", "VolumeMismatch", text)
            self._set_claim_phase(claim, "Pending")
        else:
            text = f'volume "{name}" already bound to a different claim.'
            self.recorder.event(claim, "Warning", "FailedBinding", text)
            self._set_claim_phase(claim, "Pending")

    def _sync_bound(self, claim: Object) -> None:
        name = claim["spec"].get("volumeName") or ""
        volume = self._volumes.get(name) if name else None
        if volume is not None and (not volume["spec"].get("claimRef") or claims.reserved_for(volume, claim)):
            self._bind(volume, claim)
            return
        if volume is not None:
            reason = "ClaimMisbound"
            text = "Two claims are bound to the same volume, this one is bound incorrectly"
        else:
            reason = "ClaimLost"
            lost = "its PersistentVolume" if name else "reference to PersistentVolume"
            text = f"Bound claim has lost {lost}. Data on the volume is lost!"
        if (claim.get("status") or {}).get("phase") != "Lost":
            self._set_claim_phase(claim, "Lost")
            self.recorder.event(claim, "Warning", reason, text)

    def _set_claim_phase(self, claim: Object, phase: str) -> None:
        if (claim.get("status") or {}).get("phase") != phase:
            body = claim | {"status": {**(claim.get("status") or {}), "phase": phase}}
            self.client.update(PERSISTENT_VOLUME_CLAIMS, body, subresource="status")

    def _annotate(self, claim: Object, wanted: dict[str, str]) -> None:
        metadata = claim["metadata"]
        body = {"metadata": {"annotations": wanted, "resourceVersion": metadata["resourceVersion"]}}
        self.client.patch(PERSISTENT_VOLUME_CLAIMS, metadata["name"], body, metadata["namespace"])

    # both

    def _bind(self, volume: Object, claim: Object) -> None:
        volume = self._point_volume(volume, claim)
        self._set_volume_phase(volume, "Bound")
        spec, title = claim["spec"], volume["metadata"]["name"]
        given = claims.annotations_of(claim)
        if spec.get("volumeName") != title or claims.BIND_COMPLETED not in given:
            given[claims.BIND_COMPLETED] = "yes"
            if not spec.get("volumeName"):
                given[claims.BOUND_BY_CONTROLLER] = "yes"
            body = claim | {
                "metadata": claim["metadata"] | {"annotations": given},
                "spec": spec | {"volumeName": title},
            }
            claim = self.client.update(PERSISTENT_VOLUME_CLAIMS, body)
        status = {
            **(claim.get("status") or {}),
            "phase": "Bound",
            "accessModes": volume["spec"]["accessModes"],
            "capacity": volume["spec"]["capacity"],
        }
        if claim.get("status") != status:
            self.client.update(PERSISTENT_VOLUME_CLAIMS, claim | {"status": status}, subresource="status")

    def _point_volume(self, volume: Object, claim: Object) -> Object:
        reference = volume["spec"].get("claimRef")
        if reference and reference.get("uid") == claim["metadata"]["uid"]:
            return volume
        metadata = volume["metadata"]
        if not reference:
            metadata = metadata | {
                "annotations": claims.annotations_of(volume) | {claims.BOUND_BY_CONTROLLER: "yes"}
            }
        body = volume | {"metadata": metadata, "spec": volume["spec"] | {"claimRef": reference_to(claim)}}
        return self.client.update(PERSISTENT_VOLUMES, body)

    # volumes

    def _sync_volume(self, volume: Object) -> None:
        reference = volume["spec"].get("claimRef")
        if not reference or not reference.get("uid"):
            self._set_volume_phase(volume, "Available")
            return
        claim = self._claim_of(reference)
        if claim is None:
            if (volume.get("status") or {}).get("phase") != "Failed":
                volume = self._set_volume_phase(volume, "Released")
            self._reclaim(volume)
            return
        chosen = claim["spec"].get("volumeName") or ""
        if chosen == volume["metadata"]["name"]:
            self._set_volume_phase(volume, "Bound")
        elif chosen:
            self._unbind(volume)
        else:
            self.enqueue("MODIFIED", claim)

    def _claim_of(self, reference: Object) -> Object | None:
        """The very claim; asked of the API itself before it counts as gone."""
        namespace, name = reference.get("namespace") or "", reference.get("name") or ""
        claim = self._claims.get(name, namespace)
        if claim is None or claim["metadata"]["uid"] != reference["uid"]:
            try:
                claim = self.client.get(PERSISTENT_VOLUME_CLAIMS, name, namespace)
            except NotFound:
                return None
        return claim if claim["metadata"]["uid"] == reference["uid"] else None

    def _unbind(self, volume: Object) -> None:
        """The claim took another volume: what we wrote is taken back, what somebody else wrote is kept."""
        spec, given = dict(volume["spec"]), claims.annotations_of(volume)
        if given.pop(claims.BOUND_BY_CONTROLLER, None):
            spec.pop("claimRef")
        else:
            kept = ("namespace", "name", "kind")
            spec["claimRef"] = {key: value for key, value in spec["claimRef"].items() if key in kept}
        body = volume | {"metadata": volume["metadata"] | {"annotations": given}, "spec": spec}
        self.client.update(PERSISTENT_VOLUMES, body)

    def _reclaim(self, volume: Object) -> None:
        policy = volume["spec"].get("persistentVolumeReclaimPolicy")
        name, spec = volume["metadata"]["name"], volume["spec"]
        provisioned = "pv.kubernetes.io/provisioned-by" in claims.annotations_of(volume)
        if policy == "Retain" or provisioned or volume["metadata"].get("deletionTimestamp"):
            return  # for a person, or for the provisioner that made it, or on its way already
        if policy == "Recycle":
            problem = _NO_PLUGIN.format("recycler", name, "recyclable")
            reason = "VolumeFailedRecycle"
        elif "hostPath" not in spec:
            problem = _NO_PLUGIN.format("deleter", name, "deletable")
            reason = "VolumeFailedDelete"
        else:
            problem, reason = self._remove(spec["hostPath"]["path"]), "VolumeFailedDelete"
        if not problem:
            self.client.delete(PERSISTENT_VOLUMES, name, uid=volume["metadata"]["uid"])
        elif (volume.get("status") or {}).get("message") != problem:
            self._set_volume_phase(volume, "Failed", problem)
            self.recorder.event(volume, "Warning", reason, problem)

    def _set_volume_phase(self, volume: Object, phase: str, message: str = "") -> Object:
        known = volume.get("status") or {}
        if known.get("phase") == phase and (not message or known.get("message") == message):
            return volume  # the rest of the status may be somebody else's
        status = {"phase": phase, **({"message": message} if message else {})}
        return self.client.update(PERSISTENT_VOLUMES, volume | {"status": status}, subresource="status")


def reference_to(claim: Object) -> Object:
    """A volume's claimRef."""
    metadata = claim["metadata"]
    return {
        "kind": "PersistentVolumeClaim",
        "apiVersion": "v1",
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "resourceVersion": metadata["resourceVersion"],
    }


def remove_host_path(path: str) -> str:
    """Delete a folder below /tmp and all in it; what went wrong, or ""."""
    if not DELETABLE.fullmatch(path) or os.path.normpath(path) != path.rstrip("/"):
        return f"host_path deleter only supports /tmp/.+ but received provided {path}"
    if os.path.realpath(path) != os.path.normpath(path):
        return f"host_path deleter does not follow the links in {path}"
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"could not delete {path}: {error.strerror}"
    except RecursionError:
        return f"could not delete {path}: its folders are nested too deeply"
    return ""
