"""Server-side apply: who owns what, and what happens when two want the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.apiserver import defaults
from controlplane.apiserver.apply import apply, record_update
from controlplane.apiserver.errors import StatusError
from controlplane.apiserver.fieldsets import from_fields_v1, leaves, readable, to_fields_v1
from controlplane.apiserver.resources import by_kind
from controlplane.apiserver.schema import Schema

SCHEMA = Schema.load()
NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-02T00:00:00Z"
CONFIG_MAP = "io.k8s.api.core.v1.ConfigMap"
DEPLOYMENT = "io.k8s.api.apps.v1.Deployment"


def config_map(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data}


def fill(obj: dict[str, Any]) -> None:
    info = by_kind(obj["apiVersion"], obj["kind"])
    assert info is not None
    defaults.apply(info, obj)


def by(
    live: dict[str, Any] | None,
    config: dict[str, Any],
    manager: str,
    *,
    force: bool = False,
    kind: str = CONFIG_MAP,
) -> dict[str, Any]:
    before = copy.deepcopy(live)
    found = apply(SCHEMA, kind, live, config, manager=manager, force=force, now=NOW, fill=fill)
    assert live == before
    return found


def owners(obj: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["manager"]: entry["fieldsV1"] for entry in obj["metadata"]["managedFields"]}


def test_the_first_apply_creates_and_owns() -> None:
    found = by(None, config_map(a="1"), "A")
    assert found["data"] == {"a": "1"}
    assert found["metadata"]["managedFields"] == [
        {
            "manager": "A",
            "operation": "Apply",
            "apiVersion": "v1",
            "time": NOW,
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {"f:a": {}}},
        }
    ]


def test_another_value_for_somebody_elses_field_is_a_conflict() -> None:
    live = by(None, config_map(a="1"), "A")
    with pytest.raises(StatusError) as caught:
        by(live, config_map(a="2"), "B")
    assert caught.value.to_object() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'Apply failed with 1 conflict: conflict with "A": .data.a',
        "reason": "Conflict",
        "details": {
            "causes": [{"reason": "FieldManagerConflict", "message": 'conflict with "A"', "field": ".data.a"}]
        },
        "code": 409,
    }


def test_force_takes_the_field_over() -> None:
    live = by(None, config_map(a="1", b="1"), "A")
    found = by(live, config_map(a="2"), "B", force=True)
    assert found["data"] == {"a": "2", "b": "1"}
    assert owners(found) == {"A": {"f:data": {"f:b": {}}}, "B": {"f:data": {"f:a": {}}}}


def test_the_same_value_is_shared() -> None:
    found = by(by(None, config_map(a="1"), "A"), config_map(a="1"), "B")
    assert set(owners(found)) == {"A", "B"}
    assert by(found, config_map(), "A")["data"] == {"a": "1"}


def test_what_is_applied_no_longer_goes() -> None:
    live = by(by(None, config_map(a="1", b="1"), "A"), config_map(c="1"), "B")
    assert by(live, config_map(a="1"), "A")["data"] == {"a": "1", "c": "1"}


def test_time_stays_while_nothing_changes() -> None:
    live = by(None, config_map(a="1"), "A")
    again = apply(SCHEMA, CONFIG_MAP, live, config_map(a="1"), manager="A", force=False, now=LATER, fill=fill)
    assert again == live


def test_an_object_without_account_belongs_to_whoever_was_before() -> None:
    live = config_map(a="1")
    with pytest.raises(StatusError, match='conflict with "before-first-apply" using v1 at 2026'):
        by(live, config_map(a="2"), "A")
    assert by(live, config_map(b="2"), "A")["data"] == {"a": "1", "b": "2"}


def test_kubectl_takes_over_what_it_applied_from_the_client_side() -> None:
    live = config_map(a="1")
    live["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": json.dumps(config_map(a="1"))
    }
    assert by(live, config_map(a="2"), "kubectl")["data"] == {"a": "2"}
    left = by(live, config_map(b="2"), "kubectl")
    assert left["data"] == {"b": "2"}, "what it no longer gives goes, as what it applied here would"
    assert left["metadata"]["annotations"] == live["metadata"]["annotations"]
    assert by(live, config_map(b="2"), "other")["data"] == {"a": "1", "b": "2"}


def test_a_client_hands_its_fields_over_by_writing_the_account() -> None:
    live = by(None, config_map(a="1"), "A")
    new = copy.deepcopy(live)
    new["metadata"]["managedFields"][0]["manager"] = "B"
    record_update(SCHEMA, CONFIG_MAP, live, new, manager="edit", now=LATER)
    assert owners(new) == {"B": {"f:data": {"f:a": {}}}}
    assert by(new, config_map(a="2"), "B")["data"] == {"a": "2"}
    for entries in ([], [{"manager": "B"}], None):
        new["metadata"]["managedFields"] = entries
        record_update(SCHEMA, CONFIG_MAP, live, new, manager="edit", now=LATER)
        assert owners(new) == owners(live), "what is no account ends none"
    by_status = copy.deepcopy(live)
    by_status["metadata"]["managedFields"][0]["manager"] = "B"
    record_update(SCHEMA, CONFIG_MAP, live, by_status, manager="edit", now=LATER, subresource="status")
    assert owners(by_status) == owners(live)
    new["metadata"]["managedFields"] = [{}]
    record_update(SCHEMA, CONFIG_MAP, live, new, manager="edit", now=LATER)
    assert "managedFields" not in new["metadata"]


@pytest.mark.parametrize("element", ["v:x", "v:", "k:{", "k:1", 'k:["name"]'])
def test_an_account_that_names_items_by_no_json_is_none(element: str) -> None:
    live = by(None, config_map(a="1"), "A")
    new = copy.deepcopy(live)
    new["metadata"]["managedFields"][0] |= {
        "manager": "B",
        "fieldsV1": {"f:metadata": {"f:finalizers": {element: {}}}},
    }
    record_update(SCHEMA, CONFIG_MAP, live, new, manager="edit", now=LATER)
    assert owners(new) == owners(live)


def test_an_update_takes_fields_and_an_apply_gets_them_back_by_force() -> None:
    live = by(None, config_map(a="1", b="1"), "A")
    new = copy.deepcopy(live)
    new["data"] = {"a": "9", "c": "1"}
    record_update(SCHEMA, CONFIG_MAP, live, new, manager="edit", now=LATER)
    assert owners(new) == {"edit": {"f:data": {"f:a": {}, "f:c": {}}}}
    with pytest.raises(StatusError, match='conflict with "edit"'):
        by(new, config_map(a="1", b="1"), "A")
    assert by(new, config_map(a="1", b="1"), "A", force=True)["data"] == {"a": "1", "b": "1", "c": "1"}


def test_objects_that_were_never_applied_cost_nothing() -> None:
    new = config_map(a="2")
    record_update(SCHEMA, CONFIG_MAP, config_map(a="1"), new, manager="edit", now=NOW)
    assert "managedFields" not in new["metadata"]


def deployment(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    template = {"spec": {"containers": list(containers)}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {"template": template, **spec},
    }


def containers(obj: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = obj["spec"]["template"]["spec"]["containers"]
    return found


def test_keyed_lists_join_by_key_and_items_go_when_nobody_wants_them() -> None:
    first, second = {"name": "a", "image": "1"}, {"name": "b", "image": "1"}
    live = by(None, deployment(first, second), "A", kind=DEPLOYMENT)
    live = by(live, deployment({"name": "b", "stdin": True}), "B", kind=DEPLOYMENT)
    assert containers(live) == [first, {**second, "stdin": True}]
    found = by(live, deployment(first), "A", kind=DEPLOYMENT)
    assert containers(found) == [first, {"name": "b", "stdin": True}]
    assert containers(by(found, deployment(first, replicas=2), "B", kind=DEPLOYMENT)) == [first]


PROBE = {"httpGet": {"path": "/", "port": 80}}
FIRST = {"name": "a", "image": "1", "livenessProbe": PROBE, "ports": [{"containerPort": 80}]}
SECOND = {"name": "b", "image": "1"}


def stored(obj: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(obj)
    fill(found)
    return found


def from_the_client_side(config: dict[str, Any]) -> dict[str, Any]:
    live = stored(config)
    live["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": json.dumps(config)
    }
    return live


def with_volume(*items: dict[str, Any]) -> dict[str, Any]:
    found = deployment(*items)
    found["spec"]["template"]["spec"]["volumes"] = [{"name": "v", "configMap": {"name": "m"}}]
    return found


@pytest.mark.parametrize("between", [0, 1, 2])
def test_what_the_manifest_drops_goes_with_its_defaults(between: int) -> None:
    live = from_the_client_side(with_volume(FIRST, SECOND))
    for _ in range(between):
        live = stored(by(live, with_volume(FIRST, SECOND), "kubectl", kind=DEPLOYMENT))
    plain = {"name": "a", "image": "1"}
    found = stored(by(live, deployment(plain), "kubectl", kind=DEPLOYMENT))
    assert found["spec"] == stored(deployment(plain))["spec"]


def test_a_probe_goes_whole_where_it_was_applied_to_the_server_from_the_first() -> None:
    live = stored(by(None, deployment(FIRST), "A", kind=DEPLOYMENT))
    found = stored(by(live, deployment({"name": "a", "image": "1"}), "A", kind=DEPLOYMENT))
    assert "livenessProbe" not in containers(found)[0]


def test_another_kind_of_volume_takes_the_defaults_of_the_last_along() -> None:
    live = from_the_client_side(with_volume(FIRST))
    other = with_volume(FIRST)
    other["spec"]["template"]["spec"]["volumes"] = [{"name": "v", "emptyDir": {}}]
    found = by(live, other, "kubectl", kind=DEPLOYMENT)
    assert found["spec"]["template"]["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]


def test_replicas_that_the_manifest_leaves_out_stay_as_somebody_scaled_them() -> None:
    live = from_the_client_side(deployment(FIRST))
    live["spec"]["replicas"] = 3
    assert by(live, deployment(SECOND), "kubectl", kind=DEPLOYMENT)["spec"]["replicas"] == 3


def test_an_item_goes_with_what_others_wrote_into_it() -> None:
    live = by(None, deployment(FIRST, SECOND), "A", kind=DEPLOYMENT)
    new = copy.deepcopy(live)
    containers(new)[1]["image"] = "2"
    record_update(SCHEMA, DEPLOYMENT, live, new, manager="edit", now=LATER)
    assert containers(by(new, deployment(FIRST), "A", kind=DEPLOYMENT)) == [FIRST]


@pytest.mark.parametrize("text", ["[]", "1", "{", '{"data": 1}'])
def test_an_annotation_that_is_no_manifest_gives_nothing(text: str) -> None:
    live = config_map(a="1")
    live["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": text}
    assert by(live, config_map(b="2"), "kubectl")["data"] == {"a": "1", "b": "2"}


def test_finalizers_of_the_server_stay() -> None:
    claim = config_map()
    claim["metadata"]["finalizers"] = ["a.example/f"]
    live = by(None, claim, "A")
    live["metadata"]["finalizers"].append("kubernetes.io/pvc-protection")
    assert by(live, config_map(), "A")["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]


def test_conflicts_name_the_item_of_the_list() -> None:
    live = by(None, deployment({"name": "a", "image": "1"}), "A", kind=DEPLOYMENT)
    with pytest.raises(StatusError) as caught:
        by(live, deployment({"name": "a", "image": "2"}), "B", kind=DEPLOYMENT)
    assert '.spec.template.spec.containers[name="a"].image' in caught.value.message


def test_a_port_without_protocol_is_a_tcp_port() -> None:
    port = {"name": "a", "ports": [{"containerPort": 80}]}
    full = {"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}]}
    live = by(None, deployment(full), "A", kind=DEPLOYMENT)
    assert containers(by(live, deployment(port), "B", kind=DEPLOYMENT)) == [full]


def test_a_selector_is_owned_whole() -> None:
    live = by(None, deployment(selector={"matchLabels": {"a": "b"}}), "A", kind=DEPLOYMENT)
    assert owners(live)["A"]["f:spec"]["f:selector"] == {}


def test_a_manager_must_give_its_name() -> None:
    with pytest.raises(StatusError) as caught:
        by(None, config_map(), "")
    assert caught.value.message == (
        'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
    )


def test_a_config_carries_no_account_of_its_own() -> None:
    config = config_map()
    config["metadata"]["managedFields"] = [{"manager": "x"}]
    with pytest.raises(StatusError, match="managedFields must be nil"):
        by(None, config, "A")


def test_field_sets_survive_the_way_there_and_back() -> None:
    trie = {
        "f:spec": {
            ".": {},
            "f:containers": {'k:{"name":"c"}': {".": {}, "f:image": {}, "f:name": {}}},
            "f:x": {},
        }
    }
    assert to_fields_v1(from_fields_v1(trie)) == trie
    assert readable(("f:metadata", "f:finalizers", 'v:"a/b"')) == '.metadata.finalizers[="a/b"]'


def test_accounts_are_those_of_a_real_server(oracle: Callable[[str], Any]) -> None:
    recorded = {
        name: json.loads(body) for name, code, _, body in oracle("samples.json") if name == "create pod"
    }
    pod = recorded["create pod"]
    entry = pod["metadata"]["managedFields"][0]
    pruned = SCHEMA.check("io.k8s.api.core.v1.Pod", {"spec": pod["spec"]}).obj
    spec = pruned["spec"]
    # What admission added after the account was made.
    for name in ("tolerations", "priority", "preemptionPolicy"):
        del spec[name]
    mine = set(leaves(SCHEMA, "io.k8s.api.core.v1.Pod", {"spec": spec}))
    theirs = from_fields_v1(entry["fieldsV1"])
    # An Update also lists the parents that appeared; a null list is a field to Go and none to us.
    parents = {path[:n] for path in theirs for n in range(len(path))}
    assert mine <= theirs
    assert {path for path in theirs - mine if path not in parents} == {
        ("f:spec", "f:volumes", 'k:{"name":"pr"}', "f:projected", "f:sources")
    }
