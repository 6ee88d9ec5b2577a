from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy.__main__ import _configuration, _parser
from proxy.backend import Outcome
from proxy.changes import Changes, Endpoint, Name, Served, ServicePort
from proxy.config import ProxyConfig, duration, overlay, parse_address, read_file
from proxy.conntrack import Conntrack
from proxy.errors import ConfigError, IptablesError, ProxyError
from proxy.healthcheck import Health, ServiceHealth, StatusServer
from proxy.iptables import Iptables, parse_save
from proxy.metrics import Metrics
from proxy.modes import choose, versions
from proxy.proxier import AddressFamily, Proxier, bridge_netfilter_problem
from proxy.topology import Place

SERVICE = {
    "metadata": {"name": "s", "namespace": "d"},
    "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
}


class Recorder:
    """A backend that keeps what it is told and fails when told to."""

    title = "recorder ipv4"
    version = 4
    look_every = 30.0

    def __init__(self) -> None:
        self.told: list[set[Name]] = []
        self.places: list[Place] = []
        self.failures = 0
        self.reason = ""
        self.known = False
        self.seen = threading.Event()

    def apply(self, changed: Mapping[Name, Served], place: Place) -> Outcome:
        self.told.append(set(changed))
        self.places.append(place)
        if self.failures:
            self.failures -= 1
            self.known = False
            raise IptablesError("no")
        kind = "partial" if self.known else "full"
        if self.known and not changed:
            kind = "nothing"
        self.known = True
        self.seen.set()
        return Outcome(kind)

    def look(self) -> str:
        if self.reason:
            self.known = False
        return self.reason

    def rules(self) -> Mapping[str, int]:
        return {"nat": 7}

    def clean_up(self) -> None:
        raise AssertionError("not asked for")

    def close(self) -> None:
        pass


@pytest.fixture
def backend() -> Recorder:
    return Recorder()


def make(backend: Recorder, metrics: Metrics | None = None, **config: Any) -> tuple[Proxier, Changes]:
    changes = Changes("n")
    family = AddressFamily(changes, backend, Conntrack())
    proxier = Proxier(ProxyConfig(**config), [family], changes.changed, Health(60), metrics=metrics)
    return proxier, changes


def test_each_sync_tells_the_backend_only_what_changed(backend: Recorder) -> None:
    proxier, changes = make(backend)
    assert proxier.sync() == "Synced full"
    assert proxier.sync() == "Nothing to do"
    changes.service_event("ADDED", SERVICE)
    assert proxier.sync() == "Synced partial"
    assert backend.told == [set(), set(), {("d", "s")}]


def test_after_a_failure_the_sync_is_repeated(backend: Recorder) -> None:
    metrics = Metrics()
    proxier, changes = make(backend, metrics)
    proxier.sync()
    changes.service_event("ADDED", SERVICE)
    backend.failures = 1
    assert proxier._attempt() == (1.0, 1.0)
    assert changes.changed.is_set()
    assert b"kubeproxy_sync_proxy_rules_iptables_restore_failures_total 1\n" in metrics.page()
    assert proxier.sync() == "Synced full"


def test_one_familys_failure_does_not_stop_the_other() -> None:
    changed = threading.Event()
    broken, sound = Recorder(), Recorder()
    broken.failures = 1
    families = [AddressFamily(Changes("n", 4, changed), b, Conntrack()) for b in (broken, sound)]
    proxier = Proxier(ProxyConfig(), families, changed, Health(60))
    with pytest.raises(IptablesError):
        proxier.sync()
    assert sound.known and not broken.known
    assert proxier.sync() == "Synced full"


def test_rules_changed_by_others_mean_a_full_sync(backend: Recorder) -> None:
    metrics = Metrics()
    proxier, _ = make(backend, metrics)
    proxier.sync()
    assert not proxier.look()
    backend.reason = "somebody flushed the tables"
    assert proxier.look()
    assert proxier.sync() == "Synced full"
    assert b"kubeproxy_sync_proxy_rules_repairs_total 1\n" in metrics.page()


