"""containerd's CRI, as a kubelet calls it, with our CNI plugins and our runtime: a pod sandbox's network."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cri_client import CallFailed, Cri, Read, decode
from test_cni_callers import host_end, nat, network, reservations
from test_containerd import DISABLED, Containerd, archive, close, ready

from cni import skeleton
from cni.netlink import Netlink
from cni.netns import in_namespace

pytestmark = pytest.mark.privileged
__all__ = ["network"]

PAUSE = "localhost/pause:latest"


class CriContainerd(Containerd):
    """A containerd whose CRI finds plugins and networks in folders of the test."""

    def __init__(self, folder: Path, binary: str, networks: Path) -> None:
        skeleton.write_executables(folder / "cni-bin", sys.executable)
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        runc = f"{cri}.containerd.runtimes.runc"
        super().__init__(
            folder,
            binary,
            disabled=[name for name in DISABLED if not name.endswith(".cri")],
            more=f'[{cri}]\nsandbox_image = "{PAUSE}"\nrestrict_oom_score_adj = true\n'
            f"disable_apparmor = true\n"
            f'[{cri}.cni]\nbin_dir = "{folder}/cni-bin"\nconf_dir = "{networks}"\n'
            f'[{cri}.containerd]\nsnapshotter = "native"\ndefault_runtime_name = "runc"\n'
            f'[{runc}]\nruntime_type = "io.containerd.runc.v2"\n'
            f'[{runc}.options]\nBinaryName = "{binary}"\nRoot = "{folder}/runc"\n',
        )
        self.namespace = "k8s.io"
        self.cri = Cri(folder / "c.sock")

    def log(self) -> str:
        return (self.folder / "log").read_text()[-3000:]


@pytest.fixture
def containerd(
    tmp_path_factory: pytest.TempPathFactory, network: Path, oci_binary: str, layer: bytes
) -> Iterator[CriContainerd]:
    if shutil.which("containerd") is None:
        pytest.skip("containerd is missing")
    if Path("/run/containerd").exists():
        pytest.skip("/run/containerd exists: another containerd is at home here")
    made = CriContainerd(tmp_path_factory.mktemp("cri"), oci_binary, network)
    try:
        ready(made, archive(layer, PAUSE, ["sleep", "100000"]))
        yield made
    finally:
        close(made)


def sandbox(name: str) -> dict[int, object]:
    """RunPodSandboxRequest.config: metadata, hostname, TCP 8086 of the host to 80."""
    return {1: {1: name, 2: f"uid-{name}", 3: "default"}, 2: name, 5: [{2: 80, 3: 8086}], 8: {1: "/k8s.io"}}


def text(message: Read, *numbers: int) -> str:
    *way, last = numbers
    for number in way:
        message = decode(message[number][0])
    return str(message[last][0].decode())


@pytest.mark.parametrize("network", ["bridge"], indirect=True)
def test_a_sandbox_has_its_address_and_host_port_until_it_is_stopped(
    containerd: CriContainerd, tmp_path: Path
) -> None:
    cri = containerd.cri
    status = decode(cri("Status", {})[1][0])
    conditions = {text(c, 1): c.get(2) for c in map(decode, status[1])}
    assert conditions == {"RuntimeReady": [1], "NetworkReady": [1]}
    try:
        made = text(cri("RunPodSandbox", {1: sandbox("web")}), 1)
    except CallFailed:
        pytest.fail(containerd.log())
    told = cri("PodSandboxStatus", {1: made})
    assert (text(told, 1, 1), text(told, 1, 5, 1)) == (made, "10.2.0.2")
    assert (tmp_path / "leases/callers/10.2.0.2").read_text().split("\n")[0] == made
    with Netlink() as host:
        assert host.link(host_end("10.2.0.2")) is not None
    (place,) = Path("/run/netns").iterdir()
    inside = os.open(place, os.O_RDONLY)
    with in_namespace(inside, socket.socket) as listening:
        os.close(inside)
        listening.bind(("10.2.0.2", 80))
        listening.listen()
        with socket.create_connection(("10.2.0.1", 8086), 10):
            listening.settimeout(10)
            listening.accept()[0].close()
    cri("StopPodSandbox", {1: made})
    assert reservations(tmp_path) == []
    assert "CNI-DN-" not in nat()
    cri("StopPodSandbox", {1: made})  # a kubelet calls it again
    cri("RemovePodSandbox", {1: made})
    assert 1 not in cri("ListPodSandbox", {})
    assert list(Path("/run/netns").iterdir()) == []


@pytest.mark.parametrize("network", ["bridge"], indirect=True)
def test_the_life_of_a_container_as_a_kubelet_has_it(containerd: CriContainerd, tmp_path: Path) -> None:
    """Create, start, exec, update, stop by signal and after the end, log with CRI's lines, remove."""
    cri = containerd.cri
    logs = tmp_path / "pod-logs"
    logs.mkdir()
    config = {**sandbox("life"), 3: str(logs)}
    try:
        pod = text(cri("RunPodSandbox", {1: config}), 1)
        script = 'trap "echo bye; exit 7" TERM; echo up; while :; do sleep 0.1; done'
        linux = {1: {4: 64 << 20}, 2: {7: 1, 11: 1}}  # memory; readonly_rootfs, no_new_privs
        wanted = {1: {1: "main"}, 2: {1: PAUSE}, 3: ["sh", "-c", script], 11: "main.log", 15: linux}
        made = text(cri("CreateContainer", {1: pod, 2: wanted, 3: config}), 1)
        cri("StartContainer", {1: made})
        told = cri("ExecSync", {1: made, 2: ["sh", "-c", "touch /x 2>&1; exit 4"], 3: 10})
        assert b"Read-only file system" in told[1][0] and told[3] == [4]
        cri("UpdateContainerResources", {1: made, 2: {4: 32 << 20}})
        cri("StopContainer", {1: made, 2: 10})
        cri("StopContainer", {1: made, 2: 10})  # a kubelet calls it again
        status = decode(cri("ContainerStatus", {1: made})[1][0])
        assert (status[3], status.get(7)) == ([2], [7])  # CONTAINER_EXITED, its exit code
        lines = [line.split(" ", 2) for line in (logs / "main.log").read_text().splitlines()]
        assert [rest for _, _, rest in lines] == ["F up", "F bye"]
        cri("RemoveContainer", {1: made})
    except CallFailed:
        pytest.fail(containerd.log())
    cri("StopPodSandbox", {1: pod})
    cri("RemovePodSandbox", {1: pod})
    assert 1 not in cri("ListContainers", {})
