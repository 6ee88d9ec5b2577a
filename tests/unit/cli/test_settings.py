from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kubelet_py.cli import settings
from kubelet_py.cli.settings import NodeSettings, SettingsError
from kubelet_py.paths import NodePaths

GOOD = NodeSettings(node_name="n", node_ip="192.0.2.5")


def test_settings_survive_saving_and_loading(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    assert settings.load(paths) is None
    changed = replace(GOOD, secure_port=7443, cni_bin_dirs=("/usr/lib/cni",))
    changed.save(paths)
    assert settings.load(paths) == changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cluster_cidr": "10.96.0.0/16"}, "overlap"),
        ({"cluster_cidr": "nonsense"}, "does not appear to be"),
        ({"cluster_cidr": "10.1.0.0/16,10.2.0.0/16"}, "one of IPv4 and one of IPv6"),
        ({"cluster_cidr": "10.1.0.0/16,fd00:96::/64", "service_cidr": "fd00:96::/112"}, "overlap"),
        ({"cluster_cidr": "10.1.0.0/16,2001:db8::/64", "node_ip": "192.0.2.5,2001:db8::5"}, "lies in"),
        ({"cluster_cidr": "10.1.0.0/16,fd00::/64", "node_cidr_mask_size": 24}, "which of two ranges"),
        (
            {"cluster_cidr": "fd00:1::/64", "node_ip": "2001:db8::5,192.0.2.5", "bind_address": "192.0.2.5"},
            "--bind-address ::",
        ),
        ({"node_ip": "10.244.3.4"}, "lies in --cluster-cidr"),
        ({"secure_port": 70000}, "--secure-port 70000 is not a port number"),
        ({"proxy_healthz_port": 0}, "--proxy-healthz-port 0 is not a port number"),
        ({"node_name": "Not_A_Name"}, "Not_A_Name.*--node-name"),
        ({"node_name": "a" * 254}, "--node-name"),
        ({"kubelet_config": "/no/such/file"}, "/no/such/file"),
        ({"node_cidr_mask_size": 15}, "--node-cidr-mask-size 15 must be between 16"),
        ({"node_cidr_mask_size": 31}, "--node-cidr-mask-size 31 must be between 16.* and 30"),
    ],
)
def test_impossible_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        replace(GOOD, **change).check()  # type: ignore[arg-type]


def test_all_addresses_are_those_of_both_versions_where_the_node_has_ipv6_first() -> None:
    six = replace(GOOD, cluster_cidr="fd00:1::/64", node_ip="2001:db8::5,192.0.2.5")
    six.check()
    assert (six.api_address, GOOD.api_address) == ("::", "0.0.0.0")
    assert replace(six, bind_address="2001:db8::5").api_address == "2001:db8::5"


def test_good_settings_pass() -> None:
    GOOD.check()
    replace(GOOD, node_cidr_mask_size=22).check()


def test_two_roots_never_share_kernel_names() -> None:
    one, two, default = NodePaths(Path("/a")), NodePaths(Path("/b")), NodePaths(Path("/"))
    assert len({one.bridge, two.bridge, default.bridge}) == 3
    assert len({one.cgroup_root, two.cgroup_root, default.cgroup_root}) == 3
    assert all(len(p.bridge) <= 15 for p in (one, two, default))


def test_what_was_given_is_found_again_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = settings.given(
        {"kubelet_config": "k.yaml", "cni_bin_dirs": ["bin", "/opt/cni"], "proxy_mode": None, "timeout": 3.0}
    )
    assert given == {
        "kubelet_config": str(tmp_path / "k.yaml"),
        "cni_bin_dirs": (str(tmp_path / "bin"), "/opt/cni"),
    }
    assert settings.given({"kubelet_config": ""}) == {"kubelet_config": ""}, "which takes it back"


def test_addresses_of_node_ports_are_read_before_anything_starts() -> None:
    for fine in ("", "primary", "192.0.2.0/24,2001:db8::/64", "0.0.0.0/0,::/0"):
        NodeSettings("a", "192.0.2.1", nodeport_addresses=fine).check()
    for wrong in ("secondary", "primary,192.0.2.0/24", "192.0.2.1/24"):
        with pytest.raises(SettingsError, match="Could not read an address option"):
            NodeSettings("a", "192.0.2.1", nodeport_addresses=wrong).check()
