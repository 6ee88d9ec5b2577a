"""The pure parts of the runtime service: what pause and containers get, how ends are named."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from runtime import oom
from runtime.errors import ExecTimeout, RuntimeFailure
from runtime.oci_config import container_config, pause_config, signal_number
from runtime.service import SandboxConfig
from runtime.spec import parse
from runtime.state import Identity, SandboxState
from runtime.streams import STDERR, STDOUT
from runtime.terminal import parse_size
from runtime.views import exec_result, sandbox_from


def pod(**values: Any) -> SandboxConfig:
    return SandboxConfig(name="p", namespace="n", uid="u", hostname="h", **values)


def kinds(config: dict[str, Any]) -> set[str]:
    return {entry["type"] for entry in config["linux"]["namespaces"]}


@pytest.mark.parametrize(
    ("config", "pause", "container"),
    [
        (pod(), {"network", "uts", "ipc"}, {"mount", "cgroup", "pid"}),
        (pod(host_network=True), {"ipc"}, {"mount", "cgroup", "pid"}),
        (pod(host_ipc=True), {"network", "uts"}, {"mount", "cgroup", "pid"}),
        (pod(host_pid=True), {"network", "uts", "ipc"}, {"mount", "cgroup"}),
        (pod(share_process_namespace=True), {"network", "uts", "ipc", "pid"}, {"mount", "cgroup"}),
    ],
)
def test_namespaces_are_divided_between_pause_and_container(
    config: SandboxConfig, pause: set[str], container: set[str]
) -> None:
    assert kinds(pause_config(config)) == pause
    spec = {"linux": {"namespaces": [{"type": "network"}], "sysctl": {"a.b": "1"}, "maskedPaths": ["/x"]}}
    made = container_config(spec, config)
    assert kinds(made) == container
    assert made["linux"]["maskedPaths"] == ["/x"]
    assert "sysctl" not in made["linux"]
    assert spec["linux"]["namespaces"] == [{"type": "network"}]


def test_pause_config_is_valid_and_names_the_pod_unless_it_has_the_hosts_name() -> None:
    assert parse(pause_config(pod(sysctls={"net.core.somaxconn": "9"}))).hostname == "h"
    assert parse(pause_config(pod(host_network=True))).hostname == ""


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("sigquit", 3),
        ("9", 9),
        ("", 15),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMIN", signal.SIGRTMIN),
    ],
)
def test_stop_signals_are_read_as_images_write_them(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["SIGNOPE", "0", "99", "SIGTERM+x", "SIG_DFL", "SIGRTMIN+60"])
def test_nonsense_is_no_stop_signal(name: str) -> None:
    with pytest.raises(RuntimeFailure, match="no such signal"):
        signal_number(name)


@pytest.mark.parametrize(
    ("code", "kills", "reason"),
    [(0, 0, "Completed"), (1, 0, "Error"), (137, 0, "Error"), (137, 1, "OOMKilled"), (0, 1, "Completed")],
)
def test_ends_have_upstreams_names(code: int, kills: int, reason: str) -> None:
    assert oom.reason(code, kills) == reason


@pytest.mark.parametrize(
    ("payload", "size"),
    [
        (b'{"Width": 80, "Height": 24}', (80, 24)),
        (b'{"Width": "80"}', None),
        (b"[]", None),
        (b"nonsense", None),
        (b'{"Width": 70000, "Height": 1}', None),
        (b'{"Width": -1, "Height": 1}', None),
    ],
)
def test_terminal_sizes(payload: bytes, size: tuple[int, int] | None) -> None:
    assert parse_size(payload) == size


def test_exec_results() -> None:
    collected = {STDOUT: bytearray(b"o"), STDERR: bytearray(b"e")}
    assert exec_result({"exitCode": 3}, collected, ["x"]).exit_code == 3
    with pytest.raises(ExecTimeout, match="command 'sleep 9' timed out"):
        exec_result({"exitCode": 137, "timedOut": True}, collected, ["sleep", "9"])
    with pytest.raises(RuntimeFailure, match="broken"):
        exec_result({"error": "broken"}, collected, ["x"])


def test_sandbox_is_ready_only_while_pause_lives() -> None:
    pause = Identity(42, 1, "b")
    ready = sandbox_from("i", 1.0, pod(), SandboxState(pause=pause))
    assert (ready.state, ready.pid, ready.netns) == ("READY", 42, "/proc/42/ns/net")
    assert sandbox_from("i", 1.0, pod(host_network=True), SandboxState(pause=pause)).netns == ""
    for gone in (SandboxState(), SandboxState(pause=pause, exited_at=2.0)):
        over = sandbox_from("i", 1.0, pod(), gone)
        assert (over.state, over.pid, over.netns) == ("NOTREADY", 0, "")
