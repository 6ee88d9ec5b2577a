"""The OCI configurations that the service writes: pause's own, and a container's namespaces. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime import signals
from runtime.errors import RuntimeFailure
from runtime.values import SandboxConfig

OCI_VERSION = "1.2.0"


def pause_config(config: SandboxConfig) -> dict[str, Any]:
    """What pause holds for its pod. A pod on the host's network has the host's name too, as upstream."""
    wanted = {
        "user": bool(config.first_id),
        "network": not config.host_network,
        "uts": not config.host_network,
        "ipc": not config.host_ipc,
        "pid": config.share_process_namespace and not config.host_pid,
    }
    oci: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": {"args": ["/pause"], "cwd": "/"},
        "linux": {
            "namespaces": [{"type": kind} for kind, new in wanted.items() if new],
            "sysctl": dict(config.sysctls),
            **_mappings(config),
        },
    }
    if config.hostname and wanted["uts"]:
        oci["hostname"] = config.hostname
    return oci


def container_config(spec: Mapping[str, Any], sandbox: SandboxConfig) -> dict[str, Any]:
    """`spec` with the namespaces a container makes for itself; the others are pause's or the host's.

    A PID namespace that `spec` names by its path (that of another container of the pod) is joined instead.
    """
    own: list[dict[str, str]] = [{"type": "mount"}, {"type": "cgroup"}]
    own += [{"type": "user"}] if sandbox.first_id else []  # pause's; listed so that an exec joins it, too
    if not sandbox.host_pid and not sandbox.share_process_namespace:
        given = spec.get("linux", {}).get("namespaces", ())
        own.append(next((one for one in given if one["type"] == "pid" and one.get("path")), {"type": "pid"}))
    linux = {**spec.get("linux", {}), "namespaces": own, **_mappings(sandbox)}
    linux.pop("sysctl", None)  # namespaced sysctls belong to the sandbox, and are set there
    return {**spec, "linux": linux}


def _mappings(config: SandboxConfig) -> dict[str, Any]:
    if not config.first_id:
        return {}
    mapping = [{"containerID": 0, "hostID": config.first_id, "size": config.ids}]
    return {"uidMappings": mapping, "gidMappings": mapping}


def signal_number(name: str) -> int:
    """A stop signal as an image names it: SIGTERM, TERM, 15, SIGRTMIN+3. Raises RuntimeFailure."""
    try:
        return signals.number(name.strip() or "SIGTERM")
    except ValueError:
        raise RuntimeFailure(f"Could not read stop signal {name!r}: no such signal") from None
