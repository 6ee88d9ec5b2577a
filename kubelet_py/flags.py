"""The agent's command line: upstream's flags, and those that only this agent has.

Most of upstream's flags say what a key of the KubeletConfiguration says. Here they are a table from the flag
to the key, and what was given is laid over the document of --config before that is judged. So a flag is
understood, honoured and refused exactly as its key is, and it wins over the file and its drop-ins.
Source: cmd/kubelet/app/options/options.go. As in Go a switch takes its value only with a `=`.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kubelet_py import config_elsewhere, config_files
from kubelet_py.config import KEYS, POSITIVE, Options, checked, from_document
from kubelet_py.errors import ConfigError
from kubelet_py.node import peers, segments

Document = dict[str, Any]
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


def number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error


def switch(text: str) -> bool:
    """As Go reads one: the spellings of strconv.ParseBool."""
    if text not in _TRUE + _FALSE:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text in _TRUE


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def pairs(text: str, separator: str = "=") -> dict[str, str]:
    """`a=b,c=d` → {"a": "b", "c": "d"}."""
    found = {}
    for part in listed(text):
        key, middle, value = part.partition(separator)
        if not middle or not key.strip():
            raise argparse.ArgumentTypeError(f"{part!r}: write it as name{separator}value")
        found[key.strip()] = value.strip()
    return found


def thresholds(text: str) -> dict[str, str]:
    """`memory.available<100Mi,nodefs.available<10%`."""
    return pairs(text, "<")


def gates(text: str) -> dict[str, bool]:
    return {name: switch(value) for name, value in pairs(text).items()}


def headers(text: str) -> dict[str, list[str]]:
    """`a:b,c:d` → {"a": ["b"], "c": ["d"]}; of one name all values are kept."""
    found: dict[str, list[str]] = {}
    for part in listed(text):
        name, middle, value = part.partition(":")
        if not middle or not name.strip():
            raise argparse.ArgumentTypeError(f"{part!r}: write it as name:value")
        found.setdefault(name.strip(), []).append(value)
    return found


def taints(text: str) -> list[Document]:
    """`key=value:Effect` or `key:Effect`, with commas between."""
    found = []
    for part in listed(text):
        name, middle, effect = part.rpartition(":")
        key, _, value = name.partition("=")
        if not middle:
            raise argparse.ArgumentTypeError(f"{part!r}: write it as key=value:effect")
        found.append({"key": key, **({"value": value} if value else {}), "effect": effect})
    return found


_WEBHOOK = "authentication.webhook"
_KEYS: dict[Callable[[str], Any], dict[str, str]] = {
    str: {
        "address": "address",
        "authentication-token-webhook-cache-ttl": f"{_WEBHOOK}.cacheTTL",
        "authorization-mode": "authorization.mode",
        "authorization-webhook-cache-authorized-ttl": "authorization.webhook.cacheAuthorizedTTL",
        "authorization-webhook-cache-unauthorized-ttl": "authorization.webhook.cacheUnauthorizedTTL",
        "cgroup-driver": "cgroupDriver",
        "cgroup-root": "cgroupRoot",
        "client-ca-file": "authentication.x509.clientCAFile",
        "cluster-domain": "clusterDomain",
        "container-log-max-size": "containerLogMaxSize",
        "container-runtime-endpoint": "containerRuntimeEndpoint",
        "cpu-cfs-quota-period": "cpuCFSQuotaPeriod",
        "cpu-manager-policy": "cpuManagerPolicy",
        "cpu-manager-reconcile-period": "cpuManagerReconcilePeriod",
        "eviction-pressure-transition-period": "evictionPressureTransitionPeriod",
        "file-check-frequency": "fileCheckFrequency",
        "hairpin-mode": "hairpinMode",
        "healthz-bind-address": "healthzBindAddress",
        "http-check-frequency": "httpCheckFrequency",
        "image-service-endpoint": "imageServiceEndpoint",
        "kube-api-content-type": "contentType",
        "kube-reserved-cgroup": "kubeReservedCgroup",
        "kubelet-cgroups": "kubeletCgroups",
        "logging-format": "logging.format",
        "manifest-url": "staticPodURL",
        "memory-manager-policy": "memoryManagerPolicy",
        "minimum-image-ttl-duration": "imageMinimumGCAge",
        "node-status-update-frequency": "nodeStatusUpdateFrequency",
        "pod-cidr": "podCIDR",
        "pod-manifest-path": "staticPodPath",
        "provider-id": "providerID",
        "reserved-cpus": "reservedSystemCPUs",
        "resolv-conf": "resolvConf",
        "runtime-request-timeout": "runtimeRequestTimeout",
        "streaming-connection-idle-timeout": "streamingConnectionIdleTimeout",
        "sync-frequency": "syncFrequency",
        "system-cgroups": "systemCgroups",
        "system-reserved-cgroup": "systemReservedCgroup",
        "tls-cert-file": "tlsCertFile",
        "tls-min-version": "tlsMinVersion",
        "tls-private-key-file": "tlsPrivateKeyFile",
        "topology-manager-policy": "topologyManagerPolicy",
        "topology-manager-scope": "topologyManagerScope",
        "volume-plugin-dir": "volumePluginDir",
        "volume-stats-agg-period": "volumeStatsAggPeriod",
    },
    number: {
        "container-log-max-files": "containerLogMaxFiles",
        "event-burst": "eventBurst",
        "event-qps": "eventRecordQPS",
        "eviction-max-pod-grace-period": "evictionMaxPodGracePeriod",
        "healthz-port": "healthzPort",
        "image-gc-high-threshold": "imageGCHighThresholdPercent",
        "image-gc-low-threshold": "imageGCLowThresholdPercent",
        "iptables-drop-bit": "iptablesDropBit",
        "iptables-masquerade-bit": "iptablesMasqueradeBit",
        "kube-api-burst": "kubeAPIBurst",
        "kube-api-qps": "kubeAPIQPS",
        "max-open-files": "maxOpenFiles",
        "max-pods": "maxPods",
        "node-status-max-images": "nodeStatusMaxImages",
        "oom-score-adj": "oomScoreAdj",
        "pod-max-pids": "podPidsLimit",
        "pods-per-core": "podsPerCore",
        "port": "port",
        "read-only-port": "readOnlyPort",
        "registry-burst": "registryBurst",
        "registry-qps": "registryPullQPS",
        "v": "logging.verbosity",
    },
    switch: {
        "anonymous-auth": "authentication.anonymous.enabled",
        "authentication-token-webhook": f"{_WEBHOOK}.enabled",
        "cgroups-per-qos": "cgroupsPerQOS",
        "contention-profiling": "enableContentionProfiling",
        "cpu-cfs-quota": "cpuCFSQuota",
        "enable-controller-attach-detach": "enableControllerAttachDetach",
        "enable-debugging-handlers": "enableDebuggingHandlers",
        "enable-server": "enableServer",
        "fail-cgroupv1": "failCgroupV1",
        "fail-swap-on": "failSwapOn",
        "kernel-memcg-notification": "kernelMemcgNotification",
        "local-storage-capacity-isolation": "localStorageCapacityIsolation",
        "make-iptables-util-chains": "makeIPTablesUtilChains",
        "protect-kernel-defaults": "protectKernelDefaults",
        "register-node": "registerNode",
        "rotate-certificates": "rotateCertificates",
        "rotate-server-certificates": "serverTLSBootstrap",
        "seccomp-default": "seccompDefault",
        "serialize-image-pulls": "serializeImagePulls",
    },
    listed: {
        "allowed-unsafe-sysctls": "allowedUnsafeSysctls",
        "cluster-dns": "clusterDNS",
        "enforce-node-allocatable": "enforceNodeAllocatable",
        "tls-cipher-suites": "tlsCipherSuites",
    },
    pairs: {
        "cpu-manager-policy-options": "cpuManagerPolicyOptions",
        "eviction-minimum-reclaim": "evictionMinimumReclaim",
        "eviction-soft-grace-period": "evictionSoftGracePeriod",
        "kube-reserved": "kubeReserved",
        "qos-reserved": "qosReserved",
        "system-reserved": "systemReserved",
        "topology-manager-policy-options": "topologyManagerPolicyOptions",
    },
    thresholds: {"eviction-hard": "evictionHard", "eviction-soft": "evictionSoft"},
    gates: {"feature-gates": "featureGates"},
    headers: {"manifest-url-header": "staticPodURLHeader"},
    taints: {"register-with-taints": "registerWithTaints"},
}
_SHOWN = {
    str: "TEXT", number: "NUMBER", switch: "TRUE|FALSE", listed: "TEXT,...", pairs: "NAME=VALUE,...",
    thresholds: "SIGNAL<VALUE,...", gates: "NAME=TRUE|FALSE,...", headers: "NAME:VALUE,...",
    taints: "KEY=VALUE:EFFECT,...",
}  # fmt: skip
JOINED = {"authentication", "authorization", "logging", "featureGates"}
KEY_OF = {flag: key for table in _KEYS.values() for flag, key in table.items()}


class _Overlay(argparse.Action):
    """Puts the value at its key's place in the document; what is many may be given more than once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, flag: Any = None
    ) -> None:
        if self.nargs == 0:
            value = self.const
        document: Document = namespace.overlay
        *sections, last = self.dest.split(".")
        for section in sections:
            document = document.setdefault(section, {})
        known = document.get(last)
        if isinstance(value, list):
            value = [*(known or ()), *value]
        elif isinstance(value, dict):
            value = _joined(known or {}, value)
        document[last] = value


