"""Sandboxes and containers on the real kernel: life, ends, logs."""

from __future__ import annotations

import glob
import os
import re
import time
from pathlib import Path

import pytest

from runtime.errors import NotFoundError, StartError
from runtime.program import load
from tests.privileged.runtime_service.harness import Node, wait_for

pytestmark = pytest.mark.privileged

CRI_LINE = re.compile(rb"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) F ")


def test_container_runs_to_completion_and_its_output_is_logged(node: Node) -> None:
    sandbox = node.sandbox()
    assert sandbox.state == "READY"
    container = node.run(sandbox, ["sh", "-c", "hostname; echo oops >&2; exit 3"])
    ended = node.ended(container)
    assert (ended.exit_code, ended.reason) == (3, "Error")
    assert ended.started_at is not None and ended.finished_at is not None
    assert ended.started_at <= ended.finished_at
    assert sorted(node.log(container).split()) == [b"oops", b"pod-name"]
    with open(ended.config.log_path, "rb") as log:
        assert all(CRI_LINE.match(line) for line in log)

    def kinds() -> list[tuple[str, int | None]]:
        return [(e.type, e.exit_code) for e in node.events if e.container_id == container]

    wait_for(lambda: kinds() == [("started", None), ("exited", 3)])


def test_success_is_completed(node: Node) -> None:
    ended = node.ended(node.run(node.sandbox(), ["true"]))
    assert (ended.exit_code, ended.reason) == (0, "Completed")


def test_containers_cut_from_one_stencil_have_each_its_own(node: Node, tmp_path: Path) -> None:
    """Same image, same rights: the second one's start is a copy of the first one's, with other texts."""
    seen, addresses = [], []
    uids = "5f1d3a52-7c1f-4c2e-9a55-0123456789ab", "99999999-7c1f-4c2e-9a55-ba9876543210"
    for number, uid in enumerate(uids):
        (tmp_path / uid).mkdir()
        (tmp_path / uid / "file").write_text(f"volume {number}\n")
        volume = {"destination": "/tmp", "source": str(tmp_path / uid), "options": ["bind"]}
        sandbox = node.sandbox(uid=uid, hostname=f"pod-{number}")
        script = f"echo $OWN; hostname; cat /tmp/file; echo script {number}; ls /kept; >/kept"
        env = ["PATH=/bin", f"OWN={number}"]
        container = node.create(sandbox, ["sh", "-c", script], env=env, mounts=[volume])
        with open(tmp_path / "containers" / container / "program", "rb") as file:
            program = load(file.fileno())
        assert program is not None
        addresses.append(program.place.address)
        node.service.start_container(container)
        node.ended(container)
        seen.append(node.log(container).decode().splitlines())
    assert addresses[0] == addresses[1]
    assert [sorted(lines) for lines in seen] == [
        sorted([str(n), f"pod-{n}", f"volume {n}", f"script {n}", "ls: /kept: No such file or directory"])
        for n in (0, 1)
    ]


