"""Whether the kernel's OOM killer was in a container, and what to call its end.

The counter is the cgroup's own (`oom_kill` in memory.events on v2, in memory.oom_control on v1, where it
is not hierarchical: a victim inside an exec counts in that exec's cgroup). It is read when the
container's first process has ended: the kernel raises it before it sends the SIGKILL, so at that moment
it is final.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups import Cgroup

OOM_KILLED = "OOMKilled"
COMPLETED = "Completed"
ERROR = "Error"


def kills(cgroup: Cgroup) -> int:
    """How many processes of this cgroup the OOM killer has killed; 0 when it has no memory controller."""
    return cgroup.stats().oom_kills


def reason(exit_code: int, oom_kills: int) -> str:
    """The reason in status.containerStatuses[].state.terminated, as containerd and the kubelet word it.

    A container that went on after a child was killed, and then ended well, is Completed.
    """
    if exit_code == 0:
        return COMPLETED
    return OOM_KILLED if oom_kills else ERROR
