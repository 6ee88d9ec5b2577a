"""KubeletConfiguration: the agent's settings, under upstream's names.

Only keys that really do something here are known; any other key in the file is refused by name, because
a setting that is silently ignored is worse than an error (config_elsewhere.py has those that may say what
the agent does anyhow, and tuning without effect). Defaults are upstream's unless said otherwise.
Deviations: `cgroupDriver` is what the host wants (upstream: cgroupfs): systemd where that runs the machine
and owns a v2 tree, in which nobody else should make cgroups, cgroupfs elsewhere; `seccompDefault` is true
here (upstream: false), so that containers are confined unless a pod says Unconfined. `syncFrequency` is the
net under the watches of ConfigMaps and Secrets: after that long the volumes of every pod are looked at again.
`serializeImagePulls` is false here (upstream: true), and `failSwapOn` is (upstream: true): swap does no harm,
as no pod is given any. `fileCheckFrequency` is 2 s (upstream: 20 s): a look at a folder is cheap.

Durations are Go's texts ("10s", "1m30s") in the file and seconds (float) in the value.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kubeclient.ranges import read_ranges
from kubelet_py import config_elsewhere, config_files
from kubelet_py.errors import ConfigError
from kubelet_py.node import peers
from kubelet_py.pods import backoff

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as "1m30s"; ConfigError when it is none."""
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"Could not read duration {text!r}: write it like 10s or 1m30s")
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))


# Upstream's DefaultEvictionHard. A file that says evictionHard replaces all of it, unless it also says
# mergeDefaultEvictionSettings.
EVICTION_HARD = {
    "memory.available": "100Mi",
    "nodefs.available": "10%",
    "nodefs.inodesFree": "5%",
    "imagefs.available": "15%",
    "imagefs.inodesFree": "5%",
}
# The settings that belong to a namespace: an unsafe one harms the pod's node, but it is not the node's own.
NAMESPACED_SYSCTLS = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.", "net.")
SYSCTL_PATTERN = re.compile(r"(?:[a-z0-9][-_a-z0-9]*[./])*(?:[a-z0-9][-_a-z0-9]*\*?|\*)")
# What can be switched here; each is off unless featureGates says true. crashLoopBackOff needs no gate (as in
# upstream's 1.35), nor does enableSystemLogQuery; those of 1.32 may be given all the same, and one that is
# false refuses its key.
FEATURE_GATES = ("MemoryQoS", "KubeletCrashLoopBackOffMax", "NodeLogQuery")


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one agent. Field names are upstream's, in snake_case."""

    static_pod_path: str = ""
    file_check_frequency: float = 2.0
    static_pod_url: str = ""
    static_pod_url_header: Mapping[str, Sequence[str]] = field(default_factory=dict)
    http_check_frequency: float = 20.0
    sync_frequency: float = 60.0
    cluster_dns: tuple[str, ...] = ()
    cluster_domain: str = ""
    cgroup_driver: str = ""
    resolv_conf: str = "/etc/resolv.conf"
    pod_cidr: str = ""
    max_pods: int = 110
    pod_pids_limit: int = -1
    node_status_update_frequency: float = 10.0
    node_status_report_frequency: float = 300.0
    node_lease_duration_seconds: int = 40
    seccomp_default: bool = True
    allowed_unsafe_sysctls: tuple[str, ...] = ()
    crash_loop_back_off: Mapping[str, Any] = field(default_factory=dict)
    cpu_cfs_quota: bool = True
    cpu_cfs_quota_period: float = 0.1
    pods_per_core: int = 0
    kube_reserved: Mapping[str, str] = field(default_factory=dict)
    system_reserved: Mapping[str, str] = field(default_factory=dict)
    reserved_system_cpus: str = ""
    cpu_manager_policy: str = "none"
    cpu_manager_policy_options: Mapping[str, str] = field(default_factory=dict)
    cpu_manager_reconcile_period: float = 10.0
    enforce_node_allocatable: tuple[str, ...] = ("pods",)
    kube_reserved_cgroup: str = ""
    system_reserved_cgroup: str = ""
    local_storage_capacity_isolation: bool = True
    memory_throttling_factor: float = 0.9
    feature_gates: Mapping[str, bool] = field(default_factory=dict)
    eviction_hard: Mapping[str, str] = field(default_factory=lambda: dict(EVICTION_HARD))
    eviction_soft: Mapping[str, str] = field(default_factory=dict)
    eviction_soft_grace_period: Mapping[str, str] = field(default_factory=dict)
    eviction_minimum_reclaim: Mapping[str, str] = field(default_factory=dict)
    eviction_pressure_transition_period: float = 300.0
    eviction_max_pod_grace_period: int = 0
    merge_default_eviction_settings: bool = False
    shutdown_grace_period: float = 0.0
    shutdown_grace_period_critical_pods: float = 0.0
    shutdown_grace_period_by_pod_priority: tuple[Mapping[str, int], ...] = ()
    image_gc_high_threshold_percent: int = 85
    image_gc_low_threshold_percent: int = 80
    image_minimum_gc_age: float = 120.0
    image_maximum_gc_age: float = 0.0
    container_log_max_size: str = "10Mi"
    container_log_max_files: int = 5
    container_log_monitor_interval: float = 10.0
    register_node: bool = True
    register_with_taints: tuple[Mapping[str, Any], ...] = ()
    node_labels: Mapping[str, str] = field(default_factory=dict)
    cluster_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/12"
    address: str = "0.0.0.0"
    port: int = 10250
    rotate_certificates: bool = False
    server_tls_bootstrap: bool = False
    authentication: Mapping[str, Any] = field(default_factory=dict)
    authorization: Mapping[str, Any] = field(default_factory=dict)
    tls_cert_file: str = ""
    tls_private_key_file: str = ""
    healthz_bind_address: str = "127.0.0.1"
    healthz_port: int = 10248
    enable_server: bool = True
    enable_debugging_handlers: bool = True
    enable_system_log_handler: bool = True
    enable_debug_flags_handler: bool = True
    enable_system_log_query: bool = False
    tls_min_version: str = ""
    tls_cipher_suites: tuple[str, ...] = ()
    fail_swap_on: bool = False
    provider_id: str = ""
    node_status_max_images: int = 50
    serialize_image_pulls: bool = False
    max_parallel_image_pulls: int = 0
    logging: Mapping[str, Any] = field(default_factory=dict)
    without_effect: tuple[str, ...] = ()  # keys of the file that are for upstream's kubelet alone


