"""What a new process needs to know to be inside its cgroup from its first instruction."""

from __future__ import annotations

from runtime.records import Record


class CgroupJoin(Record):
    """`unified`: the v2 folder to be born into ("" for none). `tasks`: v1 files the process writes 0 to.
    `late`: (path, value) to be written after the start, because a CPU limit would slow the set-up down
    (185 ms instead of 5 with weight 2 on a busy machine).
    """

    unified: str = ""
    tasks: tuple[str, ...] = ()
    late: tuple[tuple[str, str], ...] = ()