def test_the_nodes_zone_reaches_the_backend_with_every_service(backend: Recorder) -> None:
    proxier, changes = make(backend, hostname="n")
    changes.service_event("ADDED", SERVICE)
    proxier.sync()
    labels = {"topology.kubernetes.io/zone": "z1"}
    changes.node_event("ADDED", {"metadata": {"name": "n", "labels": labels}})
    assert changes.changed.is_set()
    proxier.sync()
    assert backend.places == [Place("n", ""), Place("n", "z1")]
    assert backend.told[1] == {("d", "s")}


def test_what_comes_after_the_first_sync_comes_once(backend: Recorder) -> None:
    calls: list[int] = []
    changes = Changes("n")
    families = [AddressFamily(changes, backend, Conntrack())]
    proxier = Proxier(
        ProxyConfig(), families, changes.changed, Health(60), after_first=lambda: calls.append(1)
    )
    backend.failures = 1
    with pytest.raises(IptablesError):
        proxier.sync()
    assert calls == []
    proxier.sync()
    proxier.sync()
    assert calls == [1]


def test_metrics_have_upstreams_names(backend: Recorder) -> None:
    metrics = Metrics()
    proxier, changes = make(backend, metrics)
    stamp = {"endpoints.kubernetes.io/last-change-trigger-time": "2020-01-01T00:00:00Z"}
    labels = {"kubernetes.io/service-name": "s"}
    changes.slice_event(
        "ADDED",
        {
            "metadata": {"name": "x", "namespace": "d", "annotations": stamp, "labels": labels},
            "addressType": "IPv4",
            "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"]}],
        },
    )
    proxier.sync()
    page = metrics.page().decode()
    for line in (
        'kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1',
        'kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="300"} 0',
        'kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="+Inf"} 1',
        'kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1',
        'kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="nat"} 7',
        "# TYPE kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge",
    ):
        assert line in page.splitlines(), page
    told = dict(line.split(" ") for line in page.splitlines() if line.startswith("process_"))
    assert 0 <= time.time() - float(told["process_start_time_seconds"]) < 86400
    assert float(told["process_resident_memory_bytes"]) > 1e6
    assert float(told["process_cpu_seconds_total"]) > 0


def test_loop_wakes_on_a_change_and_ends_on_stop(backend: Recorder) -> None:
    proxier, changes = make(backend)
    thread = threading.Thread(target=proxier.run)
    thread.start()
    assert backend.seen.wait(5)
    backend.seen.clear()
    changes.service_event("ADDED", SERVICE)
    assert backend.seen.wait(5)
    proxier.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_health_turns_bad_only_when_a_change_waits_too_long() -> None:
    now = [100.0]
    health = Health(60, clock=lambda: now[0])
    assert health.answer()[0] == 503
    health.synced()
    now[0] += 1000
    assert health.answer()[0] == 200
    health.queued()
    now[0] += 59
    assert health.answer()[0] == 200
    now[0] += 2
    assert health.answer()[0] == 503
    health.synced()
    status, body, _headers = health.answer()
    assert status == 200 and json.loads(body)["lastUpdated"].endswith("Z")


def test_healthz_is_served_and_a_taken_port_is_said() -> None:
    health = Health(60)
    server = StatusServer(("127.0.0.1", 0), {"/healthz": health.answer})
    server.start()
    url = f"http://127.0.0.1:{server.port}"
    try:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/healthz", timeout=5)
        caught.value.close()
        assert caught.value.code == 503
        health.synced()
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            assert answer.status == 200
        with pytest.raises(ConfigError, match="Could not bind"):
            StatusServer(("127.0.0.1", server.port), {})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/elsewhere", timeout=5)
        caught.value.close()
        assert caught.value.code == 404
    finally:
        server.stop()


def test_missing_iptables_is_one_sentence_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.iptables.shutil.which", lambda *_args, **_kwargs: None)
    with pytest.raises(IptablesError, match="apt-get install iptables"):
        Iptables()


