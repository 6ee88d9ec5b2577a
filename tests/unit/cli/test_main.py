from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from kubelet_py.cli.main import COMMANDS, build_parser, main
from kubelet_py.cli.settings import NodeSettings
from kubelet_py.paths import NodePaths

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["nonsense"])
    assert exit_.value.code == 2


def test_kubeconfig_before_the_first_start_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kubeconfig", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "kubelet-py up --detach" in error


def test_kubeconfig_on_a_joined_node_says_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    NodeSettings("n", "192.0.2.5", server="https://192.0.2.1:6443").save(NodePaths(tmp_path))
    assert main(["kubeconfig", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "is a node of https://192.0.2.1:6443" in error and "up --detach" not in error


def test_status_of_no_node_is_a_failure_that_names_the_pid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--root", str(tmp_path), "--pid", "agent"]) == 1
    assert "no agent runs here" in capsys.readouterr().err


def test_all_commands_can_be_listed() -> None:
    assert "inspect" in build_parser().format_help()


def test_a_copied_checkout_runs_without_being_installed(tmp_path: Path) -> None:
    """There is no version to be shown then; -S leaves out what pip installed."""
    for room in ("kubelet_py", "controlplane", "kubeclient", "runtime", "cni", "proxy"):
        (tmp_path / room).symlink_to(ROOT / room)

    def say(*argv: str) -> str:
        command = [sys.executable, "-S", *argv]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert say("-m", "kubelet_py", "kubeconfig", "--help").startswith("usage: kubelet-py kubeconfig")
    code = "from kubelet_py.cli import main; main.build_parser('kubeconfig').parse_args(['--version'])"
    assert say("-c", code) == "kubelet-py of a checkout that is not installed\n"
    code = "from kubelet_py.release import release; print(repr(release()))"
    assert say("-c", code) == "''\n", "what its Node says of its runtime"


def test_the_installed_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"kubelet-py {version('kubelet-py')}\n"
