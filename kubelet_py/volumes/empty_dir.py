"""emptyDir volumes: a folder that lives as long as the pod, on the node's disk, in memory or in huge pages.

What a volume in memory holds is memory of the pod. So its size is the smallest of sizeLimit, the pod's memory
limit and what the node can give (upstream: calculateEmptyDirMemorySize). On the disk sizeLimit is only
measured, with `used`, and whoever exceeds it is evicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kubeclient import quantity
from kubelet_py.errors import VolumeError
from kubelet_py.pods.model import Object, containers, init_containers, is_restartable
from kubelet_py.volumes import mounting, ownership
from kubelet_py.volumes.plugin import Context

MEMORY, HUGE_PAGES = "Memory", "HugePages"


def set_up(context: Context, source: Object, folder: Path) -> Path:
    """The folder, mode 0777 (1777 in memory, as the kernel makes a tmpfs and upstream leaves it); with an
    fsGroup its group, and the setgid bit that hands it on."""
    medium = source.get("medium") or ""
    page_bytes = page_size(context.pod, medium) if medium not in ("", MEMORY) else 0
    folder.mkdir(parents=True, exist_ok=True)
    if medium == MEMORY:
        size = memory_size(context.pod, source, context.allocatable)
        mounting.mount_tmpfs(folder, size=size or None, mode=0o1777)
    elif page_bytes:
        mounting.mount_huge_pages(folder, page_bytes)
    if folder.stat().st_mode & 0o777 != 0o777:
        folder.chmod(0o777)
    if context.fs_group is not None:
        ownership.give_to_group(folder, context.fs_group, context.security.get("fsGroupChangePolicy"))
    return folder


def memory_size(pod: Object, source: Object, allocatable: Mapping[str, str]) -> int:
    """Bytes of a tmpfs; 0 where nothing bounds it."""
    limits = [quantity.value(allocatable.get("memory") or "0"), _memory_limit(pod)]
    if source.get("sizeLimit"):
        limits.append(quantity.value(str(source["sizeLimit"])))
    return min((limit for limit in limits if limit > 0), default=0)


def _memory_limit(pod: Object) -> int:
    """The sum of the containers' limits with the sidecars', or the largest init container's."""
    init = init_containers(pod)
    running = [*containers(pod), *(c for c in init if is_restartable(c))]
    peak = max((_limit(c, "memory") for c in init), default=0)
    return max(sum(_limit(c, "memory") for c in running), peak)


def _limit(container: Object, name: str) -> int:
    text = ((container.get("resources") or {}).get("limits") or {}).get(name)
    return quantity.value(str(text)) if text is not None else 0


def page_size(pod: Object, medium: str) -> int:
    """Bytes per page: HugePages-2Mi says it, plain HugePages takes the one size that the pod asks for.

    VolumeError for a medium that is none, and for pages that the pod has not asked for: whatever it wrote
    there would be taken from others' (upstream: getPageSizeMountOption).
    """
    if medium != HUGE_PAGES and not medium.startswith(f"{HUGE_PAGES}-"):
        raise VolumeError(f'unknown storage medium "{medium}"')
    sizes = {
        quantity.value(name.removeprefix("hugepages-"))
        for container in [*containers(pod), *init_containers(pod)]
        for name in (container.get("resources") or {}).get("limits") or {}
        if name.startswith("hugepages-")
    }
    if medium != HUGE_PAGES:
        sizes &= {_page_bytes(medium)}
    if not sizes:
        raise VolumeError(
            f"medium {medium}: hugePages storage requested, but there is no resource request for huge pages."
        )
    if len(sizes) > 1:
        raise VolumeError(f"medium: {medium} can't be used if container requests multiple huge page sizes")
    return sizes.pop()


def _page_bytes(medium: str) -> int:
    try:
        return quantity.value(medium.removeprefix(f"{HUGE_PAGES}-"))
    except ValueError as error:
        raise VolumeError(f'unknown storage medium "{medium}"') from error
