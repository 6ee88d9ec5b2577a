"""Pods whose users are not the host's: what the kernel and the disk say from outside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import StartError
from runtime.linux import LinuxKernel
from runtime.streams import STDOUT
from runtime.userns import supported
from tests.privileged.runtime_service.harness import Node, read_all

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(not supported(LinuxKernel()), reason="this kernel cannot idmap a tmpfs (Linux 6.3)"),
]
FIRST = 10 * 65536
SYS = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec"]}


def pod(node: Node, **config: Any) -> Any:
    return node.sandbox(first_id=FIRST, ids=65536, **config)


def bound(source: Path, destination: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", "idmap"]}


def said(node: Node, container: str) -> str:
    ended = node.ended(container)
    assert ended.exit_code == 0, node.log(container)
    return node.log(container).decode()


def test_root_inside_is_nobody_outside_and_owns_the_image(node: Node) -> None:
    sandbox = pod(node)
    container = node.run(sandbox, ["sh", "-c", "echo new > /made; sleep 1000"])
    status = Path(f"/proc/{node.service.container(container).pid}/status").read_text()
    assert f"Uid:\t{FIRST}\t{FIRST}" in status and f"Gid:\t{FIRST}\t{FIRST}" in status
    assert os.stat(f"/proc/{sandbox.pid}").st_uid in (0, FIRST + 65535)  # pause is not dumpable
    inside = node.service.exec_sync(
        container, ["sh", "-c", "id -u; ls -ln /bin/busybox /made; cat /proc/self/uid_map"], 10
    )
    lines = inside.stdout.decode().splitlines()
    assert inside.exit_code == 0 and lines[0] == "0", inside
    assert [line.split()[2] for line in lines[1:3]] == ["0", "0"]
    assert lines[3].split() == ["0", str(FIRST), "65536"]
    [upper] = node.folder.glob("containers/*/upper")
    assert (upper / "made").stat().st_uid == FIRST  # what it writes is nobody's on the host's disk


def test_what_only_the_hosts_root_may_is_refused(node: Node) -> None:
    script = (
        "mknod /memory c 1 1 2>/dev/null && echo mknod; "
        "busybox nice -n -5 echo nice 2>/dev/null; "
        "mount -t tmpfs tmpfs /tmp && echo mount; "
        "hostname renamed && echo hostname"
    )
    mighty = ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SYS_NICE"]
    every = dict.fromkeys(("bounding", "effective", "permitted"), mighty)
    container = node.run(pod(node), ["sh", "-c", script], capabilities=every)
    # Inside its own mounts and names it is root.
    assert said(node, container).split() == ["mount", "hostname"]
    assert os.uname().nodename != "renamed"


def test_volumes_are_the_pods_own_and_stay_the_hosts_on_disk(node: Node, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "given").write_text("secret")
    (volume / "given").chmod(0o600)
    script = "cat /volume/given; echo x > /volume/made; ls -ln /volume/given"
    container = node.run(pod(node), ["sh", "-c", script], mounts=[bound(volume, "/volume")])
    first, _, owner = said(node, container).partition("-rw")
    assert first == "secret" and owner.split()[2] == "0"
    assert (volume / "made").stat().st_uid == 0


def test_a_file_system_without_idmaps_is_refused_by_name(node: Node) -> None:
    container = node.create(pod(node), ["true"], mounts=[bound(Path("/proc"), "/host")])
    with pytest.raises(StartError, match="doesn't support idmap mounts on this kernel"):
        node.service.start_container(container)


def test_standard_output_can_be_opened_again_and_a_terminal_is_ones_own(node: Node) -> None:
    sandbox = pod(node)
    container = node.run(sandbox, ["sh", "-c", "echo again > /dev/stdout"])
    assert said(node, container) == "again\n"
    shell = node.run(sandbox, ["sh", "-c", "ls -ln $(tty) && echo got"], tty=True)
    assert "got" in said(node, shell)
    stream = node.service.exec(
        node.run(sandbox, ["sleep", "1000"]), ["sh", "-c", "id -u > /dev/stdout"],
        tty=False, stdin=False, stdout=True, stderr=True,
    )  # fmt: skip
    assert read_all(stream)[0][STDOUT] == b"0\n"


def test_sys_and_a_shared_pid_namespace_and_sysctls(node: Node) -> None:
    sandbox = pod(node, share_process_namespace=True, sysctls={"net.ipv4.ip_unprivileged_port_start": "80"})
    script = "ls /sys/class/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ls -d /proc/1"
    container = node.run(sandbox, ["sh", "-c", script], mounts=[SYS])
    assert said(node, container).split() == ["lo", "80", "/proc/1"]


def test_the_next_agent_adopts_it(node: Node) -> None:
    container = node.run(pod(node), ["sleep", "1000"])
    node.service.close()
    node.service = node.fresh()
    node.service.start()
    assert node.service.list_sandboxes()[0].config.first_id == FIRST
    assert node.service.exec_sync(container, ["id", "-u"], 10).stdout == b"0\n"
    another = node.run(node.service.list_sandboxes()[0], ["sh", "-c", "cat /proc/self/uid_map"])
    assert said(node, another).split() == ["0", str(FIRST), "65536"]
