"""What `kubelet-py status` finds out by itself, where the API server does not answer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kubelet_py.cli.main import main
from kubelet_py.cli.processes import ProcessIdentity
from kubelet_py.cli.settings import NodeSettings
from kubelet_py.cli.status import _process
from kubelet_py.paths import NodePaths
from runtime.state import Identity, SandboxState, boot_id, plain, stat_of, write_json


def sandbox(paths: NodePaths, name: str, start: int) -> None:
    """A pod whose pause container is this process, if `start` is when this process began."""
    folder = paths.sandboxes / name
    folder.mkdir(parents=True)
    write_json(f"{folder}/sandbox.json", {"config": {"namespace": "shop", "name": name}})
    pause = Identity(os.getpid(), start, boot_id())
    write_json(f"{folder}/state.json", plain(SandboxState(pause=pause)))


def test_pods_that_run_here_are_named_without_the_api_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = NodePaths(tmp_path)
    found = stat_of(os.getpid())
    assert found is not None
    sandbox(paths, "web", found[1])
    sandbox(paths, "ended", found[1] - 1)
    (paths.sandboxes / "being-made").mkdir()
    assert main(["status", "--root", str(tmp_path)]) == 1
    assert "running here  shop/web\n" in capsys.readouterr().out


def test_no_pod_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--root", str(tmp_path)]) == 1
    assert "running here  no pod\n" in capsys.readouterr().out


def test_a_node_that_still_waits_for_its_certificate_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = NodePaths(tmp_path)
    NodeSettings("n", "192.0.2.5", server="https://192.0.2.1:6443").save(paths)
    assert main(["status", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"this node has no certificate yet (look into {paths.logs}/agent.log)" in said
    paths.kubeconfig("kubelet").write_text("{")
    assert main(["status", "--root", str(tmp_path)]) == 1
    assert "kubelet.conf: unexpected end of data" in capsys.readouterr().out


@pytest.mark.parametrize("collected", [False, True])
def test_a_process_that_ends_meanwhile_is_not_running(collected: bool) -> None:
    child = subprocess.Popen(["sleep", "60"])
    known = ProcessIdentity.of(child.pid)
    assert known is not None
    assert _process(known, 3) is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if collected:
        child.wait()
    assert _process(known, 3) is None
    child.wait()
