"""Where everything of one node lies on disk.

Every path hangs below one root folder (`--root`, `/` by default), so that several nodes fit on one
machine and a test can own a whole node in a temporary folder. The layout follows upstream's habits:
configuration under etc, durable state under var/lib, what dies with the boot under run, logs under
var/log where log collectors look for them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class NodePaths:
    """The folders and files of the node below `root`; nothing here touches the disk.

    Those that each pod's start asks for are joined once, for which it needs a place (so no slots): pathlib
    takes some 10 µs to put two together.
    """

    root: Path

    @property
    def config(self) -> Path:
        """Certificates, kubeconfigs, configuration files, static manifests."""
        return self.root / "etc/kubelet-py"

    @property
    def pki(self) -> Path:
        return self.config / "pki"

    @property
    def certificates(self) -> Path:
        """Keys and certificates that the node got by request (--cert-dir), as in /var/lib/kubelet/pki."""
        return self.state / "pki"

    @property
    def manifests(self) -> Path:
        """Static pods: every YAML or JSON file here is a pod of this node."""
        return self.config / "manifests"

    def kubeconfig(self, user: str) -> Path:
        """Kubeconfig of `admin`, `kubelet`, `proxy`, `controller-manager` or `scheduler`."""
        return self.config / f"{user}.conf"

    @property
    def cni_config(self) -> Path:
        return self.root / "etc/cni/net.d"

    @cached_property
    def state(self) -> Path:
        return self.root / "var/lib/kubelet-py"

    @cached_property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def store(self) -> Path:
        """The control plane's database."""
        return self.state / "store"

    @cached_property
    def pods(self) -> Path:
        """`pods/<uid>/{volumes,etc-hosts,containers/<name>/…}`, as in /var/lib/kubelet/pods."""
        return self.state / "pods"

    @cached_property
    def containers(self) -> Path:
        """`containers/<id>/{upper,work,config.json}`: the writable layers and bundles."""
        return self.state / "containers"

    @cached_property
    def cni_state(self) -> Path:
        """host-local's reservations and the invoker's cached results."""
        return self.state / "cni"

    @cached_property
    def run(self) -> Path:
        """Sockets and process files; empty after a reboot."""
        return self.root / "run/kubelet-py"

    @cached_property
    def sandboxes(self) -> Path:
        """`sandboxes/<id>/`: one folder per shim, with its socket and its state."""
        return self.run / "sandboxes"

    @cached_property
    def pod_logs(self) -> Path:
        return self.root / "var/log/pods"

    @cached_property
    def container_logs(self) -> Path:
        return self.root / "var/log/containers"

    @property
    def logs(self) -> Path:
        """The logs of our own processes."""
        return self.root / "var/log/kubelet-py"

    @property
    def instance(self) -> str:
        """Short name that tells this node's kernel objects from another's on the same machine.

        Empty for the node at `/`; otherwise the first six hex digits of the root's SHA-256.
        """
        if self.root == Path("/"):
            return ""
        return hashlib.sha256(str(self.root).encode()).hexdigest()[:6]

    @property
    def cgroup_root(self) -> str:
        """Folder below each cgroup hierarchy that holds this node's `kubepods` tree."""
        return f"kubelet-py-{self.instance}" if self.instance else "kubelet-py"

    @property
    def bridge(self) -> str:
        """Name of the pod bridge (at most 15 bytes)."""
        return f"kpy{self.instance}" if self.instance else "kpy0"
