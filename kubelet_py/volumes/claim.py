"""persistentVolumeClaim volumes: from the claim to the volume that it is bound to, and to that one's place.

The API's controller binds; the node checks again what binding promised, because it is the node that would
mount a stranger's data: the claim is bound, the volume agrees, and it may be used on this node. Texts are
upstream's (desired_state_of_world_populator.go and the local plugin).
"""

from __future__ import annotations

from pathlib import Path

from kubelet_py.errors import VolumeError
from kubelet_py.pods.admission import matches_terms
from kubelet_py.pods.model import Object
from kubelet_py.volumes import host_path, nfs, ownership
from kubelet_py.volumes.exclusive import Exclusive, InUse
from kubelet_py.volumes.plugin import Context, Volume

CLAIM, VOLUME = "persistentvolumeclaim", "persistentvolume"


class ClaimError(VolumeError):
    """A claim that is not ready; the text is a whole event."""


def claim_name(pod: Object, volume: Object) -> str:
    """The claim of a persistentVolumeClaim, or the one that is made for an ephemeral volume."""
    if "ephemeral" in volume:
        return f"{pod['metadata']['name']}-{volume['name']}"
    return str(volume["persistentVolumeClaim"]["claimName"])


def set_up(context: Context, volume: Object, folder: Path, exclusive: Exclusive) -> Volume:
    """The volume behind the claim, ready for use."""
    name = volume["name"]
    try:
        persistent = _bound_volume(context, volume)
    except VolumeError as error:
        namespace = context.pod["metadata"]["namespace"]
        raise ClaimError(
            f"Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[], "
            f"failed to process volumes=[{name}]: error processing PVC {namespace}/"
            f"{claim_name(context.pod, volume)}: {error}"
        ) from error
    title, spec = persistent["metadata"]["name"], persistent["spec"]
    required = (spec.get("nodeAffinity") or {}).get("required")
    if required is not None and not matches_terms(required.get("nodeSelectorTerms") or (), context.node):
        raise ClaimError(
            f'MountVolume.NodeAffinity check failed for volume "{title}" : no matching NodeSelectorTerms'
        )
    read_only = bool((volume.get("persistentVolumeClaim") or {}).get("readOnly"))
    try:
        with exclusive.held(context.pod["metadata"]["uid"], persistent):
            return Volume(_place(context, spec, folder, read_only), read_only)
    except InUse as error:
        raise ClaimError(f'MountVolume.SetUp failed for volume "{title}" : {error}') from error
    except VolumeError as error:
        step = "NewMounter initialization" if "local" in spec else "SetUp"
        raise ClaimError(f'MountVolume.{step} failed for volume "{title}" : {error}') from error


def _bound_volume(context: Context, volume: Object) -> Object:
    pod, name = context.pod, claim_name(context.pod, volume)
    found = context.lookup(CLAIM, name)
    if found is None:
        raise VolumeError(f'failed to fetch PVC from API server: persistentvolumeclaims "{name}" not found')
    if "ephemeral" in volume and not _made_for(found, pod):
        where = pod["metadata"]["namespace"]
        raise VolumeError(
            f"PVC {where}/{name} was not created for pod {where}/{pod['metadata']['name']} (pod is not owner)"
        )
    if found["metadata"].get("deletionTimestamp"):
        raise VolumeError("PVC is being deleted")
    title = found["spec"].get("volumeName") or ""
    if (found.get("status") or {}).get("phase") != "Bound" or not title:
        raise VolumeError("PVC is not bound")
    persistent = context.lookup(VOLUME, title)
    if persistent is None:
        text = f'persistentvolumes "{title}" not found'
        raise VolumeError(f"failed to fetch PV {title} from API server: {text}")
    if (persistent["spec"].get("claimRef") or {}).get("uid") != found["metadata"]["uid"]:
        raise VolumeError(f'found PV object "{title}" with unexpected pvcUID')
    if persistent["spec"].get("volumeMode") == "Block":
        raise VolumeError(f"PV {title} has volumeMode Block, which this node does not offer")
    return persistent


def _made_for(claim: Object, pod: Object) -> bool:
    owners = claim["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") and owner["uid"] == pod["metadata"]["uid"] for owner in owners)


def _place(context: Context, spec: Object, folder: Path, read_only: bool) -> Path:
    if "hostPath" in spec:
        return host_path.set_up(context, spec["hostPath"])
    if "local" in spec:
        path = _local(Path(spec["local"]["path"]))
        if context.fs_group is not None and not read_only:
            policy = context.security.get("fsGroupChangePolicy")
            ownership.give_to_group(path, context.fs_group, policy)
        return path
    if "nfs" in spec:
        return nfs.set_up(spec["nfs"], folder, spec.get("mountOptions") or ())
    kinds = [key for key, value in spec.items() if isinstance(value, dict) and key not in _NO_SOURCES]
    raise VolumeError(f"no volume plugin matched: persistent volumes of {'/'.join(kinds)} are not supported")


def _local(path: Path) -> Path:
    """A folder. Upstream also makes a file system on a block device, which this node leaves to people."""
    if not path.exists():
        raise VolumeError(f'path "{path}" does not exist')
    if path.is_block_device():
        raise VolumeError(
            f'path "{path}" is a block device, which this node does not format (mount it and name the folder)'
        )
    if not path.is_dir():
        raise VolumeError(f'path "{path}" is not a directory')
    return path


_NO_SOURCES = ("capacity", "claimRef", "nodeAffinity")