def laid_over(document: Document, overlay: Document) -> Document:
    """PURE. What flags say takes the place of what files say; of sections only the keys that were given."""
    answer = document | overlay
    for key in set(document) & set(overlay) & JOINED:
        if isinstance(document[key], dict):
            answer[key] = config_files.merged(document[key], overlay[key])
    return answer


def _joined(known: Document, more: Document) -> Document:
    """Values that are lists (of a header) are kept from both."""
    return known | {
        key: [*known.get(key, ()), *value] if isinstance(value, list) else value
        for key, value in more.items()
    }


def _with_report(document: Document) -> Document:
    """PURE. How often to look says how often to report, too, where a file says it; flags are read when that
    has been settled, as upstream."""
    look, report = document.get("nodeStatusUpdateFrequency"), document.get("nodeStatusReportFrequency")
    if not config_elsewhere.unset(report):
        return document
    return document | {"nodeStatusReportFrequency": "5m" if config_elsewhere.unset(look) else look}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kubelet_py.agent", usage="%(prog)s [FLAG ...]", description="The node agent",
        allow_abbrev=False,
        epilog="Each flag with [KEY] says what this key of the KubeletConfiguration says, and wins over it.",
    )  # fmt: skip
    parser.set_defaults(overlay={})
    parser.add_argument("--root", type=Path, default=Path("/"), help="folder that prefixes every path")
    parser.add_argument(
        "--node-name", "--hostname-override", default=socket.gethostname().lower(), help="of the Node object"
    )
    parser.add_argument("--config", type=Path, help="KubeletConfiguration file")
    parser.add_argument(
        "--config-dir",
        type=Path,
        help="folder of drop-ins (*.conf), laid over it by their names",
    )
    parser.add_argument("--node-ip", default="", help="address to register, or one per IP version")
    parser.add_argument("--node-ip-reason", default="", help="why that one, for the log and for `status`")
    parser.add_argument("--node-labels", type=pairs, default={}, help="key=value,… set at registration")
    parser.add_argument("--kubeconfig", type=Path, help="how to reach the API server (kubelet.conf)")
    parser.add_argument(
        "--bootstrap-kubeconfig",
        type=Path,
        help="asks for a client certificate where --kubeconfig is not there or its certificate is over",
    )
    parser.add_argument("--cert-dir", type=Path, help="where certificates got by request are kept")
    _add_own(parser)
    for read, table in _KEYS.items():
        for flag, key in table.items():
            _add(parser, flag, key, read)
    return parser


