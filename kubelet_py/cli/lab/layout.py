"""What belongs to a lab on disk, and what its kernel objects are called: all follows from its folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kubelet_py.paths import NodePaths

DEFAULT_ROOT = Path("/var/lib/kubelet-py-lab")
NODE_CONFIG = "/var/lib/kubelet-config.yaml"  # where a node finds its KubeletConfiguration
SWITCH, CONTROL, HOST = "switch", "control", "host"


@dataclass(frozen=True, slots=True)
class LabPaths:
    """The lab below `root`; nothing here touches the disk."""

    root: Path

    @property
    def command(self) -> str:
        """How a person begins a command about this lab."""
        return "kubelet-py lab" if self.root == DEFAULT_ROOT else f"kubelet-py lab --root {self.root}"

    @property
    def state(self) -> Path:
        """What was made, by name (state.py)."""
        return self.root / "lab.json"

    @property
    def lock(self) -> Path:
        return self.root / "lab.lock"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, as the control machine made it."""
        return self.node(CONTROL).kubeconfig("admin")

    @property
    def kubelet_config(self) -> Path:
        """The KubeletConfiguration of all nodes, if they were given one."""
        return self.root / "kubelet-config.yaml"

    @property
    def machines(self) -> Path:
        return self.root / "machines"

    def record(self, name: str) -> Path:
        """Which process is the machine's process 1."""
        return self.machines / name / "process.json"

    def relay(self, name: str) -> Path:
        """Which process stands in the machine's cable, if it is slowed down."""
        return self.machines / name / "relay.json"

    def boot_log(self, name: str) -> Path:
        return self.machines / name / "boot.log"

    def disk(self, name: str) -> Path:
        """What a power cut leaves: the machine's own /var and /tmp, and its changes to the host's folders."""
        return self.machines / name / "disk"

    def work(self, name: str) -> Path:
        """overlayfs' own folders."""
        return self.machines / name / "work"

    def mount_point(self, name: str) -> Path:
        return self.machines / name / "root"

    def node(self, name: str) -> NodePaths:
        """The machine's files as they lie on its disk; its /run is not among them."""
        return NodePaths(self.disk(name))

    @property
    def _suffix(self) -> str:
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:6]
        return "" if self.root == DEFAULT_ROOT else digest

    @property
    def link(self) -> str:
        """The host's end of its cable to the switch (at most 15 bytes)."""
        return f"kpylab{self._suffix or '0'}"

    @property
    def cgroup(self) -> str:
        """Folder in each cgroup hierarchy with one folder per machine in it."""
        return f"kubelet-py-lab-{self._suffix}" if self._suffix else "kubelet-py-lab"
