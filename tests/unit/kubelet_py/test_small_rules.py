"""Back-off, resources, environment, files, configuration, manifests: pure rules as tables."""

from __future__ import annotations

from typing import Any

import pytest
from pods_in_words import pod

from kubelet_py import config
from kubelet_py.errors import ConfigError, ContainerConfigError
from kubelet_py.pods import backoff, environment, files, resources
from kubelet_py.pods.prober import ProbeState
from kubelet_py.pods.record import PodRecord, census


def test_back_off_doubles_from_ten_seconds_to_five_minutes_and_forgets() -> None:
    entry, waits, now = None, [], 0.0
    for _ in range(7):
        entry = backoff.after_try(entry, now, now)
        waits.append(entry.seconds)
        now += 1
    assert waits == [10, 20, 40, 80, 160, 300, 300]
    assert backoff.waits_until(entry, now, now) == now + 300
    assert backoff.waits_until(entry, now + 601, now + 601) is None, "it ran for ten minutes"
    assert backoff.waits_until(None, now, now) is None, "the first restart is immediate"
    assert backoff.describe(entry) == "5m0s"


def test_a_start_that_fails_is_tried_again_soon_at_first_and_every_ten_seconds_then() -> None:
    assert [backoff.retry_seconds(failures) for failures in (1, 2, 3, 4, 5, 6, 9999)] == [
        1,
        2,
        4,
        8,
        10,
        10,
        10,
    ]


