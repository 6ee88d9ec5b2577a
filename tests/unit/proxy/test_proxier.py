from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from proxy.__main__ import _configuration, _parser
from proxy.changes import Changes
from proxy.config import ProxyConfig, duration, overlay, parse_address, read_file
from proxy.conntrack import Conntrack
from proxy.errors import ConfigError, IptablesError, ProxyError
from proxy.healthcheck import Health, HealthServer
from proxy.iptables import Iptables, Saved, parse_save
from proxy.proxier import Proxier, bridge_netfilter_problem

SERVICE = {
    "metadata": {"name": "s", "namespace": "d"},
    "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
}


class Recorder:
    """A backend that keeps the scripts and fails when told to."""

    def __init__(self) -> None:
        self.scripts: list[str] = []
        self.failures = 0
        self.canary = True
        self.seen = threading.Event()

    def save(self) -> Saved:
        return {}

    def restore(self, script: str) -> None:
        if self.failures:
            self.failures -= 1
            raise IptablesError("no")
        self.scripts.append(script)
        self.seen.set()

    def has_chains(self, chain: str) -> bool:
        return self.canary


@pytest.fixture
def backend() -> Recorder:
    return Recorder()


def make(backend: Recorder, **config: Any) -> tuple[Proxier, Changes]:
    changes = Changes("n")
    return Proxier(ProxyConfig(**config), changes, backend, Conntrack(), Health(60)), changes


def test_first_sync_is_full_the_next_only_what_changed(backend: Recorder) -> None:
    proxier, changes = make(backend)
    assert proxier.sync() == "Synced full"
    assert proxier.sync() == "Nothing to do"
    changes.service_event("ADDED", SERVICE)
    assert proxier.sync() == "Synced partial"
    assert len(backend.scripts) == 2
    assert "KUBE-FORWARD" not in backend.scripts[1]
    assert "has no endpoints" in backend.scripts[1]


def test_after_a_failure_everything_is_written_anew(backend: Recorder) -> None:
    proxier, changes = make(backend)
    proxier.sync()
    changes.service_event("ADDED", SERVICE)
    backend.failures = 1
    assert proxier._attempt() == (1.0, 1.0)
    assert changes.changed.is_set()
    assert proxier.sync() == "Synced full"


def test_lost_canary_means_a_full_sync(backend: Recorder) -> None:
    proxier, _ = make(backend)
    proxier.sync()
    backend.canary = False
    proxier._look_at_canary()
    assert proxier.sync() == "Synced full"


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
    status, body = health.answer()
    assert status == 200 and json.loads(body)["lastUpdated"].endswith("Z")


def test_healthz_is_served_and_a_taken_port_is_said() -> None:
    health = Health(60)
    server = HealthServer(("127.0.0.1", 0), health)
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
            HealthServer(("127.0.0.1", server.port), health)
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
        ({"mode": "ipvs"}, "mode"),
        ({"iptables": {"localhostNodePorts": True}}, "localhostNodePorts"),
        ({"nodePortAddresses": ["10.0.0.0/8"]}, "nodePortAddresses"),
        ({"ipvs": {"scheduler": "rr"}}, "ipvs"),
        ({"kind": "KubeletConfiguration"}, "KubeProxyConfiguration"),
        ({"iptables": {"syncPeriod": "soon"}}, "soon"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        overlay({**HEAD, **changed}, ProxyConfig())


def test_flags_that_cannot_be_used_are_refused() -> None:
    for argv in ([], ["--kubeconfig", "/k", "--cluster-cidr", "10.0.0.1/8"]):
        with pytest.raises(ProxyError):
            _configuration(_parser().parse_args(argv))


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
