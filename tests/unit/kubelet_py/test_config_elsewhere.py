"""A KubeletConfiguration as kubeadm writes it, and keys that only upstream's kubelet acts on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubelet_py import config
from kubelet_py.errors import ConfigError

KUBEADM = """
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization:
  mode: Webhook
  webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}
cgroupDriver: systemd
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: ""
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
logging:
  flushFrequency: 0
  options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}
  verbosity: 0
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
"""


def test_the_file_that_kubeadm_writes_is_what_it_says_and_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(KUBEADM)
    found, plain = config.load(file), config.Config()
    assert (found.static_pod_path, found.cgroup_driver) == ("/etc/kubernetes/manifests", "systemd")
    assert found.rotate_certificates and found.cluster_dns == ("10.96.0.10",)
    for name in config.DURATIONS:
        assert getattr(found, name) == getattr(plain, name), name


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"logging": {"verbosity": 4}}, r'not act on: logging \(only \{"format": "text"\}\)'),
        ({"readOnlyPort": 10255}, r"not act on: readOnlyPort \(only empty\)"),
        ({"failSwapOn": True, "hairpinMode": "none"}, r"failSwapOn \(only false\), hairpinMode \(only "),
        ({"memorySwap": {"swapBehavior": "LimitedSwap"}}, "not act on: memorySwap"),
        ({"enableServer": False}, r"enableServer \(only true\)"),
        ({"topologyManagerPolicy": "single-numa-node", "typo": 1}, "unknown keys typo"),
    ],
)
def test_what_would_change_something_is_refused(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config.from_document(document)


@pytest.mark.parametrize(
    "document",
    [
        {"failSwapOn": False, "enableServer": True, "readOnlyPort": 0, "topologyManagerPolicy": "none"},
        {"memorySwap": {"swapBehavior": "NoSwap"}, "logging": {"format": "text", "verbosity": 0}},
        {"runtimeRequestTimeout": "2m0s", "maxPods": 0, "port": 0, "address": ""},
    ],
)
def test_what_the_agent_does_anyhow_may_be_said(document: dict[str, Any]) -> None:
    assert config.from_document(document) == config.Config()
