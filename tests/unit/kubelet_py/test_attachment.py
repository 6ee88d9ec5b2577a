from __future__ import annotations

from typing import Any

import pytest

from kubelet_py.errors import SandboxError
from kubelet_py.pods.attachment import EGRESS, INGRESS, capabilities


def pod(annotations: dict[str, str] | None = None, *ports: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "annotations": annotations},
        "spec": {"containers": [{"name": "c", "ports": list(ports)}]},
    }


def test_a_plain_pod_asks_for_nothing() -> None:
    assert capabilities(pod(None, {"containerPort": 80})) == {}


def test_host_ports_and_bandwidth_are_capability_arguments() -> None:
    port = {"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"}
    assert capabilities(pod({INGRESS: "10M", EGRESS: "1500k"}, port)) == {
        "portMappings": [
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}
        ],
        "bandwidth": {
            "ingressRate": 10_000_000, "ingressBurst": 2**31 - 1,
            "egressRate": 1_500_000, "egressBurst": 2**31 - 1,
        },
    }  # fmt: skip


def test_one_way_alone_leaves_the_other_free() -> None:
    assert list(capabilities(pod({EGRESS: "1M"}))["bandwidth"]) == ["egressRate", "egressBurst"]


@pytest.mark.parametrize(
    ("text", "why"), [("999", "unreasonably small"), ("2P", "unreasonably large"), ("fast", "could not read")]
)
def test_a_senseless_bandwidth_is_refused(text: str, why: str) -> None:
    with pytest.raises(SandboxError, match=why):
        capabilities(pod({INGRESS: text}))
