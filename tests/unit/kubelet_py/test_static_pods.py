"""Manifests from files, and what the agent makes of them."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.errors import ConfigError
from kubelet_py.pods import static_pods
from kubelet_py.pods.admission import has_turn, requests
from kubelet_py.pods.context import ObjectSource
from kubelet_py.pods.manifests import Manifest, parse
from kubelet_py.pods.model import is_static
from kubelet_py.pods.pod_manager import PodManager
from runtime.values import Sandbox, SandboxConfig

NOW = 1_700_000_000.0
SOURCE, MIRROR = "kubernetes.io/config.source", "kubernetes.io/config.mirror"


def pod(name: str = "web", **spec: Any) -> dict[str, Any]:
    containers = [{"name": "c", "image": "busybox"}]
    return {"kind": "Pod", "metadata": {"name": name}, "spec": {"containers": containers, **spec}}


def only(manifest: Manifest) -> dict[str, Any]:
    [made] = manifest.pods.values()
    return made


def test_a_manifest_becomes_a_pod_of_this_node() -> None:
    made = only(parse(json.dumps(pod()), "/m/web.json", "N1", NOW))
    assert made["metadata"]["name"] == "web-n1" and made["spec"]["nodeName"] == "N1"
    annotations = made["metadata"]["annotations"]
    assert annotations[SOURCE] == "file"
    assert annotations["kubernetes.io/config.hash"] == made["metadata"]["uid"]
    changed = only(parse(json.dumps(pod(hostname="x")), "/m/web.json", "N1", NOW))
    assert changed["metadata"]["uid"] != made["metadata"]["uid"]
    elsewhere = only(parse(json.dumps(pod()), "/m/other.json", "N1", NOW))
    assert elsewhere["metadata"]["uid"] != made["metadata"]["uid"]
    mirror = static_pods.mirror_of(made, "node-uid")
    assert "uid" not in mirror["metadata"]
    assert mirror["metadata"]["annotations"][MIRROR] == made["metadata"]["uid"]


def test_a_pod_of_an_address_says_so_and_tolerates_nothing_by_itself() -> None:
    made = only(parse(json.dumps(pod()), "http://h/m", "n1", NOW, "http"))
    assert made["metadata"]["annotations"][SOURCE] == "http"
    assert "tolerations" not in made["spec"]
    assert only(parse(json.dumps(pod()), "/m", "n1", NOW))["spec"]["tolerations"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(
            {"kind": "PodList", "items": [{k: v for k, v in pod("a").items() if k != "kind"}, pod("b")]}
        ),
        json.dumps({"kind": "List", "items": [pod("a"), pod("b")]}),
        "---\n".join(
            f"kind: Pod\nmetadata: {{name: {n}}}\nspec: {{containers: [{{name: c, image: b}}]}}\n"
            for n in "ab"
        ),
    ],
)
def test_a_text_may_hold_several_pods(text: str) -> None:
    made = parse(text, "http://h/m", "n1", NOW, "http")
    assert sorted(p["metadata"]["name"] for p in made.pods.values()) == ["a-n1", "b-n1"]


@pytest.mark.parametrize(
    "text",
    [
        "[]", "{", "", json.dumps({"kind": "Service"}), json.dumps({"kind": "Pod"}),
        json.dumps({**pod(), "apiVersion": "apps/v1"}),
        json.dumps({"kind": "PodList", "items": "x"}), json.dumps({"kind": "ConfigMap"}),
        json.dumps({"kind": "ConfigMap", "metadata": {"name": "c"}, "data": [1]}),
        json.dumps({"kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "no base64!"}}),
        json.dumps({**pod(), "metadata": {"name": "p", "annotations": {"half": "\ud800"}}}),
        json.dumps(pod(terminationGracePeriodSeconds=10**30)),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="/m/x"):
        parse(text, "/m/x", "n1", NOW)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"containers": "abc"}, "spec.containers: must be a list, not a text"),
        ({"containers": [None]}, "spec.containers[0].name: Required value"),
        ({"containers": [{"name": "a"}]}, "spec.containers[0].image: Required value"),
        ({"containers": [{"name": "A_B", "image": "b"}]}, 'spec.containers[0].name: Invalid value: "A_B"'),
        ({"initContainers": [{"name": "c", "image": "b"}]}, 'spec.containers[0].name: Duplicate value: "c"'),
        ({"restartPolicy": "Maybe"}, 'spec.restartPolicy: Unsupported value: "Maybe"'),
        ({"terminationGracePeriodSeconds": "5"}, "must be a whole number, not a text"),
        ({"terminationGracePeriodSeconds": 1.5}, "must be a whole number, not a number"),
        ({"hostNetwork": "yes"}, "spec.hostNetwork: must be true or false, not a text"),
        ({"ephemeralContainers": [{"name": "e"}]}, "static pods do not support ephemeral containers"),
        ({"overhead": {"cpu": "x"}}, 'spec.overhead[cpu]: Invalid value: "x"'),
        ({"volumes": [{"name": "v", "hostPath": {}}]}, "spec.volumes[0].hostPath.path: Required value"),
        ({"volumes": [{"name": "v", "secret": {}}]}, "spec.volumes[0].secret.secretName: Required value"),
        ({"volumes": [{"name": "v", "emptyDir": {}, "nfs": {}}]}, "nfs: Forbidden: may not specify more"),
        (
            {"volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"items": []}}]}}]},
            "spec.volumes[0].projected.sources[0].configMap.name: Required value",
        ),
        (
            {"volumes": [{"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "mode": 2541}]}}]},
            "spec.volumes[0].configMap.items[0].path: Required value, "
            "spec.volumes[0].configMap.items[0].mode: Invalid value: 2541: must be between 0 and 511",
        ),
        ({"securityContext": {"runAsUser": -1}}, "spec.securityContext.runAsUser: Invalid value: -1"),
        ({"securityContext": {"fsGroup": 2**31}}, "spec.securityContext.fsGroup: Invalid value: 2147483648"),
        (
            {"securityContext": {"supplementalGroupsPolicy": "strict"}},
            'spec.securityContext.supplementalGroupsPolicy: Unsupported value: "strict"',
        ),
        (
            {"securityContext": {"windowsOptions": {"runAsUserName": "x"}}},
            "spec.securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod",
        ),
    ],
)
def test_a_pod_that_the_api_would_not_take_is_refused(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as refused:
        parse(json.dumps(pod(**spec)), "/m/x", "n1", NOW)
    assert str(refused.value).startswith("Could not use /m/x: invalid pod: [")


HTTP = {"httpGet": {"port": "web-1"}}


@pytest.mark.parametrize(
    ("container", "says"),
    [
        ({"resources": {"limits": {"cpu": "abc"}}}, 'resources.limits[cpu]: Invalid value: "abc"'),
        (
            {"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}},
            'resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1',
        ),
        ({"ports": [{"containerPort": 80, "hostPort": "http"}]}, "hostPort: must be a whole number"),
        ({"ports": [{"containerPort": 70000}]}, "containerPort: Invalid value: 70000"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, 'volumeMounts[0].name: Not found: "v"'),
        ({"env": [{"name": "N", "value": 1}]}, "env[0].value: must be a text, not a number"),
        ({"livenessProbe": {}}, "livenessProbe: Required value: must specify a handler type"),
        ({"livenessProbe": {"exec": {}, "grpc": {}}}, "grpc: Forbidden: may not specify more than 1"),
        ({"livenessProbe": {"exec": {}, "periodSeconds": -1}}, "periodSeconds: Invalid value: -1"),
        ({"lifecycle": {"preStop": {}}}, "lifecycle.preStop: Required value: must specify a handler type"),
        ({"lifecycle": {"postStart": {"grpc": {}}}}, "lifecycle.postStart: Required value: must specify a"),
        (
            {"lifecycle": {"postStart": {"exec": {}, "sleep": {}}}},
            "lifecycle.postStart.sleep: Forbidden: may not specify more than 1 handler type",
        ),
        ({"livenessProbe": {"exec": {}}}, "livenessProbe.exec.command: Required value"),
        ({"readinessProbe": {"httpGet": {"path": "/"}}}, "httpGet.port: Invalid value: 0: must be between 1"),
        ({"readinessProbe": {"tcpSocket": {"port": "80"}}}, 'tcpSocket.port: Invalid value: "80": must be'),
        ({"startupProbe": {"grpc": {"port": 70000}}}, "grpc.port: Invalid value: 70000"),
        ({"startupProbe": {"httpGet": {"port": 1, "scheme": "FTP"}}}, 'scheme: Unsupported value: "FTP"'),
        ({"livenessProbe": {**HTTP, "successThreshold": 2}}, "successThreshold: Invalid value: 2: must be 1"),
        (
            {"livenessProbe": {**HTTP, "terminationGracePeriodSeconds": 0}},
            "livenessProbe.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            {"readinessProbe": {**HTTP, "terminationGracePeriodSeconds": 5}},
            "terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes",
        ),
        (
            {"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}},
            "preStop.sleep: Invalid value: 31: must be greater than 0 and less than "
            "terminationGracePeriodSeconds (30)",
        ),
        (
            {"securityContext": {"procMount": "Unmasked"}},
            'procMount: Invalid value: "Unmasked": `hostUsers` must be false to use `Unmasked`',
        ),
        ({"securityContext": {"procMount": "Open"}}, 'procMount: Unsupported value: "Open"'),
        (
            {"securityContext": {"privileged": True, "allowPrivilegeEscalation": False}},
            "securityContext: Invalid value: cannot set `allowPrivilegeEscalation` to false and `privileged`",
        ),
        (
            {"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Both"}]},
            'volumeMounts[0].mountPropagation: Unsupported value: "Both"',
        ),
        ({"imagePullPolicy": "Once"}, 'imagePullPolicy: Unsupported value: "Once"'),
        ({"restartPolicy": "Always"}, "restartPolicy: Forbidden: may not be set for non-init containers"),
    ],
)
def test_a_container_that_the_api_would_not_take_is_refused(container: dict[str, Any], says: str) -> None:
    whole = pod(containers=[{"name": "c", "image": "b", **container}])
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse(json.dumps(whole), "/m/x", "n1", NOW)


def test_probes_and_hooks_that_are_whole_are_taken() -> None:
    hooks = {"postStart": {"sleep": {"seconds": 30}}, "preStop": {"httpGet": {"port": 80, "scheme": "HTTPS"}}}
    probes = {"readinessProbe": {**HTTP, "successThreshold": 2}, "livenessProbe": {"grpc": {"port": 80}}}
    whole = pod(containers=[{"name": "c", "image": "b", "lifecycle": hooks, **probes}])
    assert only(parse(json.dumps(whole), "/m/x", "n1", NOW))["spec"]["containers"][0]["lifecycle"] == hooks


def test_zero_and_an_empty_text_are_what_is_not_set() -> None:
    numbers = ("timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold")
    probe = {"tcpSocket": {"port": 80}, "initialDelaySeconds": 0, **dict.fromkeys(numbers, 0)}
    empty = dict.fromkeys(("imagePullPolicy", "terminationMessagePolicy", "terminationMessagePath"), "")
    ports = [{"containerPort": 80, "protocol": ""}]
    container = {"name": "c", "image": "b", **empty, "ports": ports, "livenessProbe": probe}
    whole = pod(containers=[container], restartPolicy="", dnsPolicy="")
    spec = only(parse(json.dumps(whole), "/m/x", "n1", NOW))["spec"]
    assert (spec["restartPolicy"], spec["dnsPolicy"]) == ("Always", "ClusterFirst")
    [made] = spec["containers"]
    assert [made[name] for name in empty] == ["Always", "File", "/dev/termination-log"]
    assert made["ports"][0]["protocol"] == "TCP"
    assert [made["livenessProbe"][name] for name in numbers] == [1, 10, 1, 3]


@pytest.mark.parametrize(("given", "taken"), [(-1, 1), (0, 0), (7.0, 7), (None, 30)])
def test_a_grace_below_zero_is_a_second_and_zero_is_zero(given: Any, taken: int) -> None:
    text = json.dumps(pod(terminationGracePeriodSeconds=given))
    assert only(parse(text, "/m/x", "n1", NOW))["spec"]["terminationGracePeriodSeconds"] == taken


@pytest.mark.parametrize("depth", [120, 400, 900, 5000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
def test_a_manifest_that_is_nested_too_deeply_is_refused(depth: int, opening: str, closing: str) -> None:
    nested = opening * depth + "1" + closing * depth
    for kind in ("Pod", "ConfigMap"):
        text = json.dumps({**pod(), "kind": kind, "more": "HERE"}).replace('"HERE"', nested)
        with pytest.raises(ConfigError, match="/m/x: it is nested too deeply"):
            parse(text, "/m/x", "n1", NOW)


@pytest.mark.parametrize("name", ["../../etc", "A", "a_b", "x" * 260])
def test_a_name_that_is_no_name_does_not_become_a_folder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"metadata\.name: Invalid value"):
        parse(json.dumps(pod(name)), "/m/x", "n1", NOW)
    with pytest.raises(ConfigError, match=r"metadata\.namespace: Invalid value"):
        parse(json.dumps({**pod(), "metadata": {"name": "p", "namespace": name}}), "/m/x", "n1", NOW)


RICH = {
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}, "annotations": {"a": "b"}},
    "spec": {
        "containers": [{
            "name": "c", "image": "b", "command": ["x"], "ports": [{"containerPort": 80, "hostPort": 80}],
            "env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
            "envFrom": [{"secretRef": {"name": "s"}}], "resources": {"limits": {"cpu": "1"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 1},
            "lifecycle": {"preStop": {"exec": {"command": ["x"]}}},
            "securityContext": {"capabilities": {"add": ["X"]}, "runAsUser": 1},
        }],
        "initContainers": [{"name": "i", "image": "b", "restartPolicy": "Always"}],
        "volumes": [{"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}}],
        "tolerations": [{"operator": "Exists"}], "nodeSelector": {"a": "b"}, "overhead": {"cpu": "1"},
        "securityContext": {"sysctls": [{"name": "a", "value": "b"}], "supplementalGroups": [1]},
        "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["h"]}], "dnsConfig": {"options": [{"name": "o"}]},
    },
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def with_value(path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    whole = json.loads(json.dumps(RICH))
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole


ANYTHING = [None, "text", 7, 1.5, True, [], {}, [None], ["text"], {"a": None}, {"a": {}}]


@pytest.mark.parametrize("value", ANYTHING)
def test_whatever_stands_at_any_place_it_is_taken_or_refused(value: Any) -> None:
    parse(json.dumps(RICH), "/m/x", "n1", NOW)
    for path in places(RICH):
        with contextlib.suppress(ConfigError):
            made = parse(json.dumps(with_value(path, value)), "/m/x", "n1", NOW)
            for taken in made.pods.values():
                requests(taken)


FIELDS = ("items", "sources", "defaultMode", "path", "foo")
VOLUMES = {
    "emptyDir": {}, "hostPath": {"path": "/h"}, "nfs": {"server": "s", "path": "/n"}, "iscsi": {}, "csi": {},
    "configMap": {"name": "m"}, "secret": {"secretName": "s"}, "persistentVolumeClaim": {"claimName": "c"},
    "projected": {"sources": [{"clusterTrustBundle": {}}, {"serviceAccountToken": {"path": "t"}}]},
    "image": {"reference": "i"}, "downwardAPI": {"items": []}, "glusterfs": {}, "foo": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", VOLUMES)
def test_fields_that_no_volume_of_its_kind_has_end_no_thread(kind: str) -> None:
    given = [ANYTHING, *([{**VOLUMES[kind], field: value} for value in ANYTHING] for field in FIELDS)]
    inner = VOLUMES["projected"]["sources"] if kind == "projected" else []
    for entry in inner:
        (name,) = entry
        given.append([
            {"sources": [{name: {**entry[name], field: value}}]} for field in FIELDS for value in ANYTHING
        ])  # fmt: skip
        given.append([{"sources": [{name: value}]} for value in ANYTHING])
    for source in (source for sources in given for source in sources):
        with contextlib.suppress(ConfigError):
            parse(json.dumps(pod(volumes=[{"name": "v", kind: source}])), "/m/x", "n1", NOW)


def test_yaml_is_read_as_it_becomes_json() -> None:
    text = (
        "kind: Pod\n"
        "metadata: {name: p, creationTimestamp: null, annotations: {made: 2026-01-01, 1: a, b: c}}\n"
        "spec: {containers: [{name: c, image: b, resources: {}}]}\nstatus: {}\n"
    )
    made = only(parse(text, "/m/p.yaml", "n1", NOW))
    annotations = made["metadata"]["annotations"]
    assert annotations["made"] == "2026-01-01" and annotations["1"] == "a"
    assert "creationTimestamp" not in made["metadata"]
    json.dumps(made)
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse("&a [*a]", "/m/p.yaml", "n1", NOW)


def test_a_number_with_colons_is_a_text_and_a_whole_one_may_have_a_point() -> None:
    text = (
        "kind: Pod\nmetadata: {name: p}\nspec:\n  securityContext: {runAsUser: 1000.0}\n  containers:\n"
        "  - {name: c, image: b, args: ['-p', 8080:22, 1:30.5, -1:30], resources: {limits: {cpu: 0.5}},\n"
        "     ports: [{containerPort: 0x50}]}\n"
    )
    spec = only(parse(text, "/m/p.yaml", "n1", NOW))["spec"]
    [container] = spec["containers"]
    assert container["args"] == ["-p", "8080:22", "1:30.5", "-1:30"]
    assert container["resources"]["limits"]["cpu"] == 0.5 and container["ports"][0]["containerPort"] == 80
    user = spec["securityContext"]["runAsUser"]
    assert user == 1000 and isinstance(user, int)


@pytest.mark.parametrize("value", ["!!int x", "!!float x", "!!bool x", "!!timestamp x", "9" * 5000])
def test_a_value_that_yaml_cannot_make_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"Could not parse /m/p\.yaml"):
        parse(f"kind: Pod\nmetadata: {{name: {value}}}\n", "/m/p.yaml", "n1", NOW)


def test_objects_beside_the_pods_are_as_the_api_keeps_them() -> None:
    secret = {"kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "YQ=="}, "stringData": {"b": "bb"}}
    config = {"kind": "ConfigMap", "metadata": {"name": "c", "namespace": "other"}, "data": {"k": "v"}}
    text = json.dumps({"kind": "List", "items": [secret, config]})
    objects = parse(text, "/m", "n1", NOW).objects
    assert objects[("configmap", "other", "c")]["data"] == {"k": "v"}
    held = objects[("secret", "default", "s")]["data"]
    assert {key: base64.b64decode(value) for key, value in held.items()} == {"a": b"a", "b": b"bb"}


def test_only_static_pods_see_what_lies_beside_the_manifests() -> None:
    source = ObjectSource(None)
    secret = {"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "v"}}
    found = parse(json.dumps(secret), "/m", "n1", NOW).objects
    assert source.keep_local("file", found) == {("secret", "default", "s")}
    assert source.keep_local("file", found) == set()
    static = only(parse(json.dumps(pod()), "/m", "n1", NOW))
    seen = source.lookup(static)("secret", "s")
    assert seen is not None and seen["data"] == {"k": "v"}
    assert source.lookup({"metadata": {"namespace": "default", "name": "p"}})("secret", "s") is None
    assert source.keep_local("file", {}) == {("secret", "default", "s")}
    assert source.lookup(static)("secret", "s") is None


def test_the_folder_is_followed(tmp_path: Path) -> None:
    told: list[list[str]] = []

    def changed(manifest: Manifest) -> None:
        told.append(
            [*(p["metadata"]["name"] for p in manifest.pods.values()), *(k[2] for k in manifest.objects)]
        )

    static = static_pods.StaticPods(tmp_path, "n1", changed, period=60)
    static.look()
    (tmp_path / "web.json").write_text(json.dumps(pod()))
    (tmp_path / "c.yaml").write_text("kind: ConfigMap\nmetadata: {name: c}\n")
    (tmp_path / "readme.txt").write_text("no manifest")
    static.look()
    static.look()
    (tmp_path / "web.json").write_text("broken {")
    static.look()
    (tmp_path / "web.json").unlink()
    static.look()
    assert told == [[], ["web-n1", "c"], ["web-n1", "c"], ["c"]], "a broken file keeps its pod"


def test_the_path_may_be_of_one_file(tmp_path: Path) -> None:
    file, told = tmp_path / "web.manifest", []
    file.write_text(json.dumps(pod()))
    static = static_pods.StaticPods(file, "n1", lambda found: told.append(len(found.pods)), period=60)
    static.start()
    static.stop()
    file.unlink()
    static.look()
    assert told == [1, 0]


# Sources that have not told their pods yet


def sandbox(uid: str, source: str) -> Sandbox:
    config = SandboxConfig(name=uid, namespace="default", uid=uid, annotations={SOURCE: source})
    return Sandbox(uid, "READY", 1, "", 0.0, config)


def test_what_runs_of_a_source_that_has_not_answered_is_left_alone(tmp_path: Path) -> None:
    manager = PodManager(None, lambda uid: None, lambda: "")
    (tmp_path / "leftover").mkdir()
    running = [sandbox(s, s) for s in ("api", "file", "http")]
    removed: list[str] = []
    seen = []
    for step in ((), ("file",), ("http",), ("api",)):
        for source in step:
            if source == "api":
                manager.has_told(source)
            else:
                manager.on_static_pods(source, {})
        manager.end_orphans(running, tmp_path, removed.append)
        seen.append((sorted(r.uid for r in manager.records()), [*removed]))
    everything = ["api", "file", "http"]
    assert seen == [([], []), (["file"], []), (["file", "http"], []), (everything, ["leftover"])]


def test_what_runs_of_a_former_manifest_comes_before_the_pod_of_the_new_one() -> None:
    """The manifest was edited while no agent was here: the new pod has its turn when the former is gone."""
    config = SandboxConfig(name="p-n1", namespace="default", uid="former", annotations={SOURCE: "file"})
    held = [Sandbox("s", "READY", 1, "", 0.0, config), sandbox("other", "http")]
    woken: list[str] = []
    manager = PodManager(None, woken.append, lambda: "", sandboxes=lambda: held)
    pods = parse(json.dumps(pod("p")), "/m", "n1", NOW).pods
    manager.on_static_pods("file", pods)
    former, new = manager.records()
    assert (former.uid, former.gone, new.uid) == ("former", True, next(iter(pods)))
    assert woken[0] == "former" and set(woken) == {"former", new.uid}
    assert not has_turn(new, manager.records(), {"former"})
    manager.forget("former")
    assert has_turn(new, manager.records(), set())


def test_what_runs_of_the_manifest_as_it_is_stays() -> None:
    pods = parse(json.dumps(pod("p")), "/m", "n1", NOW).pods
    [uid] = pods
    manager = PodManager(None, lambda uid: None, lambda: "", sandboxes=lambda: [sandbox(uid, "file")])
    manager.on_static_pods("file", pods)
    assert [(record.uid, record.gone) for record in manager.records()] == [(uid, False)]


def test_a_source_ends_only_its_own_pods() -> None:
    manager = PodManager(None, lambda uid: None, lambda: "")
    of_file = parse(json.dumps(pod("a")), "/m", "n1", NOW).pods
    of_http = parse(json.dumps(pod("b")), "http://h/", "n1", NOW, "http").pods
    manager.on_static_pods("file", of_file)
    manager.on_static_pods("http", of_http)
    manager.on_static_pods("file", {})
    assert {r.pod["metadata"]["name"]: r.gone for r in manager.records()} == {"a-n1": True, "b-n1": False}


def test_mirrors_of_a_source_that_has_not_answered_stay() -> None:
    deleted: list[str] = []

    class Client:
        def delete(self, resource: Any, name: str, namespace: str, **options: Any) -> None:
            deleted.append(name)

    manager = PodManager(Client(), lambda uid: None, lambda: "node")  # type: ignore[arg-type]
    for source in ("file", "http"):
        [made] = parse(json.dumps(pod(source)), "x", "n1", NOW, source).pods.values()
        mirror = static_pods.mirror_of(made, "node")
        mirror["metadata"]["uid"] = f"mirror-{source}"
        manager.on_api_event("ADDED", mirror, None)
    manager.on_static_pods("file", {})
    manager.keep_mirrors()
    assert deleted == ["file-n1"]
    manager.on_static_pods("http", {})
    manager.keep_mirrors()
    assert "http-n1" in deleted


def test_a_pod_of_the_api_cannot_pass_itself_off_as_static() -> None:
    manager = PodManager(None, lambda uid: None, lambda: "")
    forged = {
        "metadata": {
            "name": "p",
            "namespace": "default",
            "uid": "u",
            "annotations": {SOURCE: "file", "a": "b"},
        },
        "spec": {"containers": []},
    }
    manager.on_api_event("ADDED", forged, None)
    record = manager.record("u")
    assert (
        record is not None and not is_static(record.pod) and record.pod["metadata"]["annotations"]["a"] == "b"
    )
    manager.on_static_pods("file", {})
    assert not record.gone
