from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni import bandwidth, iptables, portmap, rtnetlink, skeleton
from cni.bridge import BridgeConfig
from cni.errors import InvalidConfig, UnsupportedField
from cni.host_local import parse_ranges
from cni.netns import is_own, opened
from cni.shaping import Rate
from cni.types import Request, Result, folded, valid_attachments
from cni.veth import mac_for


def run(environ: dict[str, str], config: Any, kind: str = "loopback") -> tuple[int, Any]:
    out = io.StringIO()
    status = skeleton.main(kind, environ=environ, stdin=io.BytesIO(json.dumps(config).encode()), stdout=out)
    return status, json.loads(out.getvalue()) if out.getvalue() else None


GOOD = {"CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_NETNS": "/none", "CNI_PATH": "/none"}
CONF = {"cniVersion": "1.0.0", "name": "n", "type": "loopback"}


@pytest.mark.parametrize(
    ("environ", "config", "code"),
    [
        ({"CNI_COMMAND": "FETCH"}, CONF, 4),
        ({**GOOD, "CNI_COMMAND": "ADD", "CNI_CONTAINERID": ""}, CONF, 4),
        ({**GOOD, "CNI_COMMAND": "ADD", "CNI_IFNAME": "a/b"}, CONF, 4),
        ({**GOOD, "CNI_COMMAND": "ADD", "CNI_NETNS": ""}, CONF, 4),
        ({**GOOD, "CNI_COMMAND": "ADD", "CNI_ARGS": "x"}, CONF, 4),
        ({**GOOD, "CNI_COMMAND": "ADD"}, {**CONF, "cniVersion": "0.1.0"}, 1),
        ({**GOOD, "CNI_COMMAND": "STATUS"}, CONF, 1),
        ({**GOOD, "CNI_COMMAND": "CHECK"}, {**CONF, "cniVersion": "0.3.1"}, 1),
        ({**GOOD, "CNI_COMMAND": "ADD"}, {**CONF, "name": "a b"}, 7),
        ({**GOOD, "CNI_COMMAND": "ADD"}, [], 6),
        ({**GOOD, "CNI_COMMAND": "ADD"}, CONF, 3),
    ],
)
def test_errors_are_json_on_stdout_with_the_specified_code(
    environ: dict[str, str], config: Any, code: int
) -> None:
    status, body = run(environ, config)
    assert (status, body["code"]) == (1, code)
    assert body["cniVersion"] and body["msg"]


@pytest.mark.parametrize("text", [b'{"a":' * 200_000, b"[" * 200_000])
def test_json_that_is_nested_without_end_is_refused(text: bytes) -> None:
    out = io.StringIO()
    environ = {**GOOD, "CNI_COMMAND": "ADD"}
    assert skeleton.main("bridge", environ=environ, stdin=io.BytesIO(text), stdout=out) == 1
    assert json.loads(out.getvalue())["code"] == 6


def test_a_fifo_is_no_namespace_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "netns")
    with opened(str(tmp_path / "netns")) as netns:
        assert not is_own(netns)


@pytest.mark.parametrize(
    "read",
    [
        lambda: portmap.PortmapConfig.parse({"runtimeConfig": {"portMappings": 5}}),
        lambda: portmap.PortmapConfig.parse({"runtimeConfig": {"portMappings": [5]}}),
        lambda: bandwidth.Limits.parse({"runtimeConfig": {"bandwidth": [5]}}),
        lambda: parse_ranges({"ranges": 5}),
        lambda: parse_ranges({"ranges": [5]}),
        lambda: valid_attachments({"cni.dev/valid-attachments": 5}),
        lambda: valid_attachments({"cni.dev/valid-attachments": [5]}),
    ],
)
def test_other_types_than_upstreams_are_refused_and_no_traceback(read: Callable[[], object]) -> None:
    with pytest.raises(InvalidConfig):
        read()