def test_unknown_program_is_a_start_error_with_upstreams_words(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.create(sandbox, ["foo"])
    with pytest.raises(StartError, match=r'exec: "foo": executable file not found in \$PATH'):
        node.service.start_container(container)
    ended = node.service.container(container)
    assert (ended.state, ended.exit_code, ended.reason) == ("EXITED", 128, "StartError")
    assert "executable file not found" in ended.message


def test_obedient_container_stops_by_its_signal(node: Node) -> None:
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    container = node.run(node.sandbox(), ["sh", "-c", script])
    wait_for(lambda: node.log(container) == b"ready\n")
    node.service.stop_container(container, 10)
    assert node.service.container(container).exit_code == 7


def test_stubborn_container_is_killed_after_its_grace(node: Node) -> None:
    container = node.run(node.sandbox(), ["sleep", "1000"])  # PID 1 without a handler ignores TERM
    started = time.monotonic()
    node.service.stop_container(container, 0.3)
    assert 0.25 < time.monotonic() - started < 60
    ended = node.service.container(container)
    assert (ended.exit_code, ended.reason) == (137, "Error")


def test_own_stop_signal_is_used(node: Node) -> None:
    script = "trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done"
    container = node.run(node.sandbox(), ["sh", "-c", script], stop_signal="SIGUSR1")
    wait_for(lambda: node.log(container) == b"ready\n")
    node.service.stop_container(container, 10)
    assert node.service.container(container).exit_code == 5


def test_containers_of_a_pod_share_its_network_but_not_their_processes(node: Node) -> None:
    sandbox = node.sandbox()
    first = node.service.container(node.run(sandbox, ["sleep", "1000"]))
    second = node.service.container(node.run(sandbox, ["sleep", "1000"]))

    def namespace(pid: int, kind: str) -> str:
        return os.readlink(f"/proc/{pid}/ns/{kind}")

    for kind in ("net", "ipc", "uts"):
        assert namespace(first.pid, kind) == namespace(second.pid, kind) == namespace(sandbox.pid, kind)
        assert namespace(first.pid, kind) != os.readlink(f"/proc/self/ns/{kind}")
    for kind in ("pid", "mnt", "cgroup"):
        assert namespace(first.pid, kind) != namespace(second.pid, kind)
    assert os.readlink(sandbox.netns) == namespace(first.pid, "net")


def test_shared_process_namespace_shows_the_other_container_and_pause(node: Node) -> None:
    sandbox = node.sandbox(share_process_namespace=True)
    node.run(sandbox, ["sleep", "1001"])
    container = node.run(sandbox, ["ps", "-o", "pid,args"])
    node.ended(container)
    assert b"sleep 1001" in node.log(container)
    assert re.search(rb"^\s*1 ", node.log(container), re.M)


def test_container_of_a_shared_process_namespace_takes_its_children_along(node: Node) -> None:
    sandbox = node.sandbox(share_process_namespace=True)
    container = node.run(sandbox, ["sh", "-c", "sleep 1002 & exit 0"])
    assert node.ended(container).exit_code == 0
    path = f"{sandbox.config.cgroup_parent}/{container}"
    wait_for(lambda: node.driver.open(path).pids() == [])


def test_host_network_pod_keeps_the_hosts_namespaces(node: Node) -> None:
    sandbox = node.sandbox(host_network=True)
    container = node.service.container(node.run(sandbox, ["sleep", "1000"]))
    assert sandbox.netns == ""
    for kind in ("net", "uts"):
        assert os.readlink(f"/proc/{container.pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")


def test_sysctls_of_the_pod_are_set(node: Node) -> None:
    container = node.run(
        node.sandbox(sysctls={"net.ipv4.ip_unprivileged_port_start": "0"}),
        ["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"],
    )
    node.ended(container)
    assert node.log(container) == b"0\n"


def test_memory_hog_is_oom_killed(node: Node) -> None:
    # tail keeps a line without end in memory, and dd never ends one
    container = node.run(
        node.sandbox(),
        ["sh", "-c", "exec tail /dev/zero"],
        resources={"memory": {"limit": 16 << 20, "swap": 16 << 20}},
    )
    ended = node.ended(container, 30)
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    wait_for(lambda: "oom" in [event.type for event in node.events])


def test_much_output_arrives_whole_and_in_order(node: Node) -> None:
    container = node.run(node.sandbox(), ["seq", "1", "300000"])
    node.ended(container, 30)
    assert node.log(container) == b"".join(b"%d\n" % n for n in range(1, 300001))


def test_output_without_newline_and_over_long_lines_survive(node: Node) -> None:
    container = node.run(node.sandbox(), ["sh", "-c", "head -c 50000 /dev/zero | tr '\\0' x; printf end"])
    node.ended(container)
    assert node.log(container) == b"x" * 50000 + b"end"


def test_log_is_reopened_after_rotation(node: Node) -> None:
    script = "echo one; while ! [ -e /go ]; do sleep 0.02; done; echo two"
    container = node.run(node.sandbox(), ["sh", "-c", script])
    wait_for(lambda: node.log(container) == b"one\n")
    path = node.service.container(container).config.log_path
    os.rename(path, path + ".1")
    node.service.reopen_log(container)
    node.service.exec_sync(container, ["sh", "-c", "> /go"], 10)
    node.ended(container)
    assert node.log(container) == b"two\n"


def test_stopped_sandbox_has_no_process_and_may_be_stopped_again(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.run(sandbox, ["sleep", "1000"])
    node.service.stop_pod_sandbox(sandbox.id)
    node.service.stop_pod_sandbox(sandbox.id)
    assert [s.state for s in node.service.list_sandboxes()] == ["NOTREADY"]
    assert node.ended(container).exit_code == 137
    assert not os.path.exists(f"/proc/{sandbox.pid}")
    node.service.remove_pod_sandbox(sandbox.id)
    node.service.remove_pod_sandbox(sandbox.id)
    assert node.service.list_sandboxes() == [] == node.service.list_containers()


def test_removed_container_is_unknown_and_its_cgroup_and_files_go(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.run(sandbox, ["sleep", "1000"])
    path = f"{sandbox.config.cgroup_parent}/{container}"
    assert node.driver.exists(path)
    node.service.remove_container(container)
    node.service.remove_container(container)
    with pytest.raises(NotFoundError):
        node.service.container(container)
    wait_for(lambda: not node.driver.exists(path))
    wait_for(lambda: not list((node.folder / "containers").iterdir()))


def test_pause_that_dies_is_told(node: Node) -> None:
    sandbox = node.sandbox()
    os.kill(sandbox.pid, 9)
    wait_for(lambda: [event.type for event in node.events] == ["sandbox-exited"])
    assert node.service.list_sandboxes()[0].state == "NOTREADY"


def test_pause_that_is_ended_is_not_told(node: Node) -> None:
    """Its end would wake the pod whose network has just failed, to try it again without a pause."""
    sandbox = node.sandbox()
    node.service.stop_pod_sandbox(sandbox.id)
    assert node.service.list_sandboxes()[0].state == "NOTREADY"
    other = node.sandbox(uid="u2", name="other")
    os.kill(other.pid, 9)
    wait_for(lambda: node.events)
    assert {event.sandbox_id for event in node.events} == {other.id}


def test_failed_sandbox_leaves_nothing(node: Node) -> None:
    with pytest.raises(StartError, match="no_such_sysctl"):
        node.sandbox(sysctls={"net.no_such_sysctl": "1"})
    assert node.service.list_sandboxes() == []
    wait_for(lambda: not list((node.folder / "run" / "sandboxes").iterdir()))


def test_non_root_container_may_open_its_stdout_again(node: Node) -> None:
    container = node.run(
        node.sandbox(), ["sh", "-c", "echo hi > /proc/self/fd/1"], user={"uid": 1000, "gid": 1000}
    )
    assert node.ended(container).exit_code == 0
    assert node.log(container) == b"hi\n"


def test_a_pause_is_counted_with_its_pod(node: Node) -> None:
    # It is killed and frozen by a cgroup of its own; a memory cgroup for it would cost more than it does.
    sandbox = node.sandbox()
    memberships = dict(
        line.split(":", 2)[1:] for line in Path(f"/proc/{sandbox.pid}/cgroup").read_text().splitlines()
    )
    own = f"/{sandbox.config.cgroup_parent}/{sandbox.id}"
    assert memberships[""].endswith(own)
    for controller in ("cpu", "cpuacct", "memory", "pids"):
        if controller in memberships:
            assert not memberships[controller].endswith(own)
    driver = node.driver
    if driver.name == "hybrid":
        made = [tree for tree in glob.glob("/sys/fs/cgroup/*") if os.path.isdir(f"{tree}{own}")]
        assert made == [str(getattr(driver, "unified", ""))]


def test_nothing_is_ignored_by_what_is_started(node: Node) -> None:
    """Prepared or not, nor by an exec: Python ignores SIGPIPE, glibc's posix_spawn two signals of its own."""
    sandbox, show = node.sandbox(), ["sh", "-c", "grep SigIgn: /proc/self/status; sleep 100"]
    prepared, planned = node.run(sandbox, show), node.create(sandbox, show)
    (node.folder / "containers" / planned / "program").unlink()
    node.service.start_container(planned)
    seen = [node.service.exec_sync(prepared, ["grep", "SigIgn:", "/proc/self/status"], 60).stdout]
    for container in (prepared, planned):
        wait_for(lambda container=container: node.log(container))
        seen.append(node.log(container))
    assert seen == [b"SigIgn:\t0000000000000000\n"] * 3
