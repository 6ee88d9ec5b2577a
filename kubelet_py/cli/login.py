"""As whom the commands speak to the API server: the administrator, or on a joined node the node itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kubelet_py.paths import NodePaths

if TYPE_CHECKING:
    from kubeclient.rest import RestClient


def own_kubeconfig(paths: NodePaths) -> Path:
    """The administrator's kubeconfig where there is one; a joined node has only the kubelet's."""
    admin = paths.kubeconfig("admin")
    return admin if admin.exists() else paths.kubeconfig("kubelet")


def client(paths: NodePaths, command: str) -> RestClient:
    """A client for one command. Raises kubeclient's ConfigError."""
    from kubeclient import kubeconfig
    from kubeclient.rest import RestClient

    return RestClient(kubeconfig.load(own_kubeconfig(paths)), user_agent=f"kubelet-py-{command}", timeout=5.0)
