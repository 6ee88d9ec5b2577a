"""The parts that need no server: request lines, deletion, allocation, authorization terms, negotiation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from controlplane import authority
from controlplane.apiserver.allocators import ServiceAllocator
from controlplane.apiserver.authorization import Attributes, Rule
from controlplane.apiserver.deletion import DeleteOptions, decide, finished
from controlplane.apiserver.errors import StatusError
from controlplane.apiserver.negotiation import wanted
from controlplane.apiserver.node_access import references
from controlplane.apiserver.resources import by_kind
from controlplane.apiserver.routing import parse
from controlplane.apiserver.timestamps import rfc3339, seconds
from controlplane.apiserver.tokens import BadTokenError, TokenSigner
from controlplane.errors import AuthorityError

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/api/v1/pods", ("list", "pods", "", "", "")),
        ("GET", "/api/v1/pods?watch=true", ("watch", "pods", "", "", "")),
        ("GET", "/api/v1/pods?watch=false", ("list", "pods", "", "", "")),
        ("GET", "/api/v1/watch/namespaces/a/pods", ("watch", "pods", "a", "", "")),
        ("POST", "/api/v1/namespaces/a/pods", ("create", "pods", "a", "", "")),
        ("GET", "/api/v1/namespaces/a/pods/p/log", ("get", "pods", "a", "p", "log")),
        ("POST", "/api/v1/namespaces/a/pods/p/exec?command=x", ("create", "pods", "a", "p", "exec")),
        ("GET", "/api/v1/namespaces/a", ("get", "namespaces", "", "a", "")),
        ("PUT", "/api/v1/namespaces/a/finalize", ("update", "namespaces", "", "a", "finalize")),
        ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", ("patch", "deployments", *"ad", "scale")),
        ("DELETE", "/api/v1/namespaces/a/configmaps", ("deletecollection", "configmaps", "a", "", "")),
        ("DELETE", "/api/v1/nodes/n%2E1/", ("delete", "nodes", "", "n.1", "")),
    ],
)
def test_request_lines(method: str, target: str, expected: tuple[str, ...]) -> None:
    found = parse(method, target)
    assert found.info is not None
    assert (found.verb, found.info.plural, found.namespace, found.name, found.subresource) == expected


@pytest.mark.parametrize(
    ("target", "unknown"),
    [
        ("/api", False),
        ("/api/v1/nonsense", True),
        ("/api/v1/pods/p", True),
        ("/api/v1/namespaces/a/nodes", True),
        ("/api/v1/namespaces/a/pods/p/nonsense", True),
        ("/apis/nobody/v1/x", False),
    ],
)
def test_lines_that_name_no_resource(target: str, unknown: bool) -> None:
    found = parse("GET", target)
    assert found.info is None and found.unknown is unknown


def obj(kind: str = "Pod", **metadata: Any) -> dict[str, Any]:
    api_version = "apps/v1" if kind == "Deployment" else "v1"
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", **metadata}, "spec": {}}


def info_of(found: dict[str, Any]) -> Any:
    return by_kind(found["apiVersion"], found["kind"])


@pytest.mark.parametrize(
    ("change", "options", "action", "grace"),
    [
        ({}, DeleteOptions(), "remove", 0),
        ({"spec": {"nodeName": "n"}}, DeleteOptions(), "keep", 30),
        ({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 7}}, DeleteOptions(), "keep", 7),
        ({"spec": {"nodeName": "n"}}, DeleteOptions(grace_period_seconds=3), "keep", 3),
        ({"spec": {"nodeName": "n"}}, DeleteOptions(grace_period_seconds=0), "remove", 0),
        ({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}, DeleteOptions(), "remove", 0),
    ],
)
def test_how_long_a_pod_is_given(
    change: dict[str, Any], options: DeleteOptions, action: str, grace: int
) -> None:
    pod = {**obj(), **change}
    decision = decide(info_of(pod), pod, options, NOW)
    metadata = decision.obj["metadata"]
    assert (decision.action, metadata["deletionGracePeriodSeconds"]) == (action, grace)
    assert seconds(metadata["deletionTimestamp"]) == NOW + grace


def test_a_pod_with_a_finalizer_stays_after_its_kubelet_is_done() -> None:
    pod = {**obj(finalizers=["f"]), "spec": {"nodeName": "n"}}
    marked = decide(info_of(pod), pod, DeleteOptions(), NOW).obj
    done = decide(info_of(pod), marked, DeleteOptions(grace_period_seconds=0), NOW)
    assert done.action == "keep" and not finished(info_of(pod), done.obj)
    again = decide(info_of(pod), done.obj, DeleteOptions(grace_period_seconds=0), NOW)
    assert again.action == "unchanged"
    again.obj["metadata"].pop("finalizers")
    assert finished(info_of(pod), again.obj)


@pytest.mark.parametrize(
    ("policy", "before", "after"),
    [
        (None, ["f"], ["f"]),
        ("Orphan", ["f"], ["f", "orphan"]),
        ("Foreground", ["orphan"], ["foregroundDeletion"]),
        ("Background", ["orphan", "f"], ["f"]),
        (None, ["orphan"], ["orphan"]),
    ],
)
def test_propagation_policies_are_finalizers(policy: str | None, before: list[str], after: list[str]) -> None:
    found = obj("Deployment", finalizers=before)
    decision = decide(info_of(found), found, DeleteOptions(propagation_policy=policy), NOW)
    assert decision.obj["metadata"]["finalizers"] == after


def service(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], **spec}}


def test_a_refused_write_gives_its_address_back() -> None:
    allocator = ServiceAllocator("10.0.0.0/30", (30000, 30000), random.Random(1))
    first = service(type="NodePort")
    settle = allocator.allocate(first, None)
    assert first["spec"]["clusterIP"] in ("10.0.0.1", "10.0.0.2")
    with pytest.raises(StatusError, match="range is full"):
        allocator.allocate(service(type="NodePort"), None)
    settle(False)
    second = service(type="NodePort")
    allocator.allocate(second, None)(True)
    assert second["spec"]["ports"][0]["nodePort"] == 30000


def test_dynamic_addresses_keep_clear_of_the_static_band() -> None:
    allocator = ServiceAllocator("10.96.0.0/24", (30000, 32767), random.Random(1))
    for _ in range(200):
        made = service()
        allocator.allocate(made, None)
        assert int(made["spec"]["clusterIP"].rsplit(".", 1)[1]) > 16


def test_headless_and_external_services_take_no_address() -> None:
    allocator = ServiceAllocator("10.96.0.0/24", (30000, 32767))
    headless, external = service(clusterIP="None"), service(type="ExternalName", externalName="x")
    allocator.allocate(headless, None)
    allocator.allocate(external, None)
    assert headless["spec"]["clusterIPs"] == ["None"] and "clusterIP" not in external["spec"]


@pytest.mark.parametrize(
    ("rule", "asked", "allowed"),
    [
        (Rule(("get",), ("",), ("pods",)), Attributes("get", "", "pods"), True),
        (Rule(("get",), ("",), ("pods",)), Attributes("get", "", "pods", "log"), False),
        (Rule(("get",), ("",), ("*/log",)), Attributes("get", "", "pods", "log"), True),
        (Rule(("get",), ("",), ("pods",), ("a",)), Attributes("get", "", "pods", name="b"), False),
        (Rule(("*",), ("*",), ("*",)), Attributes("delete", "apps", "deployments", "scale"), True),
        (Rule(("*",), ("*",), ("*",)), Attributes("get", path="/metrics"), False),
        (Rule(("get",), paths=("/openapi/*",)), Attributes("get", path="/openapi/v3"), True),
        (Rule(("get",), paths=("/api",)), Attributes("get", path="/apis"), False),
    ],
)
def test_rules(rule: Rule, asked: Attributes, allowed: bool) -> None:
    assert rule.allows(asked) is allowed


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "Object"),
        ("*/*", "Object"),
        ("application/vnd.kubernetes.protobuf,application/json", "Object"),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "Table"),
        ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", "Object"),
        ("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "PartialObjectMetadata"),
    ],
)
def test_forms_of_an_answer(accept: str, form: str) -> None:
    assert wanted(accept).form == form


@pytest.mark.parametrize("accept", ["text/html", "application/vnd.kubernetes.protobuf"])
def test_forms_that_nobody_serves(accept: str) -> None:
    with pytest.raises(StatusError) as refused:
        wanted(accept)
    assert refused.value.code == 406


def test_every_way_in_which_a_pod_names_a_secret_or_config_map() -> None:
    spec = {
        "imagePullSecrets": [{"name": "pull"}],
        "volumes": [
            {"name": "a", "secret": {"secretName": "volume"}},
            {"name": "b", "configMap": {"name": "volume"}},
            {"name": "c", "projected": {"sources": [{"secret": {"name": "projected"}}]}},
        ],
        "containers": [
            {
                "envFrom": [{"secretRef": {"name": "all"}}, {"configMapRef": {"name": "all"}}],
                "env": [{"name": "x", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}}],
            }
        ],
        "initContainers": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "init", "key": "k"}}}]}],
    }
    assert set(references(spec)) == {
        ("Secret", "pull"),
        ("Secret", "volume"),
        ("ConfigMap", "volume"),
        ("Secret", "projected"),
        ("Secret", "all"),
        ("ConfigMap", "all"),
        ("Secret", "one"),
        ("ConfigMap", "init"),
    }


def cluster(folder: Path, address: str = "192.0.2.1") -> authority.Cluster:
    return authority.Cluster(folder, address, "n1")


def test_the_authority_makes_everything_once_and_only_what_no_longer_fits(tmp_path: Path) -> None:
    first = {path.name for path in authority.ensure(cluster(tmp_path))}
    assert {"ca.crt", "apiserver.key", "sa.pub", "kubelet.crt", "admin.conf", "scheduler.conf"} <= first
    assert authority.ensure(cluster(tmp_path)) == []
    for path in [*tmp_path.glob("*.conf"), *tmp_path.glob("pki/*.key")]:
        assert path.stat().st_mode & 0o777 == 0o600
    moved = {path.name for path in authority.ensure(cluster(tmp_path, "192.0.2.2"))}
    assert moved == {"apiserver.crt", "apiserver.key", "kubelet.crt", "kubelet.key", "admin.conf"}


def test_another_ca_replaces_every_certificate(tmp_path: Path) -> None:
    authority.ensure(cluster(tmp_path))
    (tmp_path / "pki/ca.crt").unlink()
    made = {path.name for path in authority.ensure(cluster(tmp_path))}
    assert {"ca.crt", "apiserver.crt", "kubelet.crt", "admin.conf", "proxy.conf"} <= made
    assert "sa.key" not in made


def test_tokens_end_are_for_an_audience_and_cannot_be_changed(tmp_path: Path) -> None:
    authority.ensure(cluster(tmp_path))
    now = [NOW]
    pki = tmp_path / "pki"
    signer = TokenSigner(pki / "sa.key", pki / "sa.pub", lambda: now[0])
    token, expires = signer.sign(namespace="a", name="b", uid="u", audiences=["x"], seconds=600)
    assert rfc3339(expires) == rfc3339(NOW + 600)
    assert signer.claims(token, ["x"])["sub"] == "system:serviceaccount:a:b"
    with pytest.raises(BadTokenError, match="other audiences"):
        signer.claims(token, ["y"])
    head, claims, signature = token.split(".")
    with pytest.raises(BadTokenError, match="signature"):
        signer.claims(f"{head}.{claims}.{signature[::-1]}", ["x"])
    now[0] += 600
    with pytest.raises(BadTokenError, match="expired"):
        signer.claims(token, ["x"])


def test_signing_that_cannot_be_prepared_is_told_and_prepared_later(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    signer = TokenSigner(pki / "sa.key", pki / "sa.pub", lambda: NOW)
    with pytest.raises(AuthorityError, match=r"Could not read .*sa\.key"):
        signer.prepare()
    authority.ensure(cluster(tmp_path))
    signer.prepare()
    (pki / "sa.key").unlink()  # it has been read
    assert signer.sign(namespace="a", name="b", uid="u", audiences=["x"], seconds=600)
