"""/stats/summary: what node, pods, containers and volumes use, as upstream's stats/v1alpha1 JSON.

Pure: from the values of node/usage.py. Field names and units are those of
staging/src/k8s.io/kubelet/pkg/apis/stats/v1alpha1/types.go; what was not measured is left out, never zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kubelet_py.node.usage import (
    ContainerUsage,
    Disk,
    Interface,
    Load,
    NodeUsage,
    PodUsage,
    VolumeUsage,
)
from kubelet_py.pods.model import timestamp
from kubelet_py.volumes.disk_usage import Used

Object = dict[str, Any]

POD_INTERFACE = "eth0"


def summary(usage: NodeUsage) -> Object:
    """The whole document. Disks and network are in it where `usage` has them."""
    load = usage.load
    node: Object = {
        "nodeName": usage.name,
        "systemContainers": [
            {"name": name, "startTime": timestamp(since), **_cpu_and_memory(part)}
            for name, (since, part) in sorted(usage.system.items())
        ],
        "startTime": timestamp(usage.booted_at),
        **_cpu_and_memory(load),
        "rlimit": {"time": timestamp(load.at), "maxpid": usage.max_pids, "curproc": usage.processes},
        "swap": {
            "time": timestamp(load.at),
            "swapAvailableBytes": usage.swap_total - load.swap,
            "swapUsageBytes": load.swap,
        },
    }
    if usage.interfaces:
        node["network"] = _network(load.at, usage.interfaces, usage.default_interface)
    if usage.node_fs is not None:
        node["fs"] = _disk(load.at, usage.node_fs)
        runtime = {"imageFs": usage.image_fs, "containerFs": usage.container_fs}
        node["runtime"] = {name: _disk(load.at, disk) for name, disk in runtime.items() if disk is not None}
    return {"node": node, "pods": [_pod(pod, usage.node_fs) for pod in usage.pods]}


def _pod(pod: PodUsage, node_fs: Disk | None) -> Object:
    at = pod.load.at
    found: Object = {
        "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "startTime": timestamp(pod.started_at),
        "containers": [_container(container, node_fs) for container in pod.containers],
        **_cpu_and_memory(pod.load),
        "swap": {"time": timestamp(at), "swapUsageBytes": pod.load.swap},
        "process_stats": {"process_count": pod.load.processes},
    }
    if pod.interfaces:
        found["network"] = _network(at, pod.interfaces, POD_INTERFACE)
    if pod.volumes:
        found["volume"] = [_volume(at, pod, volume) for volume in pod.volumes]
    if node_fs is not None:
        found["ephemeral-storage"] = _share(at, node_fs, pod.own_disk())
    return found


def _container(container: ContainerUsage, node_fs: Disk | None) -> Object:
    at = container.load.at
    found: Object = {
        "name": container.name,
        "startTime": timestamp(container.started_at),
        **_cpu_and_memory(container.load),
        "swap": {"time": timestamp(at), "swapUsageBytes": container.load.swap},
    }
    if node_fs is not None:
        found["rootfs"] = _share(at, node_fs, container.rootfs or Used())
        found["logs"] = _share(at, node_fs, container.logs or Used())
    return found


def _volume(at: float, pod: PodUsage, volume: VolumeUsage) -> Object:
    found: Object = {"name": volume.name, **_disk(at, volume.disk)}
    if volume.claim:
        found["pvcRef"] = {"name": volume.claim, "namespace": pod.namespace}
    return found


def _cpu_and_memory(load: Load) -> Object:
    time = timestamp(load.at)
    cpu: Object = {"time": time, "usageCoreNanoSeconds": load.cpu_ns}
    if load.rate is not None:
        cpu["usageNanoCores"] = load.rate
    memory: Object = {
        "time": time,
        "usageBytes": load.memory,
        "workingSetBytes": load.working_set,
        "rssBytes": load.rss,
        "pageFaults": load.faults,
        "majorPageFaults": load.major_faults,
    }
    if load.limit is not None:
        memory["availableBytes"] = max(0, load.limit - load.working_set)
    return {"cpu": cpu, "memory": memory}


def _network(at: float, interfaces: Sequence[Interface], default: str) -> Object:
    """The default interface's numbers stand beside the list of all."""
    found: Object = {"time": timestamp(at)}
    for interface in interfaces:
        if interface.name == default:
            found |= _interface(interface)
    return {**found, "interfaces": [_interface(interface) for interface in interfaces]}


def _interface(interface: Interface) -> Object:
    return {
        "name": interface.name,
        "rxBytes": interface.rx_bytes,
        "rxErrors": interface.rx_errors,
        "txBytes": interface.tx_bytes,
        "txErrors": interface.tx_errors,
    }


def _disk(at: float, disk: Disk) -> Object:
    return {
        "time": timestamp(at),
        "availableBytes": disk.available,
        "capacityBytes": disk.capacity,
        "usedBytes": disk.used,
        "inodesFree": disk.inodes_free,
        "inodes": disk.inodes,
        "inodesUsed": disk.inodes_used,
    }


def _share(at: float, whole: Disk, part: Used) -> Object:
    share = Disk(whole.available, whole.capacity, part.bytes, whole.inodes, whole.inodes_free, part.inodes)
    return _disk(at, share)
