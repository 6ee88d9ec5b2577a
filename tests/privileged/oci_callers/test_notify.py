"""sd_notify(3) out of a container: create and start, run in the foreground and detached."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle
from ready_socket import SAYS, Systemd

pytestmark = pytest.mark.privileged

@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path)
    yield made
    made.close()


@pytest.fixture
def telling(bundle: Bundle) -> Bundle:
    """A container that says that it is ready, as a user, by the host's Python."""
    for name in ("lib", "lib64"):
        (bundle.root / name).symlink_to(f"usr/{name}")
    bundle.mount(destination="/usr", type="bind", source="/usr", options=["rbind", "ro"])

    def user(config: dict[str, Any]) -> None:
        config["process"].update(args=["/usr/bin/python3", "-c", SAYS], user={"uid": 1000, "gid": 1000})

    bundle.change(user)
    return bundle


def environment(systemd: Systemd) -> dict[str, str]:
    return {**os.environ, "NOTIFY_SOCKET": systemd.path}


def started(bundle: Bundle, systemd: Systemd, *argv: str) -> subprocess.Popen[bytes]:
    command = [bundle.binary, "--root", str(bundle.state), *argv]
    null = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment(systemd), stdin=null, stdout=null, stderr=null)


def test_start_returns_when_the_container_is_ready(telling: Bundle, systemd: Systemd) -> None:
    made = started(telling, systemd, "create", "--bundle", str(telling.folder), telling.identity)
    assert made.wait(60) == 0 and systemd.heard(0.2) == []
    start = started(telling, systemd, "start", telling.identity)
    assert systemd.heard() == ["READY=1", f"MAINPID={telling.pid()}", "BARRIER=1"]
    assert start.wait(60) == 0
    assert systemd.heard(0.2) == [], "its other words are not for the unit"
    assert telling("delete", "--force", telling.identity).returncode == 0
    assert not list(telling.state.glob(f"{telling.identity}*"))


def test_run_detached_and_in_the_foreground(telling: Bundle, systemd: Systemd) -> None:
    run = ["run", "--bundle", str(telling.folder)]
    detached = started(telling, systemd, *run, "--detach", telling.identity)
    assert systemd.heard() == ["READY=1", f"MAINPID={telling.pid()}", "BARRIER=1"]
    assert detached.wait(60) == 0
    assert telling("delete", "--force", telling.identity).returncode == 0
    foreground = started(telling, systemd, *run, telling.identity)
    assert systemd.heard() == ["READY=1", f"MAINPID={telling.pid()}", "BARRIER=1"]
    assert foreground.poll() is None
    foreground.terminate()
    assert foreground.wait(60) == 5


def test_a_container_that_ends_before_it_is_ready_holds_up_nobody(bundle: Bundle, systemd: Systemd) -> None:
    bundle.args("sh", "-c", "echo $NOTIFY_SOCKET; stat -c '%a %U' /run/notify; touch /run/notify/x; exit 3")
    with open(bundle.folder / "output", "w") as output:
        done = bundle(
            "run", "--bundle", str(bundle.folder), bundle.identity, capture_output=False, stdout=output,
            stderr=output, env=environment(systemd),
        )  # fmt: skip
    assert done.returncode == 3
    assert bundle.output().splitlines()[:2] == ["/run/notify/notify.sock", "755 root"]
    assert "Read-only file system" in bundle.output() and systemd.heard(0.2) == []


def test_nothing_of_it_is_there_without_systemd(bundle: Bundle) -> None:
    done = bundle.run("echo [$NOTIFY_SOCKET]; ls /run/notify")
    assert done.stdout == "[]\n" and "No such file" in done.stderr


def test_a_socket_that_is_gone_is_told_and_the_container_runs(telling: Bundle, systemd: Systemd) -> None:
    made = started(telling, systemd, "create", "--bundle", str(telling.folder), telling.identity)
    assert made.wait(60) == 0
    os.unlink(systemd.path)
    start = telling("start", telling.identity, env=environment(systemd))
    assert start.returncode == 0
    assert f"Could not tell systemd that {telling.identity} is ready: No such file" in start.stderr
    assert telling.pid() > 0
    for _ in range(1000):
        if '"running"' in telling("state", telling.identity).stdout:
            return
        time.sleep(0.02)
    raise AssertionError("it does not run")


def test_ids_of_others_are_not_taken_for_the_folder(bundle: Bundle, systemd: Systemd) -> None:
    bundle.args("sleep", "1000")
    made = started(bundle, systemd, "create", "--bundle", str(bundle.folder), "notify")
    assert made.wait(60) == 0
    assert bundle("delete", "--force", "notify").returncode == 0
    assert list(bundle.state.glob("[!.]*")) == []
