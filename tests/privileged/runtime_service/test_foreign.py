"""Pods whose containers another OCI runtime makes: Debian's runc and crun, and our own command line.

The shim is the same, so its own tests are run here again, once for each runtime; below them is what only a
foreign one can get wrong.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.capabilities import NAMES
from runtime.errors import StartError
from runtime.oci_launcher import write
from runtime.recovery import folders
from runtime.values import OciRuntime
from tests.privileged.runtime_service.harness import Node, wait_for
from tests.privileged.runtime_service.test_containers import (  # noqa: F401
    test_container_runs_to_completion_and_its_output_is_logged,
    test_containers_of_a_pod_share_its_network_but_not_their_processes,
    test_host_network_pod_keeps_the_hosts_namespaces,
    test_log_is_reopened_after_rotation,
    test_memory_hog_is_oom_killed,
    test_non_root_container_may_open_its_stdout_again,
    test_obedient_container_stops_by_its_signal,
    test_own_stop_signal_is_used,
    test_removed_container_is_unknown_and_its_cgroup_and_files_go,
    test_shared_process_namespace_shows_the_other_container_and_pause,
    test_stopped_sandbox_has_no_process_and_may_be_stopped_again,
    test_stubborn_container_is_killed_after_its_grace,
)
from tests.privileged.runtime_service.test_oom import (  # noqa: F401
    test_killed_child_is_told_once_while_its_container_goes_on,
)
from tests.privileged.runtime_service.test_sessions import (  # noqa: F401
    test_attached_clients_all_see_the_output_and_the_log_does_too,
    test_client_that_leaves_takes_its_exec_along,
    test_container_with_a_terminal_is_attached_resized_and_logged,
    test_exec_stdin_reaches_the_process_and_ends,
    test_exec_sync_returns_output_and_code,
    test_exec_timeout_kills_all_it_started,
    test_exec_with_a_terminal_has_a_name_and_a_size,
    test_interrupt_typed_into_a_terminal_reaches_the_process,
    test_many_execs_leave_no_descriptor_zombie_or_cgroup,
)
from tests.privileged.runtime_service.test_survival import (  # noqa: F401
    test_container_is_born_without_foreign_descriptors,
    test_everything_is_removed_without_agent_and_without_shims,
    test_killed_shim_ends_its_pod_and_the_agent_hears_of_it,
    test_next_agent_adopts_and_learns_what_happened_in_between,
)

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="session")
def own_command(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bin") / "kubelet-py-oci"
    write(path, path.with_suffix(".code"))
    return str(path)


@pytest.fixture(params=["runc", "crun", "kubelet-py-oci"])
def runtime(request: pytest.FixtureRequest, own_command: str) -> OciRuntime:
    if request.param == "kubelet-py-oci":
        return OciRuntime("own", own_command, hybrid_cgroups=True)
    path = shutil.which(request.param)
    if path is None:
        pytest.skip(f"needs {request.param} (apt-get install {request.param})")
    return OciRuntime(request.param, path)


def known(node: Node) -> list[str]:
    """The containers that the runtime itself knows."""
    assert node.runtime is not None
    root = node.folder / "run" / "oci" / node.runtime.name
    return os.listdir(root) if root.is_dir() else []


def test_container_is_the_runtimes_until_it_is_removed(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.run(sandbox, ["sleep", "1000"])
    assert known(node) == [container]
    node.service.remove_container(container)
    wait_for(lambda: known(node) == [])
    node.service.remove_pod_sandbox(sandbox.id)
    parent = sandbox.config.cgroup_parent
    node.driver.remove(parent, recursive=True)
    left = [*Path("/sys/fs/cgroup").glob(parent), *Path("/sys/fs/cgroup").glob(f"*/{parent}")]
    assert left == [], "the runtime made cgroups in more trees than were cleared"


def test_unknown_program_is_a_start_error_in_the_runtimes_words(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.create(sandbox, ["nope"])
    with pytest.raises(StartError, match=r"OCI runtime create failed: .*nope"):
        node.service.start_container(container)
    ended = node.service.container(container)
    assert (ended.state, ended.exit_code, ended.reason) == ("EXITED", 128, "StartError")
    assert known(node) == []
    running = node.run(sandbox, ["sleep", "1000"])
    with pytest.raises(StartError, match=r"OCI runtime exec failed: .*nope"):
        node.service.exec_sync(running, ["nope"], 10)


def test_mount_of_the_root_is_not_the_hosts(node: Node) -> None:
    before = Path("/proc/self/mounts").read_text()
    node.run(node.sandbox(), ["sleep", "1000"])
    assert Path("/proc/self/mounts").read_text() == before


ADMIN = ["CAP_SYS_ADMIN"]
MOUNTING = {"bounding": ADMIN, "effective": ADMIN, "permitted": ADMIN}


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder whose mounts are shared, as systemd makes all of them."""
    folder = tmp_path / "shared"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shared", folder], check=True)
    subprocess.run(["mount", "--make-shared", folder], check=True)
    (folder / "from-host").mkdir()
    (folder / "from-pod").mkdir()
    yield folder
    for made in (folder / "from-pod", folder / "from-host", folder):
        if os.path.ismount(made):
            subprocess.run(["umount", made], check=True)


