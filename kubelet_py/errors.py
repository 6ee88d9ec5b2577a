"""The agent's exception tree.

    NodeError
    ├── ConfigError            a configuration file, flag or manifest that cannot be used
    ├── CertificateError       a key or certificate of the node that cannot be made, got or kept
    ├── AddressTaken           another Node announces the address of this one
    ├── ExpansionError         text with $(VAR) or a field path that has no answer
    ├── VolumeError            a volume that cannot be set up (the pod waits, event FailedMount)
    │   └── VolumesError       several, each with an event of its own
    ├── SandboxError           the pod's namespaces or network failed (event FailedCreatePodSandBox)
    └── ContainerError         one container cannot start; `reason` is what the API shows
        ├── ImagePulling       nothing is wrong: the pod is woken when its image is here
        ├── ImageError         ErrImagePull, ImagePullBackOff, InvalidImageName, ErrImageNeverPull
        ├── ContainerConfigError   CreateContainerConfigError
        ├── CreateContainerError
        └── RunContainerError

A ContainerError becomes `state.waiting{reason, message}` of its container, with upstream's words.
"""

from __future__ import annotations

from collections.abc import Sequence


class NodeError(Exception):
    """Anything the agent raises on purpose."""


class ConfigError(NodeError):
    """A configuration that cannot be used; the text names the key."""


class CertificateError(NodeError):
    """A key or certificate of the node that cannot be made, got or kept; tried again with back-off."""


class AddressTaken(NodeError):
    """Another Node announces this machine's address; looked at again, as that Node may go."""


class ExpansionError(NodeError):
    """A reference inside a pod that leads nowhere."""


class VolumeError(NodeError):
    """A volume that cannot be set up; retried (backoff.retry_seconds)."""


class VolumesError(VolumeError):
    """What is wrong with a pod's volumes: a text for each one that cannot be set up."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__("; ".join(texts))
        self.texts = tuple(texts)


class SandboxError(NodeError):
    """The pod's sandbox or its network could not be made; retried."""


class ContainerError(NodeError):
    """One container cannot start. `reason` and the text go to `state.waiting`."""

    reason = "CreateContainerError"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class ImagePulling(ContainerError):
    """The image is on its way; its container goes on waiting as before."""


class ImageError(ContainerError):
    """The image is not here; `reason` says whether it was tried, refused or is waiting."""

    reason = "ErrImagePull"


class ContainerConfigError(ContainerError):
    """The pod's spec cannot be turned into a container yet, e.g. a ConfigMap is missing."""

    reason = "CreateContainerConfigError"


class CreateContainerError(ContainerError):
    """The runtime refused to create the container."""


class RunContainerError(ContainerError):
    """The runtime created the container but could not start it."""

    reason = "RunContainerError"
