"""A KubeletConfiguration as kubeadm writes it, and keys that only upstream's kubelet acts on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from kubelet_py import config, config_elsewhere
from kubelet_py.errors import ConfigError
from kubelet_py.node.host_checks import prepare

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
        ({"readOnlyPort": 10255}, r"not act on: readOnlyPort \(only empty\)"),
        ({"failCgroupV1": True, "hairpinMode": "none"}, r"failCgroupV1 \(only false\), hairpinMode \(only "),
        ({"memorySwap": {"swapBehavior": "LimitedSwap"}}, "not act on: memorySwap"),
        ({"enableProfilingHandler": True}, r"enableProfilingHandler \(only false\)"),
        ({"singleProcessOOMKill": False}, r"singleProcessOOMKill \(only true\)"),
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
        {
            "memorySwap": {"swapBehavior": "NoSwap"},
            "logging": {},
            "tracing": {},
            "singleProcessOOMKill": True,
        },
        {"runtimeRequestTimeout": "2m0s", "maxPods": 0, "port": 0, "address": ""},
    ],
)
def test_what_the_agent_does_anyhow_may_be_said(document: dict[str, Any]) -> None:
    assert config.from_document(document) == config.Config()


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"logging": {"format": "json"}}, "logging: only format"),
        ({"logging": {"vmodule": [{"filePattern": "a", "verbosity": 9}]}}, "logging: only format"),
        ({"logging": {"verbosity": "4"}}, "logging: only format"),
        ({"serializeImagePulls": True, "maxParallelImagePulls": 2}, "cannot be larger than 1"),
        ({"maxParallelImagePulls": -1}, "must be a positive number"),
        ({"nodeStatusMaxImages": -2}, "must be -1 or greater"),
        ({"port": 65536}, "port must be between 1 and 65535"),
        ({"port": -1}, "port must be between 1 and 65535"),
        ({"tlsCipherSuites": ["TLS_RSA_WITH_RC4_128_SHA"]}, "unknown TLS_RSA_WITH_RC4_128_SHA"),
        ({"eventRecordQPS": "many"}, r"eventRecordQPS \(it must be of type int\)"),
        ({"podLogsDir": "/logs"}, "podLogsDir"),
        ({"enableSystemLogQuery": True, "enableSystemLogHandler": False}, "is required for enableSystemLogQ"),
        ({"enableSystemLogQuery": True, "featureGates": {"NodeLogQuery": False}}, "NodeLogQuery is off"),
    ],
)
def test_values_that_mean_nothing_here_are_refused_by_name(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config.from_document(document)


def started(settings: config.Config) -> config.Options:
    return config.Options(Path("/"), "n1", settings)


def test_tuning_without_effect_is_taken_and_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    document = {"registryPullQPS": 10, "eventBurst": 0, "contentType": "application/vnd.kubernetes.protobuf"}
    found = config.from_document(document)
    assert found.without_effect == ("contentType", "registryPullQPS")
    logger = logging.getLogger("test-of-preparing")
    prepare(started(found), tmp_path / "none", logger)
    assert "no effect here keys=contentType,registryPullQPS" in caplog.text
    assert logger.level == logging.INFO
    prepare(started(config.from_document({"logging": {"verbosity": 4}})), tmp_path / "none", logger)
    assert logger.level == logging.DEBUG


def test_a_node_with_swap_does_not_start_where_there_must_be_none(tmp_path: Path) -> None:
    swaps = tmp_path / "swaps"
    swaps.write_text("Filename\tType\tSize\tUsed\tPriority\n")
    logger = logging.getLogger("test-of-preparing")
    strict = config.from_document({"failSwapOn": True})
    prepare(started(strict), swaps, logger)
    swaps.write_text(swaps.read_text() + "/dev/sda2 partition 1000 0 -2\n")
    prepare(started(config.Config()), swaps, logger)
    with pytest.raises(ConfigError, match=r"running with swap on is not supported.*/dev/sda2"):
        prepare(started(strict), swaps, logger)


def test_every_key_of_v1beta1_is_known_here() -> None:
    """What upstream's 1.32 to 1.35 have: a new one is honoured, or stands among those that are elsewhere."""
    known = set(config.KEYS) | config_elsewhere.KEYS
    assert set(V1BETA1.split()) - known == set()
    with pytest.raises(ConfigError, match="unknown keys a, b"):
        config.from_document({"b": 1, "a": 2, "maxPods": 3})


V1BETA1 = """
enableServer staticPodPath podLogsDir syncFrequency fileCheckFrequency httpCheckFrequency staticPodURL
staticPodURLHeader address port readOnlyPort tlsCertFile tlsPrivateKeyFile tlsCipherSuites tlsMinVersion
tlsCurvePreferences rotateCertificates serverTLSBootstrap authentication authorization registryPullQPS
registryBurst imagePullCredentialsVerificationPolicy preloadedImagesVerificationAllowlist eventRecordQPS
eventBurst enableDebuggingHandlers enableContentionProfiling healthzPort healthzBindAddress oomScoreAdj
clusterDomain clusterDNS streamingConnectionIdleTimeout nodeStatusUpdateFrequency nodeStatusReportFrequency
nodeLeaseDurationSeconds imageMinimumGCAge imageMaximumGCAge imageGCHighThresholdPercent
imageGCLowThresholdPercent volumeStatsAggPeriod kubeletCgroups systemCgroups cgroupRoot cgroupsPerQOS
cgroupDriver cpuManagerPolicy cpuManagerPolicyOptions cpuManagerReconcilePeriod memoryManagerPolicy
memoryReservationPolicy topologyManagerPolicy topologyManagerPolicyOptions topologyManagerScope qosReserved
runtimeRequestTimeout hairpinMode maxPods podCIDR podPidsLimit resolvConf cpuCFSQuota cpuCFSQuotaPeriod
nodeStatusMaxImages maxOpenFiles contentType kubeAPIQPS kubeAPIBurst serializeImagePulls maxParallelImagePulls
evictionHard evictionSoft evictionSoftGracePeriod evictionPressureTransitionPeriod evictionMaxPodGracePeriod
evictionMinimumReclaim mergeDefaultEvictionSettings podsPerCore enableControllerAttachDetach
protectKernelDefaults makeIPTablesUtilChains iptablesMasqueradeBit iptablesDropBit featureGates failSwapOn
memorySwap containerLogMaxSize containerLogMaxFiles containerLogMaxWorkers containerLogMonitorInterval
configMapAndSecretChangeDetectionStrategy systemReserved kubeReserved reservedSystemCPUs
showHiddenMetricsForVersion systemReservedCgroup kubeReservedCgroup enforceNodeAllocatable
allowedUnsafeSysctls volumePluginDir providerID kernelMemcgNotification logging enableSystemLogHandler
enableSystemLogQuery shutdownGracePeriod shutdownGracePeriodCriticalPods shutdownGracePeriodByPodPriority
crashLoopBackOff reservedMemory enableProfilingHandler enableDebugFlagsHandler seccompDefault
memoryThrottlingFactor registerWithTaints registerNode tracing localStorageCapacityIsolation
containerRuntimeEndpoint imageServiceEndpoint failCgroupV1 userNamespaces singleProcessOOMKill
"""
