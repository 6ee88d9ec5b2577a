"""From a pod's runtimeClassName to the handler whose OCI runtime makes its containers.

Upstream: pkg/kubelet/runtimeclass. The class is looked up each time a sandbox is made; one that is changed or
removed later leaves what runs alone.
"""

from __future__ import annotations

from kubeclient.errors import ApiError, NotFound
from kubeclient.resources import RUNTIME_CLASSES
from kubeclient.rest import RestClient
from kubelet_py.errors import SandboxError
from kubelet_py.pods.model import Object


class RuntimeClasses:
    """`client` None: there is no API server, and so no classes."""

    def __init__(self, client: RestClient | None) -> None:
        self._client = client

    def handler(self, pod: Object) -> str:
        """"" for our own runtime. Raises SandboxError: the pod must not run with less than it asks for."""
        name = pod["spec"].get("runtimeClassName")
        if not name:
            return ""
        if self._client is None:
            raise SandboxError(f"failed to lookup RuntimeClass {name}: there is no API server")
        try:
            return str(self._client.get(RUNTIME_CLASSES, name)["handler"])
        except NotFound:
            raise SandboxError(f'runtimeclass.node.k8s.io "{name}" not found') from None
        except ApiError as error:
            raise SandboxError(f"failed to lookup RuntimeClass {name}: {error}") from error
