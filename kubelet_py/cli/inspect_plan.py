"""`kubelet-py inspect plan`: the operations that a pod's containers were started by, in their order.

A container's start is data (runtime/operations.py): the list shown here is built by the same function from
the same `oci.json` as the one that the shim's program was compiled from (runtime/ahead.py). Where there is no
program (terminals, for one) it is the one that is executed; a program that came upon something unforeseen was
followed by that, with the host's mounts to be left. Of a container that was removed nothing can be shown.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from kubelet_py.cli.errors import CommandError
from kubelet_py.paths import NodePaths

if TYPE_CHECKING:
    from runtime.cgroups import CgroupDriver
    from runtime.cgroups.join import CgroupJoin

STATUSES = ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")


def inspect_plan(paths: NodePaths, pod: dict[str, Any]) -> dict[str, list[str]]:
    """Container name → its set-up operations, numbered as errors number them. Raises CommandError."""
    from runtime import cgroups

    found = [s for key in STATUSES for s in pod.get("status", {}).get(key) or [] if s.get("containerID")]
    if not found:
        raise CommandError(f"no container of pod {pod['metadata']['name']} was started yet")
    driver = cgroups.detect()
    return {
        status["name"]: operations(paths, status["containerID"].rpartition("/")[2], driver)
        for status in found
    }


def operations(paths: NodePaths, container: str, driver: CgroupDriver) -> list[str]:
    """The plan of a container by its id, a line for each operation. Raises CommandError."""
    from runtime.bare import Bare
    from runtime.early import WaitForStart
    from runtime.errors import RuntimeFailure
    from runtime.namespaces import namespaces_of
    from runtime.operations import Rootfs, container_plan
    from runtime.spec import parse

    folder = paths.containers / container
    try:
        record = json.loads((folder / "config.json").read_text())
        oci = json.loads((folder / "oci.json").read_text())
        sandbox = paths.run / "sandboxes" / record["sandbox"]
        pod = json.loads((sandbox / "sandbox.json").read_text())
        pause = json.loads((sandbox / "state.json").read_text())["pause"]["pid"]
    except FileNotFoundError as error:
        raise CommandError(f"{error.filename} is not there (was the container removed?)") from error
    if record.get("runtime"):
        return _foreign(record["runtime"], str(folder), container)
    try:
        spec = parse(oci)
        waits = spec.linux.seccomp and spec.linux.seccomp.get("listenerPath")
        plan = container_plan(
            spec,
            wait_on=WaitForStart(-1) if waits else None,
            rootfs=Rootfs(tuple(record["config"]["layers"]), str(folder / "upper"), str(folder / "work")),
            join=namespaces_of(pod["oci"], pause),
            cgroup=_join(driver, record["cgroup"]),
            bare=None if record["config"]["tty"] else Bare(f"/proc/{pause}/ns/mnt", os.uname().release),
        )
    except RuntimeFailure as error:
        raise CommandError(f"container {container[:12]} has no plan: {error}") from error
    return [f"{number:3} {operation.describe()}" for number, operation in enumerate(plan.operations)]


def _foreign(runtime: dict[str, Any], folder: str, container: str) -> list[str]:
    """What another runtime does is its own: only the commands are ours."""
    command = f"run {runtime['path']} --root {runtime['root']}"
    return [f"  0 {command} create --bundle {folder}/bundle {container}", f"  1 {command} start {container}"]


def _join(driver: CgroupDriver, path: str) -> CgroupJoin | None:
    """How the container got into its cgroup; nothing once that has gone with it."""
    return driver.open(path).join() if driver.exists(path) else None
