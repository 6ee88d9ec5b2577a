"""Who may be killed when: the agent, the forkserver, the shim, everything."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import recovery
from runtime.errors import ShimError, StartError
from tests.privileged.runtime_service.harness import Node, gone, shims, wait_for

pytestmark = pytest.mark.privileged

TICKER = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"]


def shim_of(node: Node, sandbox_id: str) -> int:
    path = node.folder / "run" / "sandboxes" / sandbox_id / "state.json"
    return int(json.loads(path.read_text())["shim"]["pid"])


def test_next_agent_adopts_and_learns_what_happened_in_between(node: Node) -> None:
    sandbox = node.sandbox()
    ticker = node.run(sandbox, TICKER)
    brief = node.run(sandbox, ["sh", "-c", "sleep 0.3; exit 9"])
    made = node.create(sandbox, ["true"])
    pid = node.service.container(ticker).pid
    node.service.close()
    ended = node.folder / "containers" / brief / "state.json"
    wait_for(lambda: json.loads(ended.read_text())["state"] == "EXITED")  # its shim told nobody else
    node.service = node.fresh()
    node.service.start()
    assert node.service.list_sandboxes()[0].state == "READY"
    assert (node.service.container(ticker).state, node.service.container(ticker).pid) == ("RUNNING", pid)
    assert node.service.container(brief).exit_code == 9
    node.service.start_container(made)
    assert node.ended(made).exit_code == 0
    numbers = [int(line) for line in node.log(ticker).split()]
    assert numbers == list(range(1, len(numbers) + 1))
    node.service.stop_container(ticker, 0)
    assert node.ended(ticker).exit_code == 137


AGENT = """
    import sys, time
    from pathlib import Path
    from runtime.cgroups import detect
    from runtime.service import RuntimeService
    from tests.privileged.runtime_service.harness import Node
    folder, rootfs = Path(sys.argv[1]), Path(sys.argv[2])
    node = Node(folder, rootfs, detect(), None)
    node.service = node.fresh()
    node.service.start()
    sandbox = node.sandbox()
    print(node.run(sandbox, %r), flush=True)
    time.sleep(1000)
"""


def killed_agent(node: Node) -> str:
    """Run an agent in a process of its own, have it start a ticker, SIGKILL it; the container's id."""
    program = textwrap.dedent(AGENT % (TICKER,))
    agent = subprocess.Popen(
        [sys.executable, "-c", program, str(node.folder), str(node.rootfs)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert agent.stdout is not None
    container = agent.stdout.readline().strip()
    agent.kill()
    agent.wait()
    agent.stdout.close()
    return container


def test_sigkilled_agent_leaves_containers_and_logs_running(node: Node) -> None:
    node.service.close()
    container = killed_agent(node)
    node.service = node.fresh()
    node.service.start()
    assert node.service.container(container).state == "RUNNING"
    seen = len(node.log(container))
    wait_for(lambda: len(node.log(container)) > seen)


BUSY_AGENT = """
    import sys, threading
    from pathlib import Path
    from runtime.cgroups import detect
    from tests.privileged.runtime_service.harness import Node
    node = Node(Path(sys.argv[1]), Path(sys.argv[2]), detect(), None)
    node.service = node.fresh()
    node.service.start()
    def work():
        while True:
            for remove in (False, True):
                sandbox = node.sandbox()
                container = node.run(sandbox, ["sleep", "1000"])
                node.service.exec_sync(container, ["true"], 5)
                if remove:
                    node.service.remove_pod_sandbox(sandbox.id)
    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    threading.Event().wait()
"""


@pytest.mark.parametrize("seconds", [0.12, 0.2, 0.27, 0.31])
def test_agent_killed_at_any_moment_leaves_only_what_the_next_one_knows(node: Node, seconds: float) -> None:
    node.service.close()
    agent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BUSY_AGENT), str(node.folder), str(node.rootfs)],
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[3],
    )
    time.sleep(seconds)
    agent.kill()
    agent.wait()
    node.service = node.fresh()
    node.service.start()
    ready = [sandbox for sandbox in node.service.list_sandboxes() if sandbox.state == "READY"]
    wait_for(lambda: len(shims(node.folder)) == len(ready))
    for container in node.service.list_containers():
        assert container.state != "RUNNING" or not gone(container.pid)