DURATIONS = {
    "file_check_frequency",
    "http_check_frequency",
    "sync_frequency",
    "node_status_update_frequency",
    "node_status_report_frequency",
    "cpu_cfs_quota_period",
    "cpu_manager_reconcile_period",
    "image_minimum_gc_age",
    "image_maximum_gc_age",
    "container_log_monitor_interval",
    "eviction_pressure_transition_period",
    "shutdown_grace_period",
    "shutdown_grace_period_critical_pods",
}
_MAY_BE_ZERO = {
    "image_minimum_gc_age",
    "image_maximum_gc_age",
    "shutdown_grace_period",
    "shutdown_grace_period_critical_pods",
}
# Where a file says none or zero, it is upstream's default: kubeadm writes every duration as 0s.
_DEFAULT_AT_ZERO = (DURATIONS - _MAY_BE_ZERO - {"cpu_cfs_quota_period"}) | {
    "image_minimum_gc_age", "node_lease_duration_seconds", "max_pods", "port", "address",
    "healthz_bind_address", "container_log_max_size", "max_parallel_image_pulls",
}  # fmt: skip
POSITIVE = (*sorted(DURATIONS - _MAY_BE_ZERO), "node_lease_duration_seconds", "max_pods")
TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
CGROUP_DRIVERS = ("", "cgroupfs", "systemd")
KEYS = {
    "staticPodPath": "static_pod_path",
    "fileCheckFrequency": "file_check_frequency",
    "staticPodURL": "static_pod_url",
    "staticPodURLHeader": "static_pod_url_header",
    "httpCheckFrequency": "http_check_frequency",
    "syncFrequency": "sync_frequency",
    "clusterDNS": "cluster_dns",
    "clusterDomain": "cluster_domain",
    "cgroupDriver": "cgroup_driver",
    "resolvConf": "resolv_conf",
    "podCIDR": "pod_cidr",
    "maxPods": "max_pods",
    "podPidsLimit": "pod_pids_limit",
    "nodeStatusUpdateFrequency": "node_status_update_frequency",
    "nodeStatusReportFrequency": "node_status_report_frequency",
    "nodeLeaseDurationSeconds": "node_lease_duration_seconds",
    "seccompDefault": "seccomp_default",
    "allowedUnsafeSysctls": "allowed_unsafe_sysctls",
    "crashLoopBackOff": "crash_loop_back_off",
    "cpuCFSQuota": "cpu_cfs_quota",
    "cpuCFSQuotaPeriod": "cpu_cfs_quota_period",
    "kubeReserved": "kube_reserved",
    "systemReserved": "system_reserved",
    "podsPerCore": "pods_per_core",
    "reservedSystemCPUs": "reserved_system_cpus",
    "cpuManagerPolicy": "cpu_manager_policy",
    "cpuManagerPolicyOptions": "cpu_manager_policy_options",
    "cpuManagerReconcilePeriod": "cpu_manager_reconcile_period",
    "enforceNodeAllocatable": "enforce_node_allocatable",
    "kubeReservedCgroup": "kube_reserved_cgroup",
    "systemReservedCgroup": "system_reserved_cgroup",
    "localStorageCapacityIsolation": "local_storage_capacity_isolation",
    "memoryThrottlingFactor": "memory_throttling_factor",
    "featureGates": "feature_gates",
    "evictionHard": "eviction_hard",
    "evictionSoft": "eviction_soft",
    "evictionSoftGracePeriod": "eviction_soft_grace_period",
    "evictionMinimumReclaim": "eviction_minimum_reclaim",
    "evictionPressureTransitionPeriod": "eviction_pressure_transition_period",
    "evictionMaxPodGracePeriod": "eviction_max_pod_grace_period",
    "mergeDefaultEvictionSettings": "merge_default_eviction_settings",
    "shutdownGracePeriod": "shutdown_grace_period",
    "shutdownGracePeriodCriticalPods": "shutdown_grace_period_critical_pods",
    "shutdownGracePeriodByPodPriority": "shutdown_grace_period_by_pod_priority",
    "imageGCHighThresholdPercent": "image_gc_high_threshold_percent",
    "imageGCLowThresholdPercent": "image_gc_low_threshold_percent",
    "imageMinimumGCAge": "image_minimum_gc_age",
    "imageMaximumGCAge": "image_maximum_gc_age",
    "containerLogMaxSize": "container_log_max_size",
    "containerLogMaxFiles": "container_log_max_files",
    "containerLogMonitorInterval": "container_log_monitor_interval",
    "registerNode": "register_node",
    "registerWithTaints": "register_with_taints",
    "address": "address",
    "port": "port",
    "rotateCertificates": "rotate_certificates",
    "serverTLSBootstrap": "server_tls_bootstrap",
    "authentication": "authentication",
    "authorization": "authorization",
    "tlsCertFile": "tls_cert_file",
    "tlsPrivateKeyFile": "tls_private_key_file",
    "healthzBindAddress": "healthz_bind_address",
    "healthzPort": "healthz_port",
    "enableServer": "enable_server",
    "enableDebuggingHandlers": "enable_debugging_handlers",
    "enableSystemLogHandler": "enable_system_log_handler",
    "enableDebugFlagsHandler": "enable_debug_flags_handler",
    "enableSystemLogQuery": "enable_system_log_query",
    "tlsMinVersion": "tls_min_version",
    "tlsCipherSuites": "tls_cipher_suites",
    "failSwapOn": "fail_swap_on",
    "providerID": "provider_id",
    "nodeStatusMaxImages": "node_status_max_images",
    "serializeImagePulls": "serialize_image_pulls",
    "maxParallelImagePulls": "max_parallel_image_pulls",
    "logging": "logging",
}


