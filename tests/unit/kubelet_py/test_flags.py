"""The agent's command line: a flag of upstream's is a key of the configuration, and wins over the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubelet_py import config_elsewhere
from kubelet_py.config import KEYS, Config
from kubelet_py.errors import ConfigError
from kubelet_py.flags import KEY_OF, parse_arguments

FILE = {
    "maxPods": 50,
    "evictionHard": {"memory.available": "1Gi", "nodefs.available": "5%"},
    "featureGates": {"MemoryQoS": True},
    "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}},
    "clusterDNS": ["10.0.0.10"],
}


def parsed(*argv: str, folder: Path | None = None) -> Config:
    if folder is not None:
        (folder / "kubelet.yaml").write_text(json.dumps(FILE))
        argv = ("--config", str(folder / "kubelet.yaml"), *argv)
    return parse_arguments(argv).config


def test_each_flag_says_what_a_known_key_says() -> None:
    known = set(KEYS) | config_elsewhere.KEYS
    assert {key for key in KEY_OF.values() if key.partition(".")[0] not in known} == set()


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ("--max-pods=7", "max_pods", 7),
        ("--max-pods 7", "max_pods", 7),
        ("--cluster-dns=10.1.0.1,10.1.0.2 --cluster-dns=10.1.0.3", "cluster_dns",
         ("10.1.0.1", "10.1.0.2", "10.1.0.3")),
        ("--eviction-hard=memory.available<5%", "eviction_hard", {"memory.available": "5%"}),
        ("--feature-gates=KubeletCrashLoopBackOffMax=true", "feature_gates",
         {"MemoryQoS": True, "KubeletCrashLoopBackOffMax": True}),
        ("--anonymous-auth", "authentication",
         {"anonymous": {"enabled": True}, "webhook": {"enabled": True}}),
        ("--anonymous-auth=true --anonymous-auth=false", "authentication",
         {"anonymous": {"enabled": False}, "webhook": {"enabled": True}}),
        ("--kube-reserved=cpu=100m,memory=1Gi", "kube_reserved", {"cpu": "100m", "memory": "1Gi"}),
        ("--register-with-taints=a=b:NoSchedule,c:NoExecute", "register_with_taints",
         ({"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "c", "effect": "NoExecute"})),
        ("--register-node=false", "register_node", False),
        ("--no-register-node", "register_node", False),
        ("--node-status-update-frequency=4s", "node_status_update_frequency", 4.0),
        ("--node-status-update-frequency=4s", "node_status_report_frequency", 300.0),
        ("--v=4", "logging", {"verbosity": 4}),
        ("--node-labels=a=b,c=", "node_labels", {"a": "b", "c": ""}),
        ("--container-runtime-endpoint=", "max_pods", 50),
        ("--event-qps=0 --kube-api-qps=50", "without_effect", ("kubeAPIQPS",)),
    ],
)  # fmt: skip
def test_a_flag_wins_over_the_file(flags: str, name: str, value: Any, tmp_path: Path) -> None:
    assert getattr(parsed(*flags.split(), folder=tmp_path), name) == value


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--read-only-port=10255", "readOnlyPort"),
        ("--container-runtime-endpoint=unix:///run/containerd.sock", "containerRuntimeEndpoint"),
        ("--cgroup-driver=lxc", "cgroupDriver"),
        ("--authorization-mode=RBAC", "authorization.mode"),
        ("--feature-gates=Nonsense=true", "Nonsense"),
        ("--tls-min-version=VersionTLS10", "tlsMinVersion"),
        ("--max-pods=0", "maxPods"),
        ("--port=0", "port must be greater than 0"),
    ],
)
def test_a_flag_is_refused_as_its_key_is(flag: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parsed(flag)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--no-such-flag", "unrecognized arguments: --no-such-flag"),
        ("--max-pod=7", "unrecognized arguments: --max-pod=7"),
        ("--max-pods=many", "'many' is no whole number"),
        ("--register-node=maybe", "'maybe' is neither true nor false"),
        ("--eviction-hard=memory.available=5%", "write it as name<value"),
        ("--kube-reserved=cpu", "write it as name=value"),
    ],
)
def test_what_cannot_be_read_is_told_with_the_flag(
    flag: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(flag)
    assert says in capsys.readouterr().err


def test_help_tells_each_flag_and_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    shown = capsys.readouterr().out
    assert {flag for flag in KEY_OF if f"--{flag} " not in shown} == set()
    assert {key for key in KEY_OF.values() if f"[{key}]" not in shown} == set()


def test_a_node_is_named_by_either_flag() -> None:
    assert parse_arguments(["--hostname-override", "n7"]).node_name == "n7"
    assert parse_arguments(["--node-name", "n8"]).node_name == "n8"


def test_drop_ins_are_laid_over_the_file_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "kubelet.conf.d"
    (folder / "more").mkdir(parents=True)
    (folder / "20-late.conf").write_text(
        "maxPods: 20\nclusterDNS: [10.2.0.1]\nevictionHard: {nodefs.available: null}"
    )
    (folder / "10-early.conf").write_text("maxPods: 10\npodsPerCore: 3")
    (folder / "more/30.conf").write_text("authentication: {anonymous: {enabled: true}}")
    (folder / "note.txt").write_text("nothing: of it")
    found = parsed("--config-dir", str(folder), folder=tmp_path)
    assert (found.max_pods, found.pods_per_core, found.cluster_dns) == (20, 3, ("10.2.0.1",))
    assert found.eviction_hard == {"memory.available": "1Gi"}
    assert found.authentication == {"anonymous": {"enabled": True}, "webhook": {"enabled": True}}
    assert parsed("--config-dir", str(folder), "--max-pods=5", folder=tmp_path).max_pods == 5
    assert parsed("--config-dir", str(folder)).max_pods == 20, "also without a file"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("maxPots: 1", "unknown keys maxPots"),
        ("- a", "holds no KubeletConfiguration"),
        ("a: [", "Could not parse"),
    ],
)
def test_a_drop_in_that_means_nothing_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text(text)
    with pytest.raises(ConfigError, match=says):
        parsed("--config-dir", str(tmp_path))
    with pytest.raises(ConfigError, match="it is no folder"):
        parsed("--config-dir", str(tmp_path / "a.conf"))