def _add_own(parser: argparse.ArgumentParser) -> None:
    """What upstream's kubelet leaves to others: the pods' network."""
    parser.add_argument(
        "--pod-routes",
        type=peers.mode,
        metavar=peers.CHOICES,
        default="auto",
        help="how to reach pods of other nodes (auto: by VXLAN where a router lies between; wireguard: "
        "encrypted)",
    )
    parser.add_argument(
        "--wireguard-port", type=peers.port, default=peers.DEFAULT_PORT, help="UDP port of the tunnel (51820)"
    )
    parser.add_argument(
        "--pod-gso-size",
        type=segments.size,
        metavar=segments.CHOICES,
        default=0,
        help="bytes of TCP that a pod hands out at a time (auto: as many as every interface takes that a "
        "route leads out by)",
    )
    parser.add_argument("--cni-bin-dir", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--cluster-cidr", help="range of all pods' addresses, or one per IP version")
    parser.add_argument("--service-cidr", help="range of the Services' addresses, or one per IP version")


def _add(parser: argparse.ArgumentParser, flag: str, key: str, read: Callable[[str], Any]) -> None:
    more: dict[str, Any] = {}
    names = [f"--{flag}", *(["-v"] if flag == "v" else [])]
    if read is switch:
        more = {"nargs": "?", "const": True}
        parser.add_argument(
            f"--no-{flag}", dest=key, action=_Overlay, nargs=0, const=False, help=argparse.SUPPRESS
        )
    parser.add_argument(
        *names, dest=key, action=_Overlay, type=read, default=argparse.SUPPRESS, help=f"[{key}]",
        metavar=_SHOWN[read], **more,
    )  # fmt: skip


def parse_arguments(argv: Sequence[str]) -> Options:
    """Flags win over drop-ins, and those over the file, as upstream. Raises ConfigError."""
    arguments = _parser().parse_args(argv)
    document = config_files.read(arguments.config, arguments.config_dir)
    for key in KEYS.keys() & arguments.overlay.keys():
        # In a file, zero is what kubeadm writes for "not set"; nobody types that.
        if KEYS[key] in (*POSITIVE, "port") and config_elsewhere.unset(arguments.overlay[key]):
            raise ConfigError(f"Could not use configuration: {key} must be greater than 0")
    config = from_document(laid_over(_with_report(document), arguments.overlay))
    for name in ("cluster_cidr", "service_cidr", "node_labels"):
        if getattr(arguments, name):
            config = replace(config, **{name: getattr(arguments, name)})
    return Options(
        root=arguments.root.absolute(),
        node_name=arguments.node_name,
        config=checked(config),
        node_ip=arguments.node_ip,
        node_ip_reason=arguments.node_ip_reason,
        cni_bin_dirs=tuple(arguments.cni_bin_dir),
        pod_routes=arguments.pod_routes,
        wireguard_port=arguments.wireguard_port,
        pod_gso_size=arguments.pod_gso_size,
        kubeconfig=arguments.kubeconfig and arguments.kubeconfig.absolute(),
        bootstrap_kubeconfig=arguments.bootstrap_kubeconfig and arguments.bootstrap_kubeconfig.absolute(),
        cert_dir=arguments.cert_dir and arguments.cert_dir.absolute(),
    )