def from_document(document: Mapping[str, Any]) -> Config:
    """Turn a KubeletConfiguration document into a Config; ConfigError names every unknown key."""
    kind = document.get("kind", "KubeletConfiguration")
    version = document.get("apiVersion", "kubelet.config.k8s.io/v1beta1")
    if kind != "KubeletConfiguration" or version != "kubelet.config.k8s.io/v1beta1":
        raise ConfigError(
            f"Could not use configuration of kind {kind} {version}: "
            "it must be KubeletConfiguration kubelet.config.k8s.io/v1beta1"
        )
    unknown = sorted(set(document) - set(KEYS) - config_elsewhere.KEYS - {"kind", "apiVersion"})
    if unknown:
        raise ConfigError(f"Could not use configuration: unknown keys {', '.join(unknown)}")
    if unusual := config_elsewhere.unusual(document):
        text = f"keys that this agent does not act on: {', '.join(unusual)}"
        raise ConfigError(f"Could not use configuration: {text}")
    kinds = {f.name: f.type for f in fields(Config)}
    values: dict[str, Any] = {"without_effect": config_elsewhere.without_effect(document)}
    for key, name in KEYS.items():
        if key in document and not (name in _DEFAULT_AT_ZERO and config_elsewhere.unset(document[key])):
            values[name] = _convert(key, name, str(kinds[name]), document[key])
    if "node_status_update_frequency" in values:
        # Upstream's rule: who says how often to look means how often to report, unless that is said too.
        values.setdefault("node_status_report_frequency", values["node_status_update_frequency"])
    if values.get("merge_default_eviction_settings"):
        values["eviction_hard"] = EVICTION_HARD | values.get("eviction_hard", {})
    return checked(Config(**values))


