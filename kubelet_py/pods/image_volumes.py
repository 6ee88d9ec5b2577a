"""Image volumes: before a container starts, the images it mounts are brought here as its own image is.

A pull is the puller's business, with its policy, back-off and events; what is here is only which images and
under which name they are asked for. Source: upstream's kuberuntime, getImageVolumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kubelet_py.errors import CreateContainerError, SandboxError, VolumeError
from kubelet_py.pods.image_puller import ImagePuller, Secrets, Tell
from kubelet_py.pods.model import Object, uid_of
from kubelet_py.volumes.manager import VolumeManager
from kubelet_py.volumes.plugin import Volume

Ids = Callable[[Object], tuple[int, int]]
"""The first of the pod's users and how many it has; (0, 0) if they are the host's. SandboxError."""


def image_volumes(
    pod: Object,
    container: Object,
    images: ImagePuller,
    manager: VolumeManager,
    tell: Tell,
    secrets: Secrets,
    ids: Ids,
) -> dict[str, Volume]:
    """The image volumes that the container mounts. Raises ImagePulling, ImageError, CreateContainerError."""
    mounted = {entry["name"] for entry in container.get("volumeMounts") or ()}
    found = {}
    for volume in pod["spec"].get("volumes") or ():
        source = volume.get("image")
        if source is None or volume["name"] not in mounted:
            continue
        # The name keeps this pull apart from that of a container's own image.
        wanted = {
            "name": f"volume {volume['name']}",
            "image": source.get("reference") or "",
            "imagePullPolicy": source.get("pullPolicy") or "IfNotPresent",
        }
        image = images.ensure(pod, wanted, tell, secrets)
        try:
            found[volume["name"]] = manager.set_up_image(
                uid_of(pod), volume["name"], image.layers, ids(pod)
            )
        except (VolumeError, SandboxError, OSError) as error:
            raise CreateContainerError(f"failed to mount image volume {volume['name']}: {error}") from error
    return found


def mounted_images(pods: Iterable[Object]) -> list[str]:
    """The images that pods have as volumes, as they name them."""
    volumes = (volume for pod in pods for volume in pod["spec"].get("volumes") or ())
    return [v["image"]["reference"] for v in volumes if (v.get("image") or {}).get("reference")]