def test_delete_without_a_namespace_succeeds_silently() -> None:
    assert run({**GOOD, "CNI_COMMAND": "DEL"}, CONF) == (0, None)
    assert run({**GOOD, "CNI_COMMAND": "DEL", "CNI_NETNS": ""}, CONF) == (0, None)


def test_version_lists_what_is_supported() -> None:
    status, body = run({"CNI_COMMAND": "VERSION"}, {"cniVersion": "0.4.0"})
    assert status == 0
    assert body == {"cniVersion": "0.4.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


def test_without_a_command_a_person_reads_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run({}, CONF, "ptp") == (0, None)
    assert "CNI ptp plugin" in capsys.readouterr().err


def test_upstream_options_that_are_not_there_are_refused() -> None:
    with pytest.raises(UnsupportedField, match="enabledad"):
        BridgeConfig.parse({"name": "n", "enabledad": True})
    with pytest.raises(InvalidConfig):
        BridgeConfig.parse({"name": "n", "mtu": "big"})
    for size in ("big", 65535, 524281, -1, True, 1e5):
        with pytest.raises(InvalidConfig, match=r"gsoIPv4MaxSize .* \(65536 to 524280\)"):
            BridgeConfig.parse({"name": "n", "gsoIPv4MaxSize": size})


def test_mac_follows_the_address() -> None:
    assert mac_for("10.244.1.5/24") == "0a:58:0a:f4:01:05"
    assert mac_for("fd00::1/64").startswith("0a:58:")


def test_portmap_rules_are_upstreams() -> None:
    mappings = [
        portmap.PortMapping.parse(
            {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "0.0.0.0"}
        ),
        portmap.PortMapping.parse(
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}
        ),
        portmap.PortMapping.parse(
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "fd00::1"}
        ),
    ]
    chain = portmap.chain_name("n", "c")
    note = '"dnat name: \\"n\\" id: \\"c\\""'
    shared = f"-m comment --comment {note} -m multiport --destination-ports"
    assert portmap.rules_for("n", "c", "10.1.0.5/24", portmap.PortmapConfig(tuple(mappings))) == [
        f"-A CNI-HOSTPORT-DNAT -p tcp {shared} 8080 -j {chain}",
        f"-A CNI-HOSTPORT-DNAT -p udp {shared} 53 -j {chain}",
        f"-A {chain} -p tcp --dport 8080 -s 10.1.0.0/24 -j CNI-HOSTPORT-SETMARK",
        f"-A {chain} -p tcp --dport 8080 -j DNAT --to-destination 10.1.0.5:80",
        f"-A {chain} -d 192.0.2.1 -p udp --dport 53 -s 10.1.0.0/24 -j CNI-HOSTPORT-SETMARK",
        f"-A {chain} -d 192.0.2.1 -p udp --dport 53 -j DNAT --to-destination 10.1.0.5:53",
    ]
    assert len(chain) == 28


@pytest.mark.parametrize(
    ("text", "reason"), [("foo", "is no IP address"), ("fe80::1%lo\n-A INPUT -j ACCEPT\n#", "has a zone")]
)
def test_a_host_ip_is_one_plain_address(text: str, reason: str) -> None:
    with pytest.raises(InvalidConfig, match=f"hostIP .*: it {reason}"):
        portmap.PortMapping.parse({"hostPort": 80, "containerPort": 80, "hostIP": text})


def test_what_add_would_not_read_does_not_keep_a_pod_from_being_removed() -> None:
    mapping = {"hostPort": 80, "containerPort": 80, "hostIP": "foo"}
    config = {"name": "n", "runtimeConfig": {"portMappings": [mapping]}}

    def none(version: int) -> iptables.Iptables:
        raise AssertionError("nothing was opened")

    portmap.Portmap(none).delete(Request("DEL", config, "c"))
    with pytest.raises(InvalidConfig, match="hostIP 'foo'"):
        portmap.Portmap(none).add(Request("ADD", config, "c", previous=Result()))


