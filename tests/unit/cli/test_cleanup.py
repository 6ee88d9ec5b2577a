from __future__ import annotations

from kubelet_py.cli.cleanup import node_that_stays
from kubelet_py.cli.settings import NodeSettings


def test_reset_of_a_joined_machine_says_what_its_cluster_still_has() -> None:
    said = node_that_stays(NodeSettings("worker", "192.0.2.5", server="https://192.0.2.1:6443"))
    assert "https://192.0.2.1:6443 still has the Node worker" in said
    assert "kubectl delete node worker" in said
