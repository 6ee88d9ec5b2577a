"""The throwaway VM as one node: the real root of the file system, the machine's own uplink, much patience."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2e_node import Done, Node, main_kubectls


class Machine(Node):
    """The node at the root of the file system, with the machine's own uplink. Everything takes about 16 times
    longer in an emulated machine, so patience is the default."""

    def __init__(self) -> None:
        self.root = Path("/")
        self.outside = ""
        self.home = Path("/root")
        self.kubeconfig = Path("/etc/kubelet-py/admin.conf")
        self.default_kubectl = main_kubectls()[-1]

    def cli(self, *argv: str, check: bool = True, timeout: float = 400, **options: Any) -> Done:
        return super().cli(*argv, check=check, timeout=timeout, **options)

    def kubectl(self, *argv: str, check: bool = True, timeout: float = 200, **options: Any) -> Done:
        return super().kubectl(*argv, check=check, timeout=timeout, **options)

    def until(self, what: str, condition: Any, seconds: float = 200) -> Any:
        return super().until(what, condition, seconds)