def checked(config: Config) -> Config:
    """The same settings, unless one of them has a value that means nothing here (ConfigError names it)."""
    from kubelet_py.node import allocatable, shutdown, thresholds  # late: they are made of this Config
    from kubelet_py.server import access_settings, tls_settings

    allocatable.check(config)
    thresholds.parse(config)
    shutdown.groups(config)
    access_settings.read(config.authentication, config.authorization)
    tls_settings.check(config.tls_min_version, config.tls_cipher_suites)
    verbosity(config)
    _check_pulls(config)
    if config.enable_system_log_query and config.feature_gates.get("NodeLogQuery") is False:
        text = "featureGates: NodeLogQuery is off, so enableSystemLogQuery must not be set"
        raise ConfigError(f"Could not use configuration: {text}")
    if config.enable_system_log_query and not config.enable_system_log_handler:
        text = "enableSystemLogHandler is required for enableSystemLogQuery"
        raise ConfigError(f"Could not use configuration: {text}")
    for address in config.cluster_dns:
        try:
            ipaddress.ip_address(str(address))  # a number would be taken for an address of that value
        except ValueError as error:
            text = f"clusterDNS {address!r}: it must be an address"
            raise ConfigError(f"Could not use configuration: {text}") from error
    for taint in config.register_with_taints:
        known = isinstance(taint, Mapping) and taint.get("effect") in TAINT_EFFECTS
        if not known or not isinstance(taint.get("key"), str) or not taint["key"]:
            text = f"registerWithTaints {taint!r}: it needs a key and one of {', '.join(TAINT_EFFECTS)}"
            raise ConfigError(f"Could not use configuration: {text}")
    for pattern in config.allowed_unsafe_sysctls:
        if not SYSCTL_PATTERN.fullmatch(pattern) or not pattern.startswith(NAMESPACED_SYSCTLS):
            raise ConfigError(
                f"Could not use configuration: allowedUnsafeSysctls {pattern!r}: it must be a setting that "
                f"every pod has of its own ({', '.join(NAMESPACED_SYSCTLS)}), or a prefix of such that "
                "ends with *"
            )
    unknown = sorted(set(config.feature_gates) - set(FEATURE_GATES))
    if unknown:
        raise ConfigError(
            f"Could not use configuration: featureGates: unknown {', '.join(unknown)} (known: "
            f"{', '.join(FEATURE_GATES)})"
        )
    if bool(config.tls_cert_file) != bool(config.tls_private_key_file):
        raise ConfigError(
            "Could not use configuration: tlsCertFile and tlsPrivateKeyFile: give both or neither"
        )
    if config.tls_cert_file and config.server_tls_bootstrap:
        text = "serverTLSBootstrap and tlsCertFile exclude each other"
        raise ConfigError(f"Could not use configuration: {text}")
    _check_static_pod_url(config)
    longest_restart_wait(config)
    if not 1 <= config.port <= 65535:
        raise ConfigError("Could not use configuration: port must be between 1 and 65535")
    if not 0 <= config.healthz_port <= 65535:
        raise ConfigError("Could not use configuration: healthzPort must be a port, or 0 for none")
    if not 0 < config.memory_throttling_factor <= 1:
        raise ConfigError(
            "Could not use configuration: memoryThrottlingFactor must be greater than 0 and at most 1"
        )
    for name in ("pods_per_core", "eviction_max_pod_grace_period"):
        if getattr(config, name) < 0:
            key = next(k for k, known in KEYS.items() if known == name)
            raise ConfigError(f"Could not use configuration: {key} must not be negative")
    if config.cgroup_driver not in CGROUP_DRIVERS:
        text = f"cgroupDriver {config.cgroup_driver!r}: it must be cgroupfs or systemd"
        raise ConfigError(f"Could not use configuration: {text}")
    for name in POSITIVE:
        if getattr(config, name) <= 0:
            key = next(k for k, known in KEYS.items() if known == name)
            raise ConfigError(f"Could not use configuration: {key} must be greater than 0")
    ranges = (("podCIDR", config.pod_cidr), ("cluster CIDR", config.cluster_cidr))
    for what, cidr in (*ranges, ("service CIDR", config.service_cidr)):
        try:
            read_ranges(cidr or "0.0.0.0/0")
        except ValueError as error:
            raise ConfigError(f"Could not use configuration: {what}: {error}") from error
    return config


