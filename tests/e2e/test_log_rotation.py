"""The agent's own loop rotates the log of a busy container, and `kubectl logs -f` reads on through it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_node import Node, pod

pytestmark = pytest.mark.e2e

MAX_SIZE, MAX_FILES, ROTATIONS = 256 * 1024, 5, 7
CONFIGURATION = f"""
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerLogMaxSize: {MAX_SIZE // 1024}Ki
containerLogMaxFiles: {MAX_FILES}
containerLogMonitorInterval: 1s
"""
# A thousand lines at once, then a breath: a follower that is slower than the writer would meet files that
# are removed already, here as upstream.
WRITER = """
at=1
while [ ! -e /stop ]; do seq $at $((at + 999)); at=$((at + 1000)); sleep 0.02; done
exit 1
"""
LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout F (\d+)")


@pytest.fixture(scope="module")
def rotating(unstarted_node: Node) -> Iterator[Node]:
    path = unstarted_node.root / "kubelet.yaml"
    path.write_text(CONFIGURATION)
    unstarted_node.cli("up", "--detach", "--kubelet-config", str(path))
    yield unstarted_node
    path.unlink()


def files_of(node: Node, name: str) -> list[Path]:
    """The first attempt's log, the oldest file first."""
    folders = list((node.root / "var/log/pods").glob(f"default_{name}_*/main"))
    files = sorted(folders[0].glob("0.log.*")) if folders else []
    return [*files, *(folder / "0.log" for folder in folders)]


def numbers(files: list[Path]) -> list[int]:
    """What the container wrote, as the files have it; every line must be whole."""
    found = []
    for file in files:
        for line in file.read_bytes().splitlines():
            match = LINE.fullmatch(line)
            assert match, (file.name, line)
            found.append(int(match[1]))
    return found


def test_busy_log_is_rotated_by_the_agent_and_followed_without_a_gap(rotating: Node) -> None:
    node = rotating
    node.apply(pod("busy", WRITER))
    node.wait_running("busy")
    seen: set[str] = set()
    follow = subprocess.Popen(
        node.kubectl_argv("logs", "-f", "busy"), stdout=subprocess.PIPE, text=True, env=node.environment()
    )

    def rotated_often() -> bool:
        seen.update(file.name for file in files_of(node, "busy"))
        return len(seen) > ROTATIONS

    try:
        node.until("rotated seven times", rotated_often, 120)
        node.kubectl("exec", "busy", "--", "touch", "/stop")
        output, _ = follow.communicate(timeout=120)
    finally:
        follow.kill()
        follow.wait()
    followed = [int(line) for line in output.splitlines()]
    # It began with the file that was the current one when kubectl came.
    assert followed == list(range(followed[0], followed[-1] + 1)) != []
    assert len(followed) > len(kept := numbers(files_of(node, "busy")))
    files = files_of(node, "busy")
    assert MAX_FILES - 1 <= len(files) <= MAX_FILES
    assert all(file.stat().st_size >= MAX_SIZE for file in files[:-1])
    assert kept == followed[-len(kept) :], "what was not removed joins up to the last line"
    node.until("restarted", lambda: node.get("pod", "busy")["status"]["containerStatuses"][0]["restartCount"])
    previous = [int(line) for line in node.kubectl("logs", "busy", "--previous").out.splitlines()]
    assert previous == numbers(files[-1:]), "as upstream: of an earlier attempt only its last file"
    node.kubectl("delete", "pod", "busy", "--force", "--grace-period=0")