@pytest.mark.parametrize(("period", "waits"), [("25s", [10, 20, 25, 25]), ("2s", [2, 2, 2, 2])])
def test_a_node_may_have_a_shorter_longest_wait(period: str, waits: list[float]) -> None:
    settings = config.from_document({"crashLoopBackOff": {"maxContainerRestartPeriod": period}})
    longest, entry, found = config.longest_restart_wait(settings), None, []
    for now in range(4):
        entry = backoff.after_try(entry, now, now, longest)
        found.append(entry.seconds)
    assert found == waits


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"crashLoopBackOff": {"maxContainerRestartPeriod": "0s"}}, "must be from 1s to 300s"),
        ({"crashLoopBackOff": {"maxContainerRestartPeriod": "301s"}}, "must be from 1s to 300s"),
        ({"crashLoopBackOff": {"maxRestart": "10s"}}, "unknown keys maxRestart"),
        (
            {
                "crashLoopBackOff": {"maxContainerRestartPeriod": "9s"},
                "featureGates": {"KubeletCrashLoopBackOffMax": False},
            },
            "KubeletCrashLoopBackOffMax is off",
        ),
    ],
)
def test_a_longest_wait_that_means_nothing(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config.from_document(document)


def limited(limits: dict[str, str] | None, requests: dict[str, str] | None = None) -> dict[str, Any]:
    body = pod()
    body["spec"]["containers"][0]["resources"] = {"limits": limits, "requests": requests or limits}
    return body


@pytest.mark.parametrize(
    ("body", "qos", "score"),
    [
        (pod(), "BestEffort", 1000),
        (limited({"cpu": "1", "memory": "1Gi"}), "Guaranteed", -997),
        (limited({"memory": "1Gi"}), "Burstable", 750),
        (limited(None, {"cpu": "1"}), "Burstable", 999),
        (limited({"cpu": "2", "memory": "1Gi"}, {"cpu": "1", "memory": "1Gi"}), "Burstable", 750),
        (limited(None, {"memory": "4Gi"}), "Burstable", 3),
    ],
)
def test_qos_and_oom_score(body: dict[str, Any], qos: str, score: int) -> None:
    assert resources.qos_class(body) == qos
    assert resources.oom_score_adj(body, body["spec"]["containers"][0], 4 << 30) == score


def test_limits_become_cgroup_values() -> None:
    body = limited({"cpu": "500m", "memory": "32Mi"}, {"cpu": "100m"})
    wanted = {"cpu": {"shares": 102, "quota": 50000, "period": 100000}, "memory": {"limit": 32 << 20}}
    own = resources.container_resources(body["spec"]["containers"][0], resources.Rules())
    assert own == wanted | {"memory": {"limit": 32 << 20, "swap": 32 << 20}}, "no swap beside the limit"
    assert resources.pod_resources(body, resources.Rules()) == wanted
    assert "quota" not in resources.pod_resources(body, resources.Rules(cfs_quota=False))["cpu"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$(A)", "1"),
        ("$(A)-$(B)", "1-2"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(MISSING)", "$(MISSING)"),
        ("$A $", "$A $"),
        ("$(A", "$(A"),
    ],
)
def test_expansion(text: str, wanted: str) -> None:
    assert environment.expand(text, {"A": "1", "B": "2"}) == wanted


def test_references_without_an_end_do_not_hold_up_the_agent() -> None:
    """100 kB of them took a minute, in which no other thread of the agent ran."""
    text = "$(" * 100_000
    assert environment.expand(text, {"A": "1"}) == text
    assert environment.expand(f"{text})$(A)$$$(A", {text[2:]: "x", "A": "1"}) == "x1$$(A"


@pytest.mark.parametrize(
    ("container", "wanted"),
    [
        ({}, ["entry", "cmd"]),
        ({"args": ["x"]}, ["entry", "x"]),
        ({"command": ["y"]}, ["y"]),
        ({"command": ["y"], "args": ["$(A)"]}, ["y", "1"]),
    ],
)
def test_command_and_args_against_the_image(container: dict[str, Any], wanted: list[str]) -> None:
    image = {"Entrypoint": ["entry"], "Cmd": ["cmd"]}
    assert environment.command_line(container, image, {"A": "1"}) == wanted


def env_of(container: dict[str, Any], objects: dict[tuple[str, str], dict[str, str]]) -> dict[str, str]:
    def lookup(kind: str, name: str) -> dict[str, Any] | None:
        found = objects.get((kind, name))
        return None if found is None else {"data": found}

    return environment.container_environment(
        pod(), {"name": "c", **container}, services={}, lookup=lookup, facts={"status.podIP": "1.2.3.4"},
        allocatable={"cpu": "2", "memory": "1Gi"}, skipped=lambda *_: None,
    )  # fmt: skip


def test_environment_in_upstreams_order() -> None:
    container = {
        "envFrom": [
            {"configMapRef": {"name": "m"}, "prefix": "P_"},
            {"secretRef": {"name": "no", "optional": True}},
        ],
        "env": [
            {"name": "P_a", "value": "own"},
            {"name": "BOTH", "value": "$(P_a)$(P_b)"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        ],
    }
    values = env_of(container, {("configmap", "m"): {"a": "1", "b": "2"}, ("secret", "s"): {"k": "v"}})
    assert values == {"P_a": "own", "P_b": "2", "BOTH": "own2", "KEY": "v", "IP": "1.2.3.4", "CPU": "2"}


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"configMapKeyRef": {"name": "none", "key": "k"}}, 'configmap "none" not found'),
        ({"secretKeyRef": {"name": "none", "key": "k"}}, 'secret "none" not found'),
        ({"configMapKeyRef": {"name": "m", "key": "k"}}, "couldn't find key k in ConfigMap default/m"),
    ],
)
def test_missing_references_are_named(reference: dict[str, Any], message: str) -> None:
    with pytest.raises(ContainerConfigError) as caught:
        env_of({"env": [{"name": "X", "valueFrom": reference}]}, {("configmap", "m"): {}})
    assert str(caught.value) == message and caught.value.reason == "CreateContainerConfigError"


