"""Plugin programs beside a running agent: the same answers, and without it the same again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_lab import leases, links
from network_lab import Namespace

from cni import skeleton
from cni.knock import ACCEPTED, SOCKET
from cni.warm import WarmPlugins

pytestmark = pytest.mark.privileged


class Counted(WarmPlugins):
    """Counts what it was asked to do."""

    served = 0

    def _work(self, message: bytes, stdin: int, stdout: int) -> int:
        self.served += 1
        return super()._work(message, stdin, stdout)


@pytest.fixture
def warm(node: None, own_bin: Path) -> Iterator[Counted]:
    made = Counted(own_bin)
    made.start()
    yield made
    made.stop()
    assert not (own_bin / SOCKET).exists()


def call(program: Path, command: str, config: Any, *before: str, **variables: str) -> tuple[int, Any]:
    environment = {"PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_PATH": str(program.parent)}
    environment |= {f"CNI_{key}": value for key, value in variables.items()}
    words = [*before, str(program)]
    done = subprocess.run(words, input=json.dumps(config).encode(), env=environment, capture_output=True)
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None


def section(tmp_path: Path) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": "10.1.0.0/24", "dataDir": str(tmp_path / "leases")}
    return {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "kpy0", "ipam": ipam}


def test_the_agent_does_a_programs_work(warm: Counted, own_bin: Path, tmp_path: Path) -> None:
    config = section(tmp_path)
    with Namespace() as pod:
        names = {"CONTAINERID": "c1", "IFNAME": "eth0", "NETNS": pod.path}
        status, result = call(own_bin / "bridge", "ADD", config, **names)
        assert (status, result["ips"][0]["address"]) == (0, "10.1.0.2/24")
        assert call(own_bin / "bridge", "CHECK", {**config, "prevResult": result}, **names) == (0, None)
        status, body = call(own_bin / "bridge", "ADD", config, **names)
        assert (status, body["code"]) == (1, 102)
        assert call(own_bin / "bridge", "DEL", config, **names) == (0, None)
        assert warm.served == 4
    assert leases(tmp_path / "leases/net") == []


def test_a_caller_of_another_network_namespace_works_by_itself(
    warm: Counted, own_bin: Path, tmp_path: Path
) -> None:
    with Namespace() as other, Namespace() as pod:
        enter = ("nsenter", f"--net={other.path}")
        names = {"CONTAINERID": "c1", "IFNAME": "eth0", "NETNS": pod.path}
        assert call(own_bin / "bridge", "ADD", section(tmp_path), *enter, **names)[0] == 0
        assert (warm.served, links()) == (0, ["lo"]), "the bridge is in the caller's namespace"
        with other.netlink() as there:
            assert there.link("kpy0") is not None
        assert call(own_bin / "bridge", "DEL", section(tmp_path), *enter, **names)[0] == 0


def test_only_root_is_served(warm: Counted, own_bin: Path) -> None:
    assert (own_bin / SOCKET).stat().st_mode & 0o777 == 0o600
    (own_bin / SOCKET).chmod(0o666)  # the mode is not all that keeps others out
    answer: list[bytes] = []

    def nobody() -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        # The raw call changes this thread only; glibc's would change all.
        assert libc.syscall(113, 65534, 65534, -1) == 0  # setreuid
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.connect(f"/proc/self/fd/{folder}/{SOCKET}")
            with open(os.devnull) as null:
                socket.send_fds(channel, [b"bridge\0CNI_COMMAND=VERSION"], [null.fileno(), null.fileno()])
                answer.append(channel.recv(1))

    folder = os.open(own_bin, os.O_PATH)  # nobody may not walk there
    thread = threading.Thread(target=nobody)
    thread.start()
    thread.join()
    os.close(folder)
    assert answer == [b"r"]
    assert warm.served == 0


def test_an_agent_that_dies_meanwhile_is_code_11(node: None, own_bin: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dying:
        dying.bind(str(own_bin / SOCKET))
        dying.listen(1)

        def accept_and_die() -> None:
            caller, _ = dying.accept()
            caller.recv(1 << 16)
            caller.send(ACCEPTED)
            caller.close()

        thread = threading.Thread(target=accept_and_die)
        thread.start()
        status, body = call(own_bin / "bridge", "STATUS", section(tmp_path))
        thread.join()
    assert (status, body["code"]) == (1, 11)
    # What a killed agent leaves, a socket that nobody listens on, is no obstacle; the next agent takes it.
    assert call(own_bin / "bridge", "STATUS", section(tmp_path)) == (0, None)
    again = Counted(own_bin)
    again.start()
    assert call(own_bin / "bridge", "STATUS", section(tmp_path)) == (0, None)
    assert again.served == 1
    again.stop()


def test_a_bug_in_a_plugin_is_an_error_on_stdout(
    warm: Counted, own_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> int:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(skeleton, "dispatch", broken)
    status, body = call(own_bin / "bridge", "STATUS", section(tmp_path))
    assert (status, body["code"]) == (1, 100)
    assert "ZeroDivisionError" in body["msg"]
