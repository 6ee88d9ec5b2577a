"""A second machine for a cluster: a network namespace of its own, one hop from the first node's.

Both nodes share the test machine's kernel, as the nodes of a lab do; what keeps them apart is the namespace
and the root folder, from which a node's names (bridge, cgroups) follow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from e2e_node import Done, Node, sh

FIRST_IP, SECOND_IP = "198.51.101.10", "198.51.101.20"


class SecondNode(Node):
    """Commands run in the second machine's network namespace."""

    def _run(
        self,
        command: Sequence[str],
        *,
        check: bool,
        timeout: float,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        inside = ["nsenter", f"--net=/run/netns/{self.outside}", *command]
        return super()._run(inside, check=check, timeout=timeout, input=input, env=env)


@contextmanager
def second_machine(root: Path) -> Iterator[SecondNode]:
    """The namespace with an address and a default route, connected to the one that we are in."""
    name = f"kpytest{os.getpid()}b"
    inside = ("nsenter", f"--net=/run/netns/{name}")
    sh("ip", "netns", "add", name)
    try:
        sh("ip", "link", "add", "up2", "type", "veth", "peer", "name", "up3", "netns", name)
        sh("ip", "link", "set", "up2", "addrgenmode", "none")
        sh("ip", "addr", "add", f"{FIRST_IP}/24", "dev", "up2")
        sh("ip", "link", "set", "up2", "up")
        sh(*inside, "ip", "link", "set", "lo", "up")
        sh(*inside, "ip", "link", "set", "up3", "addrgenmode", "none")
        sh(*inside, "ip", "addr", "add", f"{SECOND_IP}/24", "dev", "up3")
        sh(*inside, "ip", "link", "set", "up3", "up")
        sh(*inside, "ip", "route", "add", "default", "via", FIRST_IP)
        yield SecondNode(root, name)
    finally:
        sh("ip", "netns", "del", name)