def test_mounts_go_both_ways_where_a_pod_asks_for_it(node: Node, shared: Path) -> None:
    both = {"destination": "/both", "type": "bind", "source": str(shared), "options": ["rbind", "rshared"]}
    script = """
        mount -t tmpfs x /both/from-pod && echo mounted
        while ! grep -q /both/from-host /proc/self/mounts; do sleep 0.05; done
        echo seen; sleep 1000
    """
    argv = ["sh", "-c", script]
    container = node.run(node.sandbox(), argv, mounts=[both], propagation="rshared", capabilities=MOUNTING)
    wait_for(lambda: b"mounted" in node.log(container))
    assert os.path.ismount(shared / "from-pod")
    subprocess.run(["mount", "-t", "tmpfs", "y", shared / "from-host"], check=True)
    wait_for(lambda: b"seen" in node.log(container))


def test_limits_are_set_and_changed_through_the_runtime(node: Node) -> None:
    sandbox = node.sandbox()
    limits = {"memory": {"limit": 32 << 20, "swap": 32 << 20}}
    container = node.run(sandbox, ["sleep", "1000"], resources=limits)
    cgroup = node.driver.open(f"{sandbox.config.cgroup_parent}/{container}")
    assert cgroup.stats().memory_limit == 32 << 20
    node.service.update_resources(container, {"memory": {"limit": 64 << 20, "swap": 64 << 20}})
    assert cgroup.stats().memory_limit == 64 << 20
    assert cgroup.stats().pids >= 1


def test_privileged_container_gets_what_we_have_ourselves(node: Node) -> None:
    sets = {"bounding": [*NAMES], "effective": [*NAMES], "permitted": [*NAMES]}
    container = node.run(node.sandbox(), ["sleep", "1000"], capabilities=sets, oomScoreAdj=500)
    argv = ["cat", "/proc/self/status", "/proc/self/oom_score_adj", "/proc/1/oom_score_adj"]
    lines = node.service.exec_sync(container, argv, 10).stdout.decode().splitlines()
    own = Path("/proc/self/status").read_text().splitlines()
    [held] = [line for line in own if line.startswith("CapPrm")]
    assert held in lines
    assert lines[-2:] == ["500", "500"]


@pytest.mark.parametrize("mishap", ["uninstalled", "failing"])
def test_container_of_a_runtime_that_is_no_use_any_more_can_be_removed(
    node: Node, tmp_path: Path, mishap: str
) -> None:
    assert node.runtime is not None
    program = tmp_path / "runtime"
    program.symlink_to(node.runtime.path)
    node.service.close()
    node.runtime = replace(node.runtime, path=str(program))
    node.service = node.fresh()
    node.service.start()
    container = node.run(node.sandbox(), ["sleep", "1000"])
    program.unlink()
    if mishap == "failing":
        program.symlink_to("/bin/false")
    node.service.remove_container(container)
    wait_for(lambda: known(node) == [] and not folders(node.folder / "containers"))


def test_unknown_handler_is_refused_and_nothing_is_made(node: Node) -> None:
    with pytest.raises(StartError, match='no runtime for "kata" is configured'):
        node.sandbox(runtime_handler="kata")
    assert folders(node.folder / "run" / "sandboxes") == []


SPY = """#!/bin/sh
{ echo "$@"; env; grep -E 'SigIgn|SigBlk' /proc/self/status; ls -l /proc/self/fd; } > FOLDER/told
exit 5
"""


class TestUnderASpy:
    """What a runtime is started with, told by one that does nothing else."""

    @pytest.fixture
    def runtime(self, tmp_path: Path) -> OciRuntime:
        program = tmp_path / "spy"
        program.write_text(SPY.replace("FOLDER", str(tmp_path)))
        program.chmod(0o755)
        return OciRuntime("spy", str(program), str(tmp_path / "root"), ("--debug",))

    def test_it_gets_the_commands_words_and_nothing_of_ours(self, node: Node, tmp_path: Path) -> None:
        container = node.create(node.sandbox(), ["true"])
        with pytest.raises(StartError, match=r"OCI runtime create failed: .*/spy ended with code 5"):
            node.service.start_container(container)
        # Its last command is the one that cleans up after the failed create.
        words, *rest = (tmp_path / "told").read_text().splitlines()
        folder = node.folder / "containers" / container
        log = f"--log {folder}/runtime.log --log-format json"
        assert words == f"--root {tmp_path}/root {log} --debug delete --force {container}"
        assert {line.partition("=")[0] for line in rest if "=" in line} <= {
            "PATH",
            "PWD",
            "SHLVL",
            "_",
            "OLDPWD",
        }
        masks = [int(line.split()[1], 16) & 0x7FFFFFFF for line in rest if line.startswith("Sig")]
        assert masks == [0, 0], "a program that its runtime starts must not ignore SIGPIPE as we do"
        opened = [line for line in rest if " -> " in line]
        assert all("/dev/null" in line or "/told" in line or "/proc/" in line for line in opened[:3])
        assert not any("shim" in line or "socket" in line for line in opened)
