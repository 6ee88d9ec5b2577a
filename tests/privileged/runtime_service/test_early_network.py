"""The network namespace that the agent makes before pause: it is the pod's, and nobody else's."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime import shim_link, state
from runtime.early_network import EarlyNetwork, made
from runtime.errors import CgroupError, StartError
from runtime.forkserver_link import Forkserver
from runtime.linux import LinuxKernel
from runtime.oci_config import pause_config
from runtime.spare_network import CALM_SECONDS, SpareNetwork
from runtime.streams import REQUEST, pack
from runtime.values import SandboxConfig
from tests.privileged.runtime_service.harness import ROOT_CGROUP, Node, shims, wait_for

pytestmark = pytest.mark.privileged


def config(**values: object) -> SandboxConfig:
    known = {"name": "pod", "namespace": "test", "uid": "u1", "hostname": "pod-name"}
    return SandboxConfig(cgroup_parent=f"{ROOT_CGROUP}/pod", **{**known, **values})  # type: ignore[arg-type]


def namespace(path: str) -> int:
    return os.stat(path).st_ino


def own() -> int:
    return namespace("/proc/thread-self/ns/net")


def test_what_is_wired_early_is_the_pods_network(node: Node) -> None:
    before = own()
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "17"}
    start = node.service.begin_pod_sandbox(config(sysctls=sysctls))
    early = namespace(start.netns)
    assert early != before == own()
    sandbox = start.finish()
    assert sandbox.id == start.id and sandbox.netns.startswith(f"/proc/{sandbox.pid}/")
    assert namespace(sandbox.netns) == early
    assert start.finish() is sandbox and node.service.list_sandboxes() == [sandbox]
    # The descriptor that held it is closed; its number may be another's by now.
    assert not os.path.exists(start.netns) or namespace(start.netns) != early
    container = node.run(sandbox, ["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/net/dev"])
    assert node.ended(container).exit_code == 0
    port, *devices = node.log(container).decode().splitlines()
    assert port == "17" and [line.split(":")[0].strip() for line in devices[2:]] == ["lo"]


def test_two_pods_have_two(node: Node) -> None:
    starts = [node.service.begin_pod_sandbox(config(uid=uid)) for uid in ("u1", "u2")]
    early = [namespace(start.netns) for start in starts]
    assert len({*early, own()}) == 3
    assert [namespace(start.finish().netns) for start in starts] == early


def test_one_made_ahead_is_new_and_goes_with_its_descriptor() -> None:
    clock, before = [1000.0], own()
    spares = SpareNetwork(lambda: made(LinuxKernel()), lambda: clock[0])
    first = spares.take()
    clock[0] += CALM_SECONDS
    spares.next_step()
    second = spares.take()
    try:
        found = [namespace(f"/proc/self/fd/{descriptor}") for descriptor in (first, second)]
        assert len({*found, before}) == 3 and own() == before
    finally:
        os.close(first)
        os.close(second)


def test_there_is_none_for_a_pod_on_the_hosts_network_or_with_its_own_users(node: Node) -> None:
    on_host = node.service.begin_pod_sandbox(config(host_network=True))
    assert (on_host.netns, on_host.finish().netns) == ("", "")
    ids = 1 << 16
    links = node.service.begin_pod_sandbox(
        config(uid="u2", sysctls={"net.ipv4.conf.default.rp_filter": "0"})
    )
    assert links.netns == "", "they are written before there is a link"
    assert namespace(links.finish().netns) != own()
    apart = node.service.begin_pod_sandbox(config(first_id=ids, ids=ids))
    assert apart.netns == ""
    assert namespace(apart.finish().netns) != own()


def test_a_pause_that_does_not_start_takes_the_namespace_along(node: Node) -> None:
    start = node.service.begin_pod_sandbox(config(sysctls={"net.ipv4.no_such_setting": "1"}))
    descriptor = int(start.netns.rpartition("/")[2])
    early = namespace(start.netns)
    for _ in range(2):
        with pytest.raises(StartError, match="no_such_setting"):
            start.finish()
    assert not os.path.exists(f"/proc/self/fd/{descriptor}") or namespace(start.netns) != early
    assert node.service.list_sandboxes() == []


def test_a_shim_with_orders_that_come_to_nothing_ends(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record cannot be written, or what is done meanwhile fails: nothing is left, and the next one
    starts."""
    written, seen = state.write_json, []

    def full(path: str, value: object) -> None:
        seen.append(wait_for(lambda: shims(node.folder)).pop())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse() -> None:
        seen.append(wait_for(lambda: shims(node.folder)).pop())
        raise CgroupError("no such limit")

    monkeypatch.setattr(state, "write_json", full)
    with pytest.raises(StartError, match="No space left on device"):
        node.service.begin_pod_sandbox(config())
    monkeypatch.setattr(state, "write_json", written)
    wait_for(lambda: not shims(node.folder))
    with pytest.raises(CgroupError, match="no such limit"):
        node.service.begin_pod_sandbox(config(), refuse)
    wait_for(lambda: not shims(node.folder))
    assert len(set(seen)) == 2
    assert node.service.wait_for_removals(60) and os.listdir(node.folder / "run/sandboxes") == []
    assert node.service.begin_pod_sandbox(config()).finish().state == "READY"