def spares(node: Node) -> list[int]:
    """Forks of the forkserver that wait for a pod, and have let go of its line to the agent (fd 3)."""
    forkserver = node.service._forkserver._pid
    line = os.readlink(f"/proc/{forkserver}/fd/3")
    children = Path(f"/proc/{forkserver}/task/{forkserver}/children").read_text().split()
    running = shims(node.folder)
    return [int(pid) for pid in children if int(pid) not in running and line not in opened(int(pid))]


def opened(pid: int) -> set[str]:
    """What its descriptors lead to; nothing when it has ended."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            found.add(os.readlink(entry))
    return found


def only(found: list[int]) -> list[int]:
    """One; while a spare is becoming a shim there are two."""
    return found if len(found) == 1 else []


def test_forkserver_ends_with_its_agent(node: Node) -> None:
    forkserver = node.service._forkserver._pid
    assert b"runtime.forkserver" in Path(f"/proc/{forkserver}/cmdline").read_bytes()
    node.sandbox()
    (spare,) = wait_for(lambda: only(spares(node)))
    node.service.close()
    assert gone(forkserver)
    wait_for(lambda: gone(spare))
    node.service = node.fresh()
    node.service.start()


def test_killed_forkserver_is_replaced(node: Node) -> None:
    forkserver = node.service._forkserver._pid
    node.sandbox()
    (spare,) = wait_for(lambda: only(spares(node)))
    os.kill(forkserver, signal.SIGKILL)
    wait_for(lambda: gone(forkserver))
    assert node.ended(node.run(node.sandbox(), ["true"])).exit_code == 0
    wait_for(lambda: gone(spare))


def test_killed_spare_costs_no_pod(node: Node) -> None:
    """A fork that waits for a pod is ready before it is needed, and done without when it has been killed."""
    node.sandbox()  # until then the forkserver rehearses
    for kill in (False, True, False):
        (spare,) = wait_for(lambda: only(spares(node)))
        if kill:
            os.kill(spare, signal.SIGKILL)
            wait_for(lambda spare=spare: gone(spare))
        assert (shim_of(node, node.sandbox().id) == spare) is not kill


def test_killed_shim_ends_its_pod_and_the_agent_hears_of_it(node: Node) -> None:
    sandbox, other = node.sandbox(), node.sandbox()
    container = node.run(sandbox, TICKER)
    spared = node.run(other, TICKER)
    pids = [sandbox.pid, node.service.container(container).pid]
    os.kill(shim_of(node, sandbox.id), signal.SIGKILL)
    ended = node.ended(container)
    assert (ended.exit_code, ended.reason) == (137, "ContainerStatusUnknown")
    wait_for(lambda: node.service.list_sandboxes()[0].state == "NOTREADY")
    for pid in pids:
        wait_for(lambda pid=pid: gone(pid))
    wait_for(lambda: ("exited", container) in [(e.type, e.container_id) for e in node.events])
    assert node.service.container(spared).state == "RUNNING"
    node.service.remove_pod_sandbox(sandbox.id)


def test_killed_shim_ends_its_pod_though_a_container_is_removed_at_that_moment(node: Node) -> None:
    sandbox = node.sandbox()
    removed, other = node.run(sandbox, TICKER), node.run(sandbox, TICKER)
    folder = node.folder / "containers" / removed
    hidden = folder.rename(folder.with_name(".away"))
    os.kill(shim_of(node, sandbox.id), signal.SIGKILL)
    wait_for(lambda: node.service.list_sandboxes()[0].state == "NOTREADY")
    assert node.service.container(other).state == "EXITED"
    hidden.rename(folder)


def test_a_pod_that_could_not_be_ended_with_its_shim_is_ended_by_the_next_request(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.run(sandbox, TICKER)
    pid = node.service.container(container).pid
    folder = node.folder / "run" / "sandboxes" / sandbox.id
    shim = shim_of(node, sandbox.id)
    hidden = folder.rename(folder.with_name(".away"))
    os.kill(shim, signal.SIGKILL)
    wait_for(lambda: sandbox.id not in node.service._shims.links)
    wait_for(lambda: "runtime-lost" not in {thread.name for thread in threading.enumerate()})
    assert node.service.list_sandboxes()[0].state == "READY"
    hidden.rename(folder)
    with pytest.raises(ShimError, match="has gone"):
        node.service.reopen_log(container)
    assert node.service.list_sandboxes()[0].state == "NOTREADY"
    wait_for(lambda: gone(pid))


def test_a_lost_container_is_ended_once_though_two_find_its_shim_gone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who watches the shim and who asks it for something: both wrote one file, which then was no JSON."""
    sandbox = node.sandbox()
    container = node.run(sandbox, TICKER)
    folder = node.folder / "containers" / container
    begun, both, save = threading.Event(), threading.Barrier(2), recovery._save

    def save_together(place: Path, ended: dict[str, Any]) -> None:
        if place == folder:
            begun.set()
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(1.0)  # for a second one, which must not come
        save(place, ended)

    monkeypatch.setattr(recovery, "_save", save_together)
    os.kill(shim_of(node, sandbox.id), signal.SIGKILL)
    assert begun.wait(10)
    with pytest.raises(ShimError, match="has gone"):
        node.service.reopen_log(container)
    wait_for(lambda: "runtime-lost" not in {thread.name for thread in threading.enumerate()})
    told = [event.type for event in node.events if event.container_id == container]
    assert told.count("exited") == 1
    assert recovery.container_state(folder).state == "EXITED"


