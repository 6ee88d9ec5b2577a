"""A lab (`kubelet-py lab`) for a test module: its verbs, kubectl as administrator, busybox on its nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e_node import PATIENCE, Done, Node

PYTHON = "/usr/bin/python3"


class LabCluster(Node):
    """`cli` is `kubelet-py lab …`; kubectl, apply, get, until and the rest are those of a single node."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, outside="")
        self.lab_root = root / "lab"
        self.kubeconfig = self.lab_root / "machines/control/disk/etc/kubelet-py/admin.conf"

    def cli(self, *argv: str, check: bool = True, timeout: float = 4 * PATIENCE, **options: Any) -> Done:
        command = [sys.executable, "-m", "kubelet_py", "lab", "--root", str(self.lab_root), *argv]
        return self._run(command, check=check, timeout=timeout, **options)

    def node(self, name: str, *verb: str, check: bool = True) -> Done:
        """`lab node NAME VERB …`."""
        return self.cli("node", name, *verb, check=check)

    def execute(self, name: str, *command: str, check: bool = True) -> Done:
        return self.cli("exec", name, "--", *command, check=check)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A verb that is left running, its output to be read."""
        command = [sys.executable, "-m", "kubelet_py", "lab", "--root", str(self.lab_root), *argv]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self.environment())

    def python(self, name: str, program: str, *argv: str) -> Done:
        """Run a program of the host's Python in a machine."""
        return self.execute(name, PYTHON, "-c", program, *argv)

    def give_busybox(self) -> None:
        self.cli("image", "from-binary", shutil.which("busybox") or "busybox", "--name", "busybox")

    def machines(self) -> dict[str, dict[str, Any]]:
        """`lab status`, by machine."""
        status = json.loads(self.cli("status", "-o", "json", check=False).out)
        return {machine["name"]: machine for machine in status["machines"]}

    def ready(self, name: str) -> str:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        return self.kubectl("get", "node", name, "-o", path, check=False).out

    def last_words(self) -> str:
        logs = sorted(self.lab_root.glob("machines/*/disk/var/log/kubelet-py/*.log"))
        logs += sorted(self.lab_root.glob("machines/*/boot.log"))
        ends = [
            f"--- {log.relative_to(self.lab_root)}\n"
            + "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            for log in logs
        ]
        return "\n".join(ends)


@contextmanager
def lab(*options: str) -> Iterator[LabCluster]:
    """A lab made by `lab up` with these options, busybox on every node; taken away at the end."""
    root = Path(tempfile.mkdtemp(prefix="kpy-lab-", dir="/tmp"))
    made = LabCluster(root)
    try:
        made.cli("up", "--timeout", "240", *options)
        made.give_busybox()
        yield made
    finally:
        made.cli("down")
        shutil.rmtree(root)