def test_more_than_fifteen_ports_are_split_among_rules() -> None:
    mappings = [portmap.PortMapping.parse({"hostPort": p, "containerPort": 80}) for p in range(1, 17)]
    config = portmap.PortmapConfig(tuple(mappings))
    shared = [r for r in portmap.rules_for("n", "c", "10.1.0.5/24", config) if "multiport" in r]
    assert [r.split("--destination-ports ")[1].split()[0].count(",") + 1 for r in shared] == [15, 1]


def test_conditions_a_foreign_mark_chain_and_masquerading_all_are_in_the_rules() -> None:
    config = portmap.PortmapConfig.parse(
        {
            "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080}]},
            "conditionsV4": ["!", "-s", "192.0.2.0/24"],
            "externalSetMarkChain": "KUBE-MARK-MASQ",
            "masqAll": True,
        }
    )
    jump, mark, _dnat = portmap.rules_for("n", "c", "10.1.0.5/24", config)
    assert " --destination-ports 80 ! -s 192.0.2.0/24 -j CNI-DN-" in jump
    assert mark.endswith("--dport 80 -j KUBE-MARK-MASQ")
    assert "192.0.2.0" not in "".join(portmap.rules_for("n", "c", "fd00::5/64", config))


def test_keys_of_the_runtime_are_read_as_containerd_writes_them() -> None:
    port = {"HostPort": 80, "ContainerPort": 8080, "Protocol": "udp", "HostIP": "192.0.2.1"}
    none = {"HostPort": 0, "ContainerPort": 81, "Protocol": "tcp", "HostIP": ""}
    ports = portmap.PortmapConfig.parse({"runtimeConfig": {"portMappings": [port, none]}}).mappings
    assert ports == (portmap.PortMapping(80, 8080, "udp", "192.0.2.1"),)
    width = {"IngressRate": 8000, "IngressBurst": 80, "EgressRate": 0, "EgressBurst": 0}
    limits = bandwidth.Limits.parse({"runtimeConfig": {"bandwidth": width}})
    assert limits == bandwidth.Limits(Rate(8000, 80), None)
    # The name itself has precedence.
    assert folded({"A": 1, "a": 2, "B": 3}, ("a", "b", "c")) == {"a": 2, "b": 3}


@pytest.mark.parametrize("config", [{"backend": "nftables"}, {"markMasqBit": 14}])
def test_portmap_options_that_are_not_there_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedField):
        portmap.PortmapConfig.parse(config)


@pytest.mark.parametrize("body", [{"hostPort": 0, "containerPort": 1}, {"hostPort": 1}, {"hostPort": 70000}])
def test_impossible_port_mappings_are_refused(body: dict[str, int]) -> None:
    with pytest.raises(InvalidConfig):
        portmap.PortMapping.parse(body)


def test_rules_are_quoted_for_iptables_restore() -> None:
    assert iptables.line(["-m", "a b", 'c"d', "e\\f", ""]) == '-m "a b" "c\\"d" "e\\\\f" ""'


def test_netlink_messages_are_aligned_and_readable_again() -> None:
    message = rtnetlink.new_route("10.96.0.0/12", index=7, metric=512, protocol=75)
    entry = rtnetlink.read_route(message.body)
    assert (entry.dst, entry.kind, entry.device, entry.metric, entry.protocol, entry.table) == (
        "10.96.0.0/12",
        "unicast",
        7,
        512,
        75,
        254,
    )
    for made in (
        rtnetlink.new_bridge("kpy0", mac="0a:58:00:00:00:01", mtu=1450),
        rtnetlink.new_veth("veth0", peer="eth0", peer_netns=3, master=2, mtu=1450, mac="0a:58:00:00:00:02"),
        rtnetlink.set_link(3, up=True, alias="abc"),
        rtnetlink.new_address(3, "fd00::1/64"),
        rtnetlink.new_route("::/0", index=3, gw="fd00::2", mtu=1400),
    ):
        packet = rtnetlink.header(made.kind, made.flags, 1, made.body)
        assert len(packet) % 4 == 0
        assert [p[:3] for p in rtnetlink.parse(packet)] == [(made.kind, made.flags, 1)]