def test_pause_is_in_the_pods_cgroup_which_is_made_meanwhile(node: Node) -> None:
    def made() -> None:
        node.driver.create(f"{ROOT_CGROUP}/pod", {"pids": {"limit": 77}})

    sandbox = node.service.begin_pod_sandbox(config(), made).finish()
    places = Path(f"/proc/{sandbox.pid}/cgroup").read_text().splitlines()
    pids = next(place for place in places if ":pids:" in place or place.startswith("0:"))
    assert f"{ROOT_CGROUP}/pod" in pids, "the nearest one that has a limit"


@contextmanager
def shim_of(node: Node, tmp_path: Path) -> Iterator[tuple[str, socket.socket, EarlyNetwork]]:
    """A shim that waits for its hello, for a sandbox without a program; and what was made for its pause."""
    folder = node.folder / "run/sandboxes" / ("a" * 64)
    folder.mkdir()
    record = {"id": folder.name, "cgroup": f"{ROOT_CGROUP}/pod/{folder.name}", "oci": pause_config(config())}
    state.write_json(f"{folder}/sandbox.json", {**record, "created_at": 0.0, "config": {}})
    forkserver = Forkserver()
    forkserver.start()
    network = EarlyNetwork(lambda: made(LinuxKernel()), folder)
    try:
        with shim_link.listen(str(folder)) as listener:
            line = forkserver.fork_shim(str(folder), str(tmp_path / "containers"), listener)
        with line:
            yield str(folder), line, network
    finally:
        network.close()
        forkserver.close()


def pause_of(folder: str) -> int:
    """The network namespace of the pause that the shim has started."""
    wait_for(lambda: os.path.exists(f"{folder}/state.json"))
    pause = state.sandbox_state_from(state.read_json(f"{folder}/state.json")).pause
    assert pause is not None
    return namespace(f"/proc/{pause.pid}/ns/net")


def test_a_shim_without_a_program_joins_it_too(node: Node, tmp_path: Path) -> None:
    with shim_of(node, tmp_path) as (folder, line, network):
        line.sendall(pack(REQUEST, b'{"id": 1, "op": "hello"}'))
        assert pause_of(folder) == namespace(network.path)
        shim_link.call(folder, 10, "end")


def test_a_shim_whose_agent_died_before_its_hello_relies_on_nothing_of_it(node: Node, tmp_path: Path) -> None:
    with shim_of(node, tmp_path) as (folder, line, network):
        line.close()
        assert pause_of(folder) not in (namespace(network.path), own())
        shim_link.call(folder, 10, "end")