def test_service_variables_are_the_namespaces_own_and_kubernetes() -> None:
    def service(namespace: str, name: str, ip: str) -> dict[str, Any]:
        ports = [{"name": "my-port", "port": 80, "protocol": "TCP"}]
        return {"metadata": {"namespace": namespace, "name": name}, "spec": {"clusterIP": ip, "ports": ports}}

    all_of_them = [
        service("default", "kubernetes", "10.96.0.1"),
        service("a", "web-x", "10.96.0.2"),
        service("b", "other", "10.96.0.3"),
        service("a", "headless", "None"),
    ]
    values = environment.service_variables(all_of_them, "a", links=True)
    assert values["KUBERNETES_SERVICE_HOST"] == "10.96.0.1" and values["WEB_X_SERVICE_HOST"] == "10.96.0.2"
    assert values["WEB_X_SERVICE_PORT_MY_PORT"] == "80" and values["WEB_X_PORT"] == "tcp://10.96.0.2:80"
    assert not any(name.startswith(("OTHER", "HEADLESS")) for name in values)
    assert "WEB_X_SERVICE_HOST" not in environment.service_variables(all_of_them, "a", links=False)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("ClusterFirst", "search default.svc.c svc.c c lan\nnameserver 10.96.0.10\noptions ndots:5\n"),
        ("Default", "search lan\nnameserver 192.0.2.1\n"),
        ("None", ""),
    ],
)
def test_resolv_conf_by_policy(policy: str, text: str) -> None:
    defaults = files.DnsDefaults("nameserver 192.0.2.1\nsearch lan\n", ("10.96.0.10",), "c")
    assert files.resolv_text(pod(dnsPolicy=policy), defaults) == text