def test_mixed_variants_are_refused(tmp_path: Path) -> None:
    for name, text in (
        ("iptables", "nf_tables"),
        ("iptables-save", "nf_tables"),
        ("iptables-restore", "legacy"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\necho 'iptables v1.8.9 ({text})'\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(IptablesError, match="not of the nft variant"):
        Iptables(str(tmp_path))


def test_saved_tables_are_understood() -> None:
    saved = parse_save("*filter\n:INPUT DROP [1:2]\n:X - [0:0]\n-A INPUT -j X\nCOMMIT\n")
    assert saved["filter"].policies == {"INPUT": "DROP"}
    assert saved["filter"].jumps("INPUT", "X") == ["-A INPUT -j X"]
    assert saved["filter"].jumps("INPUT", "Y") == []


HEAD = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}


def test_configuration_file_is_read_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        "clusterCIDR: 10.0.0.0/8\n"
        "hostnameOverride: a\nmode: iptables\nclientConnection: {kubeconfig: /k}\n"
        "iptables: {masqueradeBit: 15, minSyncPeriod: 1s, syncPeriod: 1m30s}\nconntrack: {maxPerCore: 0}\n"
    )
    base = read_file(file, ProxyConfig())
    assert (base.kubeconfig, base.min_sync_period, base.sync_period, base.mark) == ("/k", 1.0, 90.0, "0x8000")
    args = _parser().parse_args(
        ["--config", str(file), "--hostname-override", "b", "--healthz-bind-address", ""]
    )
    config = _configuration(args)
    assert (config.hostname, config.cluster_cidr, config.healthz) == ("b", "10.0.0.0/8", None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"iptables": {"localhostNodePorts": True}}, "localhostNodePorts"),
        ({"nftables": {"localhostNodePorts": True}}, "localhostNodePorts"),
        ({"ipvs": {"scheduler": "rr"}}, "ipvs"),
        ({"kind": "KubeletConfiguration"}, "KubeProxyConfiguration"),
        ({"iptables": {"syncPeriod": "soon"}}, "soon"),
        ({"bindAddress": "eth0"}, "bindAddress 'eth0'"),
        ({"bindAddress": "10.1.2.3"}, "bindAddress '10.1.2.3'"),
        ({"conntrack": {"maxPerCore": 1}}, "field conntrack.maxPerCore: not"),
        ({"logging": {"options": {"json": {"infoBufferSize": "4Ki"}}}}, "logging.options.json.info"),
        ({"iptable": {"masqueradeAll": True}}, "field iptable.masqueradeAll: not"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        overlay({**HEAD, **changed}, ProxyConfig())


def test_flags_that_cannot_be_used_are_refused() -> None:
    k = ["--kubeconfig", "/k"]
    for argv in (
        [],
        [*k, "--cluster-cidr", "10.0.0.1/8"],
        [*k, "--cluster-cidr", "10.0.0.0/8,10.1.0.0/16"],
        [*k, "--nodeport-addresses", "primary,192.0.2.0/24"],
        [*k, "--allow-external-ips", "x"],
    ):
        with pytest.raises(ProxyError):
            _configuration(_parser().parse_args(argv))


def test_the_file_chooses_mode_and_the_section_of_it(tmp_path: Path) -> None:
    nftables = {"masqueradeBit": 10, "syncPeriod": "5s"}
    config = overlay({**HEAD, "mode": "nftables", "nftables": nftables}, ProxyConfig())
    assert (config.mode, config.masquerade_bit, config.sync_period) == ("nftables", 10, 5.0)
    body = {**HEAD, "nodePortAddresses": ["192.0.2.0/24", "2001:db8::/64"]}
    config = overlay(body, ProxyConfig())
    assert config.mode == "iptables"
    assert config.node_port_ranges(6) == ("2001:db8::/64",)
    assert ProxyConfig().node_port_ranges(4) is None
    with pytest.raises(ConfigError, match="mode 'ipvs'"):
        overlay({**HEAD, "mode": "ipvs"}, ProxyConfig()).check()


def test_external_ips_are_off_unless_allowed() -> None:
    assert not ProxyConfig().allows_external_ip("203.0.113.1")
    config = ProxyConfig(external_ip_ranges=("203.0.113.0/24",))
    assert config.allows_external_ip("203.0.113.1") and not config.allows_external_ip("10.96.0.10")


@pytest.mark.parametrize(
    ("mode", "refusal", "policy", "expected"),
    [
        ("iptables", "no", "DROP", "iptables"),
        ("nftables", "", "DROP", "nftables"),
        ("auto", "", "ACCEPT", "nftables"),
        ("auto", "", "", "nftables"),
        ("auto", "", "DROP", "iptables"),
        ("auto", "no", "", "iptables"),
    ],
)
def test_mode_is_chosen_with_a_reason(mode: str, refusal: str, policy: str, expected: str) -> None:
    choice = choose(mode, lambda: refusal, lambda: policy)
    assert choice.mode == expected and choice.reason


def test_nftables_that_cannot_be_is_refused_with_what_to_do() -> None:
    with pytest.raises(ProxyError, match="--proxy-mode iptables"):
        choose("nftables", lambda: "Could not open a netfilter socket", lambda: "")


def test_families_are_those_of_the_cluster_cidr(tmp_path: Path) -> None:
    no, yes = str(tmp_path / "none"), str(tmp_path)
    assert versions(ProxyConfig(), yes) == [4, 6]
    assert versions(ProxyConfig(), no) == [4]
    assert versions(ProxyConfig(cluster_cidr="10.0.0.0/8"), yes) == [4]
    assert versions(ProxyConfig(cluster_cidr="10.0.0.0/8,fd00::/64"), yes) == [4, 6]
    with pytest.raises(ProxyError, match="no IPv6"):
        versions(ProxyConfig(cluster_cidr="fd00::/64"), no)


def health_port(number: int, *local: str) -> dict[Name, Served]:
    port = ServicePort("d", "s", "", "tcp", "10.96.0.1", 80, health_check_port=number)
    return {("d", "s"): ((port, tuple(Endpoint(ip, 80, local=True) for ip in local)),)}


def test_service_health_port_tells_how_many_endpoints_are_here() -> None:
    health = Health(60)
    health.synced()
    ports = ServiceHealth(health, lambda: ["127.0.0.1"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    url = f"http://127.0.0.1:{number}/"
    try:
        ports.change(4, health_port(number, "10.1.0.1", "10.1.0.2"))
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert json.loads(answer.read()) == {
                "service": {"namespace": "d", "name": "s"},
                "localEndpoints": 2,
                "serviceProxyHealthy": True,
            }
            assert answer.headers["X-Load-Balancing-Endpoint-Weight"] == "2"
        ports.change(4, health_port(number))
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url, timeout=5)
        caught.value.close()
        assert caught.value.code == 503
        ports.change(4, {("d", "s"): ()})
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(url, timeout=5)
    finally:
        ports.stop()


def test_addresses_and_durations() -> None:
    assert parse_address(":10256") == ("0.0.0.0", 10256)
    assert parse_address("[::1]:1") == ("::1", 1)
    with pytest.raises(ConfigError):
        parse_address("localhost")
    assert [duration(text) for text in ("500ms", "1h2m", "0s", "0")] == [0.5, 3720.0, 0.0, 0.0]


def test_hidden_bridged_packets_are_named(tmp_path: Path) -> None:
    assert "br_netfilter" in str(bridge_netfilter_problem(tmp_path))
    (tmp_path / "net/bridge").mkdir(parents=True)
    switch = tmp_path / "net/bridge/bridge-nf-call-iptables"
    switch.write_text("0\n")
    assert "sysctl -w" in str(bridge_netfilter_problem(tmp_path))
    switch.write_text("1\n")
    assert bridge_netfilter_problem(tmp_path) is None
