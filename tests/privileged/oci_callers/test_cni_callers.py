"""podman's CNI backend and containerd's (`ctr run --cni`) with our CNI plugins, above our runtime.

That ours did the work is seen by what only ours do: the host's end of a pair is named after the address.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_containerd import IMAGE, Containerd, ctr
from test_podman import Podman, podman

from cni import skeleton
from cni.iptables import Iptables
from cni.netlink import Netlink

pytestmark = pytest.mark.privileged
__all__ = ["ctr", "podman"]

SERVE = "mkdir -p /www; echo $0 > /www/index.html; exec httpd -f -p 80 -h /www"


@pytest.fixture(scope="module")
def own_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cni-bin")
    skeleton.write_executables(folder, sys.executable)
    return folder


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder with one conflist, of all our plugins; afterwards nothing of theirs is left."""
    ranges, routes = [[{"subnet": "10.2.0.0/24"}]], [{"dst": "0.0.0.0/0"}]
    ipam = {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": str(tmp_path / "leases")}
    first = {"type": request.param, "ipam": ipam}
    if request.param == "bridge":
        first |= {"bridge": "kpycall0", "isGateway": True, "hairpinMode": True}
    plugins = [first, {"type": "portmap", "capabilities": {"portMappings": True}},
               {"type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 800_000}]  # fmt: skip
    folder = tmp_path / "net.d"
    folder.mkdir()
    body = {"cniVersion": "1.0.0", "name": "callers", "plugins": plugins}
    (folder / "10-callers.conflist").write_text(json.dumps(body))
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    before = forwarding.read_text()
    yield folder
    forwarding.write_text(before)  # a gateway's plugin switches it on, and no DEL switches it off
    assert sorted(reservations(tmp_path)) == []
    assert "CNI-DN-" not in nat()
    with Netlink() as host:
        left = [link.name for link in host.links() if link.alias.startswith("cni")]
        assert left == []
        host.delete_link("kpycall0")
    from cni.portmap import Portmap

    Portmap().tear_down()


def reservations(tmp_path: Path) -> list[str]:
    folder = tmp_path / "leases/callers"
    return [n for n in os.listdir(folder) if n.startswith("10.")] if folder.exists() else []


def nat() -> str:
    return "\n".join(" ".join(words) for words in Iptables().rules("nat"))


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=3) as answer:
        return str(answer.read().decode().strip())


def until(what: str, check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError):
            if found := check():
                return found
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def host_end(address: str) -> str:
    return "veth" + bytes(int(part) for part in address.split(".")).hex()


@pytest.fixture
def cni_podman(podman: Podman, network: Path, own_bin: Path) -> Iterator[Podman]:
    before = podman.settings.read_text()
    podman.settings.write_text(
        f'{before}[network]\nnetwork_backend = "cni"\ncni_plugin_dirs = ["{own_bin}"]\n'
        f'network_config_dir = "{network}"\n'
    )
    known = Path("/var/lib/cni").exists()
    yield podman
    podman("rm", "--all", "--force", "-t", "0")
    podman.settings.write_text(before)
    if not known:  # libcni's cache of results; empty by then
        for folder in ("/var/lib/cni/results", "/var/lib/cni/networks", "/var/lib/cni"):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(folder)


@pytest.mark.parametrize("network", ["bridge"], indirect=True)
def test_podman_attaches_publishes_and_cleans_up(cni_podman: Podman, tmp_path: Path) -> None:
    podman = cni_podman
    flags = ["--network", "callers", "--cgroup-parent", podman.parent]
    done = podman("run", "-d", "--name", "web", "-p", "8085:80", *flags, "bb", "sh", "-c", SERVE, "web")
    assert done.returncode == 0, done.stderr
    shown = json.loads(podman("inspect", "web").stdout)[0]["NetworkSettings"]["Networks"]["callers"]
    address, gateway = shown["IPAddress"], shown["Gateway"]
    assert (address, gateway) == ("10.2.0.2", "10.2.0.1")
    assert shown["MacAddress"] == "0a:58:0a:02:00:02"
    with Netlink() as host:
        assert host.link(host_end(address)) is not None
    assert until("the web answers", lambda: get(f"http://{address}/")) == "web"
    assert get(f"http://{gateway}:8085/") == "web"
    fetch = podman("run", "--rm", *flags, "bb", "wget", "-q", "-O", "-", f"http://{address}/")
    assert fetch.stdout == "web\n", fetch.stderr
    asked = podman("run", "--rm", *flags, "--ip", "10.2.0.99", "bb", "ip", "-4", "-o", "addr", "show", "eth0")
    assert "10.2.0.99/24" in asked.stdout, asked.stderr
    assert sorted(reservations(tmp_path)) == [address]
    stopped = podman("rm", "-f", "-t", "0", "web")
    assert stopped.returncode == 0, stopped.stderr
    assert reservations(tmp_path) == []


@contextlib.contextmanager
def in_place(source: Path, target: Path) -> Iterator[None]:
    """`source` seen at `target`, within the mount namespace of hack/isolate."""
    made = [p for p in (target.parent, target) if not p.exists()]
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(target)], check=True)
        for folder in reversed(made):
            folder.rmdir()


@pytest.fixture
def cni_ctr(ctr: Containerd, network: Path, own_bin: Path) -> Iterator[Containerd]:
    # ctr has no flags for these two folders.
    with in_place(network, Path("/etc/cni/net.d")), in_place(own_bin, Path("/opt/cni/bin")):
        yield ctr


@pytest.mark.parametrize("network", ["ptp"], indirect=True)
def test_containerd_attaches_and_cleans_up(cni_ctr: Containerd, tmp_path: Path) -> None:
    ctr = cni_ctr
    # ctr 1.6 calls DEL for a task that it waits for, not in `task rm` of a detached one.
    words = ["--runc-binary", ctr.binary, "--runc-root", f"{ctr.folder}/runc", "--snapshotter", "native"]
    command = ctr.command("run", *words, "--rm", "--cni", IMAGE, "web", "sh", "-c", SERVE, "web")
    web = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        (address,) = until("an address is reserved", lambda: reservations(tmp_path))
        assert until("the web answers", lambda: get(f"http://{address}/")) == "web"
        owner = (tmp_path / "leases/callers" / address).read_text().split("\n")
        assert owner[0] == f"{ctr.namespace}-web"
        with Netlink() as host:
            assert host.link(host_end(address)) is not None
        fetch = ctr.run("--rm", "--cni", IMAGE, "fetch", "wget", "-q", "-O", "-", f"http://{address}/")
        assert fetch.stdout == "web\n", fetch.stderr
        assert reservations(tmp_path) == [address]
        assert ctr("task", "kill", "-s", "SIGKILL", "web").returncode == 0
        web.wait(60)
    finally:
        web.kill()
        web.wait()
    assert reservations(tmp_path) == []
