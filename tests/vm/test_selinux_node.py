"""A node on a machine whose kernel runs SELinux in AppArmor's place: the label of a pod's processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import host_state
import pytest
from e2e_node import pod
from machine import Machine

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not Path("/sys/fs/selinux/status").exists(),
        reason="a kernel that runs SELinux is missing (VM_KERNEL=security=selinux sudo -E ./hack/vm/run)",
    ),
]

CURRENT = "cat /proc/self/attr/current"
OPTIONS = {"user": "system_u", "role": "system_r", "type": "svirt_t", "level": "s0:c1,c2"}
LABEL = "system_u:system_r:svirt_t:s0:c1,c2"


@pytest.fixture(scope="module")
def machine(untouched: host_state.HostState) -> Iterator[Machine]:
    machine = Machine()
    machine.import_busybox()
    done = machine.cli("up", "--detach", "--timeout", "300", check=False)
    assert done.code == 0, f"{done.out}{done.err}{machine.last_words()}"
    yield machine
    machine.cli("reset", "--yes")


def test_a_pod_and_its_execs_have_the_label_that_it_asks_for(machine: Machine) -> None:
    script = f"{CURRENT}; echo; echo done; sleep 3600"
    machine.apply(pod("labelled", script, securityContext={"seLinuxOptions": OPTIONS}), pod("plain", script))
    machine.wait_running("labelled", "plain")
    for name in ("labelled", "plain"):
        machine.until("its output", lambda name=name: "done" in machine.kubectl("logs", name).out)
    said = [machine.kubectl("logs", name).out.split("\0")[0] for name in ("labelled", "plain")]
    assert said[0] == LABEL and LABEL != said[1] != ""
    assert machine.kubectl("exec", "labelled", "--", "sh", "-c", CURRENT).out.startswith(LABEL)


def test_a_label_that_the_policy_does_not_know_starts_nothing(machine: Machine) -> None:
    unknown = OPTIONS | {"type": "nowhere_t"}
    machine.apply(pod("unknown", "echo ran", securityContext={"seLinuxOptions": unknown}))

    def refused() -> bool:
        statuses = machine.get("pod", "unknown")["status"].get("containerStatuses") or [{}]
        state = statuses[0].get("state", {}) | statuses[0].get("lastState", {})
        return "nowhere_t" in str(state)

    machine.until("a refusal", refused)
    assert machine.kubectl("logs", "unknown", check=False).out == ""