def test_shim_killed_while_no_agent_looked_is_noticed_at_start(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.run(sandbox, TICKER)
    pid = node.service.container(container).pid
    node.service.close()
    shim = shim_of(node, sandbox.id)
    os.kill(shim, signal.SIGKILL)
    wait_for(lambda: gone(shim))
    assert os.path.exists(f"/proc/{pid}")
    node.service = node.fresh()
    node.service.start()
    assert node.service.container(container).state == "EXITED"
    assert node.service.list_sandboxes()[0].state == "NOTREADY"
    wait_for(lambda: gone(pid))


@pytest.mark.parametrize("text", ["", '{"state": "EXITED"}0}'], ids=["empty", "cut short"])
@pytest.mark.parametrize("name", ["config.json", "state.json", "sandbox.json"])
def test_a_record_that_cannot_be_read_holds_nobody_up(node: Node, name: str, text: str) -> None:
    """A power cut leaves one empty: no agent started then, and `down` and `reset` failed."""
    good, bad = node.sandbox(), node.sandbox()
    kept, lost = node.run(good, TICKER), node.run(bad, TICKER)
    pid = node.service.container(lost).pid
    node.service.close()
    of_pod = name == "sandbox.json"
    damaged = node.folder / (f"run/sandboxes/{bad.id}" if of_pod else f"containers/{lost}") / name
    damaged.write_text(text)
    node.service = node.fresh()
    node.service.start()
    assert node.service.container(kept).state == "RUNNING"
    wait_for(lambda: gone(pid))
    assert [each.id for each in node.service.list_sandboxes()].count(bad.id) == (not of_pod)
    if name == "state.json":
        assert node.ended(lost).exit_code == 137
    else:
        assert lost not in [each.id for each in node.service.list_containers()]
        assert node.service.wait_for_removals(60)
        assert not damaged.parent.exists()
    node.service.close()
    if damaged.exists():
        damaged.write_text(text)
    node.fresh().remove_everything()
    assert not list((node.folder / "containers").iterdir())
    node.service = node.fresh()
    node.service.start()
    assert node.service.list_sandboxes() == []


def test_everything_is_removed_without_agent_and_without_shims(node: Node) -> None:
    kept, lost = node.sandbox(), node.sandbox()
    containers = [node.run(kept, TICKER), node.run(lost, TICKER)]
    pids = [node.service.container(c).pid for c in containers] + [kept.pid, lost.pid]
    node.service.close()
    os.kill(shim_of(node, lost.id), signal.SIGKILL)
    node.fresh().remove_everything()
    assert all(gone(pid) for pid in pids)
    assert not node.driver.exists(kept.config.cgroup_parent)
    assert not list((node.folder / "containers").iterdir())
    node.service = node.fresh()
    node.service.start()
    assert node.service.list_sandboxes() == []


def kinds_opened(pid: int) -> list[str]:
    """What its descriptors are, as far as it can be told from one look."""
    try:
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except FileNotFoundError:
        return []  # one was closed meanwhile
    return sorted(name.split(":")[0] if ":" in name else os.path.basename(name) for name in opened)


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("resting", [False, True], ids=["at once", "after a rest"])
def test_program_that_is_missing_leaves_the_shim_no_child(node: Node, resting: bool) -> None:
    sandbox = node.sandbox()
    shim = shim_of(node, sandbox.id)
    if resting:
        wait_for(lambda: children(shim) == [str(sandbox.pid)])
    for _ in range(2):
        with pytest.raises(StartError, match="no-such-program"):
            node.run(sandbox, ["no-such-program"])
    wait_for(lambda: children(shim) == [str(sandbox.pid)])


def test_shim_holds_no_secret_and_no_descriptor_of_the_agent(node: Node) -> None:
    sandbox = node.sandbox()
    shim = shim_of(node, sandbox.id)
    environment = Path(f"/proc/{shim}/environ").read_bytes().split(b"\0")
    names = {entry.split(b"=")[0] for entry in environment if entry}
    assert names <= {b"PATH", b"LANG", b"LC_CTYPE", b"MALLOC_ARENA_MAX"}
    # Its input is a null device in a mount of its own, at the root of that. One socket more, and a child, as
    # long as the worker that has started pause waits for containers.
    held = ["", *["anon_inode"] * 2, "null", "shim.log", *["socket"] * 2]
    wait_for(lambda: kinds_opened(shim) == held)
    wait_for(lambda: children(shim) == [str(sandbox.pid)])
    assert os.stat(node.folder / "run" / "sandboxes" / sandbox.id / "shim.sock").st_mode & 0o777 == 0o600


def test_shims_cannot_be_dumped() -> None:
    program = "import ctypes, runtime.forkserver as f; f.settle(2); print(ctypes.CDLL(None).prctl(3))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, cwd=root)
    assert done.stdout == b"0\n"


def test_shim_is_a_daemon(node: Node) -> None:
    shim = shim_of(node, node.sandbox().id)
    assert os.getsid(shim) == shim
    assert os.listdir(f"/proc/{shim}/task") == [str(shim)]
    node.service.close()
    wait_for(lambda: parent(shim) == 1 or parent(shim) != os.getpid())
    node.service = node.fresh()
    node.service.start()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def test_container_is_born_without_foreign_descriptors(node: Node) -> None:
    container = node.run(node.sandbox(), ["sh", "-c", "ls /proc/self/fd | wc -l"])
    node.ended(container)
    assert node.log(container).strip() == b"4"  # 0, 1, 2 and ls's own


def open_files() -> tuple[int, int]:
    """How many network namespaces this process holds, and how much else."""
    links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    networks = sum("/net:[" in link for link in links)
    return networks, len(links) - networks


def test_pods_one_after_another_leave_nothing(node: Node) -> None:
    def all_gone() -> bool:
        folders = list((node.folder / "containers").iterdir())
        return not folders and not shims(node.folder) and not node.service._shims.links

    def left() -> tuple[int, int]:
        assert node.service.wait_for_removals(30)  # the cleaner has folders open
        wait_for(all_gone)
        return open_files()

    node.service.remove_pod_sandbox(node.sandbox().id)
    before = left()
    for _ in range(30):
        sandbox = node.sandbox()
        node.run(sandbox, ["true"])
        node.service.remove_pod_sandbox(sandbox.id)

    def no_more() -> bool:
        networks, others = left()
        return networks <= 1 and others <= before[1]  # the next pod's network namespace is there

    wait_for(no_more)


FILLER = ["sh", "-c", f"while :; do echo {'x' * 8000}; done"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_end_is_told_and_everything_removed_on_a_disk_that_is_full(small_disk: Path, node: Node) -> None:
    """A shim that could not write down that it could not write to the log went no further."""
    sandbox = node.sandbox()
    container = node.run(sandbox, FILLER)
    wait_for(lambda: os.statvfs(small_disk).f_bavail == 0, 60)
    node.service.stop_container(container, 0)
    assert node.ended(container, 60).exit_code == 137
    node.service.stop_pod_sandbox(sandbox.id)
    node.service.remove_container(container)
    node.service.remove_pod_sandbox(sandbox.id)
    assert node.service.wait_for_removals(60)
    assert node.service.list_containers() == []


def test_a_node_is_reset_on_a_disk_that_is_full(small_disk: Path, node: Node) -> None:
    node.run(node.sandbox(), FILLER)
    wait_for(lambda: os.statvfs(small_disk).f_bavail == 0, 60)
    node.service.close()
    node.fresh().remove_everything()
    assert list((small_disk / "run/sandboxes").iterdir()) == []
    assert list((small_disk / "containers").iterdir()) == []
    node.service = node.fresh()
    node.service.start()
