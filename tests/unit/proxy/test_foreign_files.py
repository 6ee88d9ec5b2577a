"""Configuration files that others write for kube-proxy, as they come."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import ProxyConfig, read_file

# The ConfigMap kube-proxy of a cluster made by kubeadm.
KUBEADM = """
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null,
  tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null,
  minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s,
  tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "",
  rootHnsEndpointName: "", sourceVip: ""}
"""
# What upstream writes when asked for its defaults, but for localhostNodePorts (it needs route_localnet).
DEFAULTS = """
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: "::"
clientConnection: {burst: 10, contentType: application/vnd.kubernetes.protobuf, kubeconfig: "", qps: 5}
configSyncPeriod: 15m0s
conntrack: {maxPerCore: 32768, min: 131072, tcpCloseWaitTimeout: 1h0m0s, tcpEstablishedTimeout: 24h0m0s}
detectLocalMode: ClusterCIDR
healthzBindAddress: "[::]:10256"
iptables: {masqueradeAll: false, masqueradeBit: 14, minSyncPeriod: 1s, syncPeriod: 30s}
ipvs: {syncPeriod: 30s}
kind: KubeProxyConfiguration
logging: {flushFrequency: 5s, format: text, options: {json: {infoBufferSize: "0"}}, verbosity: 2}
metricsBindAddress: ""
nftables: {masqueradeBit: 14, minSyncPeriod: 1s, syncPeriod: 30s}
oomScoreAdj: -999
"""


@pytest.mark.parametrize(
    ("text", "healthz", "metrics"), [(KUBEADM, "0.0.0.0", "127.0.0.1"), (DEFAULTS, "::", "::1")]
)
def test_fields_that_nobody_set_ask_for_nothing(
    tmp_path: Path, text: str, healthz: str, metrics: str
) -> None:
    file = tmp_path / "config.conf"
    file.write_text(text)
    config = read_file(file, ProxyConfig()).check()
    assert config.healthz == (healthz, 10256) and config.metrics == (metrics, 10249)
    assert (config.sync_period, config.masquerade_bit, config.mode) == (30.0, 14, "iptables")
