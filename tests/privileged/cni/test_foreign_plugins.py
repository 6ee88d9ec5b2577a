"""Both sides of the CNI door: Debian's plugins under our invoker, our executables under a plain caller."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from network_lab import Namespace, Server, ask, uplink

from cni.errors import CniError
from cni.invoke import Invoker

DEBIAN = Path("/usr/lib/cni")

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(
        not (DEBIAN / "bridge").exists(), reason="containernetworking-plugins is not installed"
    ),
]


@pytest.fixture
def foreign(node: None, tmp_path: Path, own_bin: Path, network: Path) -> Invoker:
    return Invoker(
        config_dir=network, bin_dirs=[DEBIAN, own_bin], cache_dir=tmp_path / "cache", own_bin_dir=own_bin
    )


def test_debians_plugins_wire_a_pod_under_our_invoker(
    foreign: Invoker, network: Path, tmp_path: Path
) -> None:
    # Debian's bandwidth 1.1.1 crashes in a CHECK without limits; test_bandwidth.py has it with limits.
    file = next(network.iterdir())
    body = json.loads(file.read_text())
    body["plugins"] = [p for p in body["plugins"] if p["type"] != "bandwidth"]
    file.write_text(json.dumps(body))
    assert foreign.ready() is None
    assert foreign.needs_netns_for_delete()
    with Namespace() as pod:
        result = foreign.add("a", pod.path, args={"IgnoreUnknown": "1", "K8S_POD_NAME": "web"})
        address = result.ips[0].address.split("/")[0]
        server = Server("a", pod, 80)
        assert ask(address, 80) == "a 10.244.1.1"
        server.close()
        with pod.netlink() as inside:
            assert inside.require("lo").up
        foreign.check("a", pod.path)
        foreign.delete("a", pod.path)
        with pod.netlink() as inside:
            assert inside.link("eth0") is None


def test_an_error_of_a_foreign_plugin_keeps_its_code(foreign: Invoker, network: Path) -> None:
    file = next(network.iterdir())
    body = json.loads(file.read_text())
    body["plugins"][0]["ipam"]["ranges"] = [[{"subnet": "10.1.1.0/24", "rangeEnd": "10.1.1.1"}]]
    file.write_text(json.dumps(body))
    with Namespace() as pod, Namespace() as other, pytest.raises(CniError) as caught:
        foreign.add("a", pod.path)
        foreign.add("b", other.path)
    assert caught.value.code >= 1
    assert "no IP addresses available" in str(caught.value)


def test_our_host_local_reads_what_debians_wrote(
    foreign: Invoker, network: Path, own_bin: Path, tmp_path: Path
) -> None:
    with Namespace() as pod, Namespace() as other:
        foreign.add("a", pod.path)
        ours = Invoker(
            config_dir=network, bin_dirs=[own_bin], cache_dir=tmp_path / "cache", own_bin_dir=own_bin
        )
        assert ours.add("b", other.path).ips[0].address == "10.244.1.3/24"
        files = {n: (tmp_path / "leases/kubelet-py" / n).read_bytes() for n in ("10.244.1.2", "10.244.1.3")}
        assert files == {"10.244.1.2": b"a\r\neth0", "10.244.1.3": b"b\r\neth0"}
        ours.delete("a", pod.path)
        assert not (tmp_path / "leases/kubelet-py/10.244.1.2").exists()


def call(program: Path, command: str, config: object, **variables: str) -> tuple[int, dict[str, object]]:
    environment = {"PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_PATH": str(program.parent)}
    environment |= {f"CNI_{key}": value for key, value in variables.items()}
    done = subprocess.run(
        [str(program)], input=json.dumps(config).encode(), env=environment, capture_output=True
    )
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_our_bridge_as_a_program_answers_in_the_callers_version(
    version: str, node: None, own_bin: Path, tmp_path: Path
) -> None:
    ipam = {"type": "host-local", "subnet": "10.244.1.0/24", "dataDir": str(tmp_path / "leases")}
    config = {"cniVersion": version, "name": "n", "type": "bridge", "bridge": "kpy0", "ipam": ipam}
    with Namespace() as pod:
        names = {"CONTAINERID": "c1", "IFNAME": "eth0", "NETNS": pod.path}
        status, result = call(own_bin / "bridge", "ADD", config, **names)
        assert status == 0, result
        assert result["cniVersion"] == version
        entry = result["ips"][0]  # type: ignore[index]
        assert entry["address"] == "10.244.1.2/24"
        assert ("version" in entry) is version.startswith("0.")
        status, _ = call(own_bin / "bridge", "DEL", config, **names)
        assert status == 0
        with pod.netlink() as inside:
            assert inside.link("eth0") is None


def test_debians_bridge_accepts_our_host_local_as_its_delegate(
    node: None, own_bin: Path, tmp_path: Path
) -> None:
    ipam = {"type": "host-local", "subnet": "10.244.1.0/24", "dataDir": str(tmp_path / "leases")}
    config = {"cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "kpy0", "ipam": ipam}
    with Namespace() as pod:
        variables = {"CONTAINERID": "c1", "IFNAME": "eth0", "NETNS": pod.path, "PATH": str(own_bin)}
        status, result = call(DEBIAN / "bridge", "ADD", config, **variables)
        assert status == 0, result
        assert (tmp_path / "leases/n/10.244.1.2").exists()


def test_host_port_leads_to_the_pod_and_closes_with_it(node: None, tmp_path: Path, invoker: Invoker) -> None:
    mappings = [
        {"hostPort": 8081, "containerPort": 80, "protocol": "TCP"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "UDP"},
    ]
    with Namespace() as pod, Namespace() as other, Namespace() as client:
        uplink(client)
        invoker.add("a", pod.path, capabilities={"portMappings": mappings})
        invoker.add("b", other.path, capabilities={"portMappings": [{"hostPort": 8082, "containerPort": 80}]})
        servers = [Server("a", pod, 80), Server("a", pod, 53, udp=True), Server("b", other, 80)]
        assert client.ask("192.0.2.1", 8081) == "a 192.0.2.2"
        assert client.ask("192.0.2.1", 5353, udp=True) == "a 192.0.2.2"
        assert client.ask("192.0.2.1", 8082) == "b 192.0.2.2"
        assert ask("192.0.2.1", 8081).startswith("a ")
        assert pod.ask("192.0.2.1", 8081) == "a 10.244.1.1"
        invoker.check("a", pod.path)
        invoker.delete("a", pod.path)
        with pytest.raises(ConnectionRefusedError):
            client.ask("192.0.2.1", 8081)
        assert client.ask("192.0.2.1", 8082).startswith("b ")
        invoker.delete("b", other.path)
        rules = subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True).stdout
        assert "CNI-DN-" not in rules
        subprocess.run(["iptables", "-t", "nat", "-A", "CNI-HOSTPORT-DNAT", "-j", "RETURN"], check=True)
        invoker.tear_down()
        rules = subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True).stdout
        assert "CNI-HOSTPORT-DNAT" in rules, "another network still uses the shared chains"
        subprocess.run(["iptables", "-t", "nat", "-F", "CNI-HOSTPORT-DNAT"], check=True)
        invoker.tear_down()
        rules = subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True).stdout
        assert "CNI-" not in rules
        for server in servers:
            server.close()