def verbosity(config: Config) -> int:
    """How loud the log is, in klog's numbers. Raises ConfigError for what a log of ours cannot be."""
    asked = {key: value for key, value in config.logging.items() if not config_elsewhere.unset(value)}
    loud = asked.pop("verbosity", 0)
    asked.pop("flushFrequency", None)  # lines are written at once
    if asked.pop("format", "text") != "text" or asked or type(loud) is not int or loud < 0:
        text = 'logging: only format "text", a verbosity and flushFrequency'
        raise ConfigError(f"Could not use configuration: {text}")
    return loud


def pulls_at_once(config: Config) -> int:
    """How many images may be fetched at the same time; 0 for as many as are wanted."""
    return 1 if config.serialize_image_pulls else config.max_parallel_image_pulls


def _check_pulls(config: Config) -> None:
    if config.max_parallel_image_pulls < 0:
        raise ConfigError("Could not use configuration: maxParallelImagePulls must be a positive number")
    if config.serialize_image_pulls and config.max_parallel_image_pulls > 1:
        text = "maxParallelImagePulls cannot be larger than 1 unless serializeImagePulls is false"
        raise ConfigError(f"Could not use configuration: {text}")
    if config.node_status_max_images < -1:
        raise ConfigError("Could not use configuration: nodeStatusMaxImages must be -1 or greater")


def longest_restart_wait(config: Config) -> float:
    """Seconds between two restarts of a container that fails again and again, at most (KEP-4603)."""
    unknown = sorted(set(config.crash_loop_back_off) - {"maxContainerRestartPeriod"})
    if unknown:
        text = f"unknown keys {', '.join(unknown)}"
        raise ConfigError(f"Could not use configuration: crashLoopBackOff: {text}")
    period = config.crash_loop_back_off.get("maxContainerRestartPeriod")
    if period is None:
        return backoff.MAXIMUM
    if config.feature_gates.get("KubeletCrashLoopBackOffMax") is False:
        text = "featureGates: KubeletCrashLoopBackOffMax is off, so crashLoopBackOff must not be set"
        raise ConfigError(f"Could not use configuration: {text}")
    wait = parse_duration(str(period))
    if not 1.0 <= wait <= backoff.MAXIMUM:
        text = f"it must be from 1s to {backoff.MAXIMUM:.0f}s"
        raise ConfigError(
            f"Could not use configuration: crashLoopBackOff.maxContainerRestartPeriod {period!r}: {text}"
        )
    return wait


def _check_static_pod_url(config: Config) -> None:
    if config.static_pod_url and not config.static_pod_url.startswith(("http://", "https://")):
        raise ConfigError("Could not use configuration: staticPodURL must begin with http:// or https://")
    for name, values in config.static_pod_url_header.items():
        good = isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)
        if not good or any(c in "\r\n" for c in name + "".join(values)):
            text = f"staticPodURLHeader {name!r} must be a list of texts without line breaks"
            raise ConfigError(f"Could not use configuration: {text}")


def _convert(key: str, name: str, kind: str, value: Any) -> Any:
    expected: type
    if name in DURATIONS:
        if isinstance(value, str):
            return parse_duration(value)
        expected = str
    elif kind == "bool":
        expected = bool
    elif kind == "int":
        expected = int
    elif kind == "float":
        value = float(value) if type(value) is int else value
        expected = float
    elif kind.startswith("tuple"):
        expected = list
    elif kind.startswith("Mapping"):
        expected = dict
    else:
        expected = str
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ConfigError(f"Could not use configuration: {key} must be of type {expected.__name__}")
    return tuple(value) if isinstance(value, list) else value


def load(path: Path) -> Config:
    """Read a KubeletConfiguration YAML or JSON file."""
    return from_document(config_files.parsed(path))


@dataclass(frozen=True, slots=True)
class Options:
    """The agent's command line (flags.py): where it lives and who it is."""

    root: Path
    node_name: str
    config: Config
    node_ip: str = ""
    node_ip_reason: str = ""
    cni_bin_dirs: tuple[Path, ...] = ()
    kubeconfig: Path | None = None
    bootstrap_kubeconfig: Path | None = None
    cert_dir: Path | None = None
    pod_routes: str = "auto"
    wireguard_port: int = peers.DEFAULT_PORT
    pod_gso_size: int = 0
