"""Keys of a KubeletConfiguration that upstream's kubelet acts on and this agent does not.

kubeadm and installers write most keys into the file, with values that mean "as usual". Such a file has to
work here as well, and a setting that would change something must not be passed over: so each key may have
the values that come to what the agent does anyhow, or be empty (upstream's "not set"), and no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_USUAL: dict[str, tuple[Any, ...]] = {
    "cgroupRoot": ("/",),
    "cgroupsPerQOS": (True,),
    "containerRuntimeEndpoint": (),
    "enableControllerAttachDetach": (True,),
    "enableDebuggingHandlers": (True,),
    "enableProfilingHandler": (False,),
    "enableServer": (True,),
    "enableSystemLogHandler": (True,),
    "enableSystemLogQuery": (False,),
    "failSwapOn": (False,),
    "hairpinMode": ("promiscuous-bridge", "hairpin-veth"),
    "imageServiceEndpoint": (),
    "kubeletCgroups": (),
    "logging": ({"format": "text"},),
    "makeIPTablesUtilChains": (True,),
    "memoryManagerPolicy": ("None",),
    "memorySwap": ({"swapBehavior": "NoSwap"},),
    "providerID": (),
    "readOnlyPort": (),
    "runtimeRequestTimeout": ("2m", "2m0s"),
    "showHiddenMetricsForVersion": (),
    "streamingConnectionIdleTimeout": ("4h", "4h0m0s"),
    "systemCgroups": (),
    "topologyManagerPolicy": ("none",),
    "topologyManagerScope": ("container",),
    "volumePluginDir": (),
    "volumeStatsAggPeriod": ("1m", "1m0s"),
}
KEYS = frozenset(_USUAL)


def unusual(document: Mapping[str, Any]) -> list[str]:
    """PURE. The keys among these whose value asks for something else, each with the values it may have."""
    return [
        f"{key} ({_shown(usual)})"
        for key, usual in _USUAL.items()
        if key in document and not _usual(document[key], usual)
    ]


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
