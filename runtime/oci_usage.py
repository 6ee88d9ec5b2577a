"""`update` and `events`: a container's limits and its usage, as callers of runc write and read them."""

from __future__ import annotations

import time

from runtime.cgroups import Cgroup
from runtime.errors import StateError
from runtime.oci_arguments import LIMITS
from runtime.oci_options import read_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.oci_flags import Arguments

LONGEST = 10**8
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def wanted(arguments: Arguments) -> dict[str, Any]:
    """linux.resources from --resources and the single flags. Device rules are left alone, as runc's update
    does: callers pass a container's whole resources. Raises StateError."""
    resources = read_object(arguments.resources, stdin=True) if arguments.resources else {}
    resources.pop("devices", None)
    for flag, (section, key) in LIMITS.items():
        value = getattr(arguments, flag.replace("-", "_"))
        if value is not None and value != "":
            resources[section] = {**(resources.get(section) or {}), key: value}
    if not resources:
        raise StateError(f"Could not update container {arguments.id}: no limit was given")
    return resources


def seconds(text: str) -> float:
    """A duration as Go writes it: 5s, 500ms, 1m30s; above 0. Raises StateError."""
    rest, found = text.lstrip("+-"), 0.0
    try:
        while True:
            number = rest[: next(index for index, letter in enumerate(rest) if letter not in "0123456789.")]
            unit = next(unit for unit in UNITS if rest.removeprefix(number).startswith(unit))
            found += float(number) * UNITS[unit]
            rest = rest[len(number) + len(unit) :]
            if not rest:
                break
    except (StopIteration, ValueError):
        raise StateError(f"Could not read interval {text!r} (as 5s, 500ms or 1m30s)") from None
    found = -found if text.startswith("-") else found
    if not 0 < found < LONGEST:
        raise StateError(f"Could not use interval {text!r}: it must be greater than 0 and below {LONGEST}s")
    return found


def stats(identity: str, cgroup: Cgroup) -> dict[str, Any]:
    """A stats event in runc's shape."""
    return {"type": "stats", "id": identity, "data": cgroup.report()}


def follow(
    identity: str, cgroup: Cgroup, running: Callable[[], bool], show: Callable[[Mapping[str, Any]], None],
    interval: float,
) -> None:  # fmt: skip
    """Shows usage every `interval` seconds and each out-of-memory kill, until the container has stopped."""
    kills = cgroup.stats().oom_kills
    while running():
        seen = cgroup.stats().oom_kills
        for _ in range(seen - kills):
            show({"type": "oom", "id": identity})
        kills = seen
        show(stats(identity, cgroup))
        time.sleep(interval)
