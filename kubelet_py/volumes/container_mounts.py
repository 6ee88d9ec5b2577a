"""From a container's volumeMounts to binds: subPaths, what is read-only, and what mounts are shared.

Texts are upstream's (kubelet_pods.go, makeMounts) and, for propagation, containerd's: a mount that is asked
to travel between container and host can only do so where the host's own mount is shared, and saying nothing
would leave it silently private.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from kubelet_py.errors import VolumeError
from kubelet_py.pods.container_spec import PROPAGATION, Mount
from kubelet_py.pods.model import Object
from kubelet_py.volumes import subpath
from kubelet_py.volumes.plugin import Volumes

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")
Propagation = Callable[[Path], tuple[str, set[str]]]
"""The mount point below a path, and "shared", "master" or nothing: mounting.propagation_of."""


def container_mounts(
    container: Object, volumes: Volumes, values: Mapping[str, str], subpaths: Path, host: Propagation
) -> list[Mount]:
    """`subpaths` is the pod's folder for what a subPath leads to. Raises VolumeError."""
    mounts = []
    privileged = bool((container.get("securityContext") or {}).get("privileged"))
    for index, entry in enumerate(container.get("volumeMounts") or ()):
        volume = volumes.get(entry["name"])
        if volume is None:
            raise VolumeError(f"volumeMount {entry['name']!r} names no volume of the pod")
        source = volume.path
        below = _below(entry, values)
        if below:
            target = subpaths / entry["name"] / container["name"] / str(index)
            what = f'failed to prepare subPath for volumeMount "{entry["name"]}" of container ' \
                   f'"{container["name"]}"'
            try:
                subpath.bind(source, below, target)
            except (VolumeError, OSError) as error:
                raise VolumeError(f"{what}: {error}") from error
            source = target
        wanted = entry.get("mountPropagation") or "None"
        _check_propagation(wanted, source, privileged, host)
        mounts.append(
            Mount(
                str(source),
                entry["mountPath"],
                volume.read_only or bool(entry.get("readOnly")),
                PROPAGATION[wanted],
                recursive_read_only=recursive_read_only(entry),
                mapped=volume.mapped,
            )
        )
    return mounts


def recursive_read_only(entry: Object) -> bool:
    """Whether what is mounted below the volume is read-only, too. Every kernel that we run on can."""
    return bool(entry.get("readOnly")) and entry.get("recursiveReadOnly") in ("Enabled", "IfPossible")


def _below(entry: Object, values: Mapping[str, str]) -> str:
    text = entry.get("subPath") or ""
    if entry.get("subPathExpr"):
        text = _expand(entry["subPathExpr"], values)
    if text.startswith("/"):
        raise VolumeError(f"error SubPath `{text}` must not be an absolute path")
    if ".." in text.split("/"):
        raise VolumeError(f"unable to provision SubPath `{text}`: must not contain '..'")
    return text


def _expand(text: str, values: Mapping[str, str]) -> str:
    """As in a command, but a variable that does not exist is an error: the path would be another one."""
    missing: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        if name not in values:
            missing.append(name)
        return values.get(name, "")

    expanded = _REFERENCE.sub(replace, text)
    if missing:
        listed = ", ".join(f'"{name}"' for name in missing)
        raise VolumeError(f"missing value for {listed}")
    return expanded


def _check_propagation(wanted: str, source: Path, privileged: bool, host: Propagation) -> None:
    if wanted == "None":
        return
    if wanted == "Bidirectional" and not privileged:
        raise VolumeError("Bidirectional mount propagation is available only to privileged containers")
    point, kinds = host(source)
    if wanted == "Bidirectional" and "shared" not in kinds:
        raise VolumeError(f'path "{source}" is mounted on "{point}" but it is not a shared mount')
    if not kinds & {"shared", "master"}:
        raise VolumeError(f'path "{source}" is mounted on "{point}" but it is not a shared or slave mount')
