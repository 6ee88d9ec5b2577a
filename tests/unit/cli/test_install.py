"""The unit file, and what `install` and `uninstall` ask of systemd (a recorded one)."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from kubelet_py.cli import notify, unit
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.main import main
from kubelet_py.cli.systemd import NotStarted, Systemd
from kubelet_py.paths import NodePaths

NODE = NodePaths(Path("/"))
PROGRAM = ("/bin/true",)


class Manager:
    """systemctl as a table: words → exit code and output."""

    def __init__(self, folder: Path, **answers: tuple[int, str]) -> None:
        self.units, self.booted = folder / "units", folder / "booted"
        self.booted.mkdir()
        self.answers, self.asked = answers, list[str]()
        self.systemd = Systemd(units=self.units, booted=self.booted, run=self.run)

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        assert argv[0] == "systemctl"
        self.asked.append(" ".join(argv[1:]))
        return self.answers.get(argv[1].replace("-", "_"), (0, ""))


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#")


def test_the_unit_spares_the_pods_and_comes_back() -> None:
    said = settings(unit.text(NODE, ["/opt/kubelet-py/venv/bin/kubelet-py"]))
    assert said["KillMode"] == "process" and said["Delegate"] == "yes"
    assert (said["Restart"], said["StartLimitIntervalSec"]) == ("always", "0")
    assert (said["LimitNOFILE"], said["TasksMax"]) == ("65536:1048576", "infinity")
    assert (said["LimitNPROC"], said["OOMScoreAdjust"]) == ("infinity", "-999")
    assert said["ExecStart"] == "/opt/kubelet-py/venv/bin/kubelet-py up --root /"
    assert said["WantedBy"] == "multi-user.target"
    assert said["Wants"] == "network-online.target"


def test_each_root_has_a_unit_of_its_own() -> None:
    other = NodePaths(Path("/srv/100% node"))
    assert unit.name(NODE) == "kubelet-py.service"
    assert unit.name(other) == f"kubelet-py-{other.instance}.service"
    said = settings(unit.text(other, PROGRAM))
    assert said["ExecStart"] == '/bin/true up --root "/srv/100%% node"'
    assert said["RequiresMountsFor"].startswith('"/srv/100%% node/etc/kubelet-py" ')


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("root", ["/", "/srv/a \"quoted\" 100% $HOME 'root'"])
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, root: str) -> None:
    paths = NodePaths(Path(root))
    file = tmp_path / unit.name(paths)
    file.write_text(unit.text(paths, PROGRAM))
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if file.name in line] == []


def test_install_writes_reads_and_enables(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    manager.systemd.require()
    assert not manager.systemd.installed("a.service")
    manager.systemd.install("a.service", "text")
    assert manager.systemd.installed("a.service")
    assert (manager.units / "a.service").read_text() == "text"
    assert [file.name for file in manager.units.iterdir()] == ["a.service"]
    assert manager.asked == ["daemon-reload", "enable a.service"]


def test_remove_undoes_install_and_may_be_repeated(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    manager.systemd.remove("a.service")
    assert manager.asked == []
    manager.systemd.install("a.service", "text")
    manager.asked.clear()
    manager.systemd.remove("a.service")
    assert manager.asked == ["disable --now a.service", "daemon-reload", "reset-failed a.service"]
    assert list(manager.units.iterdir()) == []


def test_a_unit_is_removed_where_systemd_does_not_run(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    manager.systemd.install("a.service", "text")
    wanted = manager.units / "multi-user.target.wants"
    wanted.mkdir()
    (wanted / "a.service").symlink_to(manager.units / "a.service")
    manager.asked.clear()
    manager.booted.rmdir()
    assert not manager.systemd.installed("a.service")
    manager.systemd.remove("a.service")
    assert manager.asked == [] and list(wanted.iterdir()) == []
    assert not (manager.units / "a.service").exists()


@pytest.mark.parametrize(
    ("said", "running"),
    [("active", True), ("activating", True), ("deactivating", True), ("inactive", False), ("failed", False)],
)
def test_a_unit_that_waits_for_its_restart_counts_as_running(
    tmp_path: Path, said: str, running: bool
) -> None:
    manager = Manager(tmp_path, is_active=(3, said))
    assert not manager.systemd.running("a.service"), "not installed"
    manager.systemd.install("a.service", "text")
    assert manager.systemd.running("a.service") is running


def test_what_systemd_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    manager = Manager(tmp_path, restart=(1, "Job for a.service failed.\nmore"), enable=(1, "Unit is masked."))
    with pytest.raises(NotStarted, match=r"Could not restart a.service by systemd: Job .* \(see: journal"):
        manager.systemd.restart("a.service")
    with pytest.raises(CommandError, match=r"Could not enable a.service by systemd: Unit is masked\."):
        manager.systemd.install("a.service", "text")


def test_without_systemd_the_refusal_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"not run by systemd .*kubelet-py up"):
        Systemd(units=tmp_path, booted=tmp_path / "none").require()


def test_the_unit_is_printed_without_changing_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install", "--print", "--root", str(tmp_path)]) == 0
    assert f"up --root {tmp_path}\n" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_service_manager_is_told_once_asked_for(tmp_path: Path) -> None:
    assert notify.take({}) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "socket"))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "socket"), "PATH": "/bin"}
        tell = notify.take(environment)
        assert tell is not None and environment == {"PATH": "/bin"}
        tell("READY=1")
        assert manager.recv(100) == b"READY=1"
    abstract = f"\0kubelet-py-test-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(abstract)
        tell = notify.take({"NOTIFY_SOCKET": "@" + abstract[1:]})
        assert tell is not None
        tell("STOPPING=1")
        assert manager.recv(100) == b"STOPPING=1"