@pytest.mark.parametrize(
    ("spec", "servers", "warned"),
    [
        ({}, (), True),
        ({}, ("10.96.0.10",), False),
        ({"dnsPolicy": "Default"}, (), False),
        ({"dnsPolicy": "None"}, (), False),
        ({"hostNetwork": True}, (), False),
        ({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}, (), True),
    ],
)
def test_who_misses_the_cluster_dns(spec: dict[str, Any], servers: tuple[str, ...], warned: bool) -> None:
    warning = files.missing_cluster_dns(pod(**spec), files.DnsDefaults("", servers, "c"))
    assert (warning is not None) == warned
    if warning is not None:
        assert warning.startswith('pod: "p_default(u)". kubelet does not have ClusterDNS IP configured')


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"kubeReserved": {"cpu": "much"}}, "kubeReserved.cpu 'much'"),
        ({"systemReserved": {"gpu": "100"}}, "systemReserved of 'gpu'"),
        ({"cpuCFSQuotaPeriod": "0s"}, "cpuCFSQuotaPeriod must be greater than 0"),
        ({"nodeLeaseDurationSeconds": -1}, "nodeLeaseDurationSeconds must be greater than 0"),
        ({"clusterDNS": ["dns.example"]}, "clusterDNS 'dns.example': it must be an address"),
        ({"clusterDNS": [5]}, "clusterDNS 5: it must be an address"),
        ({"registerWithTaints": [{"key": 5, "effect": "NoSchedule"}]}, "registerWithTaints .* needs a key"),
        ({"registerWithTaints": [{"key": "a", "effect": "Stay"}]}, "registerWithTaints .* needs a key"),
        ({"registerWithTaints": ["a=b:NoSchedule"]}, "registerWithTaints .* needs a key"),
        ({"podCIDR": "10.0.0.0/33"}, "podCIDR"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config.from_document(document)


def test_hosts_file_holds_addresses_and_aliases() -> None:
    body = pod(hostAliases=[{"ip": "1.1.1.1", "hostnames": ["one", "uno"]}])
    text = files.hosts_text(body, ("10.0.0.9",), "p", None, "")
    assert "10.0.0.9\tp\n" in text and text.endswith("1.1.1.1\tone\tuno\n")


def test_configuration_is_read_and_unknown_keys_are_named() -> None:
    parsed = config.from_document({"maxPods": 5, "syncFrequency": "1m30s", "clusterDNS": ["10.96.0.10"]})
    assert (parsed.max_pods, parsed.sync_frequency, parsed.cluster_dns) == (5, 90.0, ("10.96.0.10",))
    with pytest.raises(ConfigError, match="unknown keys alpha, beta"):
        config.from_document({"beta": 1, "alpha": 2})
    with pytest.raises(ConfigError, match="maxPods must be of type int"):
        config.from_document({"maxPods": "5"})


def test_the_cgroup_driver_is_one_of_two_and_by_default_the_hosts() -> None:
    assert config.from_document({}).cgroup_driver == ""
    assert config.from_document({"cgroupDriver": "systemd"}).cgroup_driver == "systemd"
    with pytest.raises(ConfigError, match="cgroupDriver 'docker': it must be cgroupfs or systemd"):
        config.from_document({"cgroupDriver": "docker"})


@pytest.mark.parametrize(
    ("requests", "limits", "names"),
    [
        ({}, {}, ("kubelet-py", "kubepods", "besteffort", "pod1-2")),
        ({"cpu": "1"}, {}, ("kubelet-py", "kubepods", "burstable", "pod1-2")),
        ({}, {"cpu": "1", "memory": "1Gi"}, ("kubelet-py", "kubepods", "pod1-2")),
    ],
)
def test_a_pods_cgroup_by_its_quality_of_service(
    requests: dict[str, str], limits: dict[str, str], names: tuple[str, ...]
) -> None:
    asked = {"requests": {**requests, **limits}, "limits": limits}
    body = {"metadata": {"uid": "1-2"}, "spec": {"containers": [{"name": "c", "resources": asked}]}}
    assert resources.pod_cgroup("kubelet-py", body) == names


def test_probes_change_their_mind_at_their_thresholds() -> None:
    probe = ProbeState("liveness", {"failureThreshold": 2, "successThreshold": 1}, passed=True)
    assert [probe.record(False), probe.failed, probe.record(False), probe.failed] == [
        False,
        False,
        True,
        True,
    ]
    ready = ProbeState("readiness", {"successThreshold": 2}, passed=False)
    assert [ready.record(True), ready.record(True)] == [False, True] and ready.passed


TCP, EXEC = {"tcpSocket": {"port": 80}}, {"exec": {"command": ["ask"]}}


@pytest.mark.parametrize(
    ("kind", "how", "period", "failures", "seconds"),
    [
        ("readiness", TCP, 5, 0, 5),
        ("readiness", TCP, 5, 1, 0.1),
        ("readiness", TCP, 5, 20, 0.1),
        ("readiness", TCP, 5, 21, 5),
        ("readiness", TCP, 0.01, 1, 0.01),
        ("readiness", EXEC, 5, 1, 0.1),
        ("readiness", EXEC, 5, 10, 1.0),
        ("readiness", EXEC, 5, 11, 5),
        ("startup", TCP, 5, 1, 5),  # three failures in less than a second would end the container
        ("startup", EXEC, 5, 2, 5),
        ("liveness", TCP, 5, 1, 5),
    ],
)
def test_only_readiness_is_asked_again_before_its_period_is_over(
    kind: str, how: dict[str, object], period: float, failures: int, seconds: float
) -> None:
    state = ProbeState(kind, {**how, "periodSeconds": period, "failureThreshold": 100}, passed=False)
    for _ in range(failures):
        state.record(False)
    assert state.wait() == pytest.approx(seconds)


def test_readiness_keeps_to_its_period_while_it_holds() -> None:
    state = ProbeState("readiness", {**TCP, "periodSeconds": 5, "failureThreshold": 2}, passed=True)
    state.record(False)
    assert state.wait() == 5, "not yet lost"
    state.record(False)
    assert state.wait() == pytest.approx(0.1)


def test_a_running_pod_that_ends_is_counted_once() -> None:
    def record(phase: str | None, ends: bool) -> PodRecord:
        times = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if ends else {}
        status = None if phase is None else {"phase": phase}
        return PodRecord({"metadata": {"uid": "u", **times}}, 0.0, status=status)

    pods = (("Running", False), ("Running", True), ("Pending", True), (None, False))
    assert census([record(*pod) for pod in pods]) == "running 1 pods, 1 not running, 2 ending"
