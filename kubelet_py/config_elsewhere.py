"""Keys of a KubeletConfiguration that upstream's kubelet acts on and this agent does not.

kubeadm and installers write most keys into the file, with values that mean "as usual". Such a file has to
work here as well, and a setting that would change something must not be passed over. So a key may have the
values that come to what the agent does anyhow, or be empty (upstream's "not set"), and no other. The rest is
tuning of what there is no need to tune here: it may have any value of its type, and the agent's log says at
its start that it has no effect.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_USUAL: dict[str, tuple[Any, ...]] = {
    "attachedVolumeLimit": (),
    "cgroupRoot": ("/",),
    "cgroupsPerQOS": (True,),
    "containerRuntimeEndpoint": (),
    "enableControllerAttachDetach": (True,),
    "enableProfilingHandler": (False,),
    "failCgroupV1": (False,),
    "hairpinMode": ("promiscuous-bridge", "hairpin-veth"),
    "imagePullCredentialsVerificationPolicy": ("NeverVerify",),
    "imageServiceEndpoint": (),
    "kubeletCgroups": (),
    "makeIPTablesUtilChains": (True,),
    "memoryManagerPolicy": ("None",),
    "memoryReservationPolicy": ("None",),
    "memorySwap": ({"swapBehavior": "NoSwap"},),
    "podLogsDir": ("/var/log/pods", "/var/log/pods/"),
    "preloadedImagesVerificationAllowlist": (),
    "protectKernelDefaults": (False,),
    "qosReserved": (),
    "readOnlyPort": (),
    "reservedMemory": (),
    "runtimeRequestTimeout": ("2m", "2m0s"),
    "showHiddenMetricsForVersion": (),
    "singleProcessOOMKill": (True,),  # upstream's default is False on cgroup v2, and True elsewhere
    "systemCgroups": (),
    "tlsCurvePreferences": (),
    "topologyManagerPolicy": ("none",),
    "topologyManagerPolicyOptions": (),
    "topologyManagerScope": ("container",),
    "tracing": (),
    "userNamespaces": (),
    "volumePluginDir": (),
    "volumeStatsAggPeriod": ("1m", "1m0s"),
}
# Because nothing is throttled here (QPS, burst), the agent speaks JSON, marks packets by rules of its own,
# watches objects, has no Go runtime to profile, and needs no more open files or protection than it has.
_TUNING: dict[str, type] = {
    "configMapAndSecretChangeDetectionStrategy": str,
    "containerLogMaxWorkers": int,
    "contentType": str,
    "enableContentionProfiling": bool,
    "eventBurst": int,
    "eventRecordQPS": int,
    "iptablesDropBit": int,
    "iptablesMasqueradeBit": int,
    "kernelMemcgNotification": bool,
    "kubeAPIBurst": int,
    "kubeAPIQPS": int,
    "maxOpenFiles": int,
    "oomScoreAdj": int,
    "registryBurst": int,
    "registryPullQPS": int,
    "streamingConnectionIdleTimeout": str,
}
KEYS = frozenset((*_USUAL, *_TUNING))


def unusual(document: Mapping[str, Any]) -> list[str]:
    """PURE. The keys among these whose value asks for something else, each with the values it may have."""
    asked = [
        f"{key} ({_shown(usual)})"
        for key, usual in _USUAL.items()
        if key in document and not _usual(document[key], usual)
    ]
    mistyped = [
        f"{key} (it must be of type {kind.__name__})"
        for key, kind in _TUNING.items()
        if document.get(key) is not None and type(document[key]) is not kind
    ]
    return asked + mistyped


def without_effect(document: Mapping[str, Any]) -> tuple[str, ...]:
    """PURE. The tuning that the document asks for."""
    return tuple(sorted(key for key in _TUNING if key in document and not unset(document[key])))


def unset(value: Any) -> bool:
    """Does it stand for upstream's "not set"? `false` does not: most flags are on unless they are off."""
    if isinstance(value, Mapping):
        return all(unset(part) for part in value.values())
    return not isinstance(value, bool) and value in (None, "", 0, "0", "0s", [])


def _usual(value: Any, usual: tuple[Any, ...]) -> bool:
    if isinstance(value, Mapping):
        value = {key: part for key, part in value.items() if not unset(part)}
    return unset(value) or any(type(value) is type(known) and value == known for known in usual)


def _shown(usual: tuple[Any, ...]) -> str:
    return "only " + " or ".join(json.dumps(known) for known in usual) if usual else "only empty"
