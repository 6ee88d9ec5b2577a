"""Discovery documents and the table of kinds behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.apiserver import discovery
from controlplane.apiserver.resources import RESOURCES, ResourceInfo, by_kind, lookup
from controlplane.apiserver.schema import Schema

SCHEMA = Schema.load()


@pytest.mark.parametrize("info", RESOURCES, ids=lambda info: f"{info.group}-{info.plural}")
def test_every_kind_has_a_type(info: ResourceInfo) -> None:
    assert (info.definition in SCHEMA) != info.measured
    assert (info.definition + "List" in SCHEMA) == info.stored
    assert by_kind(info.api_version, info.kind) is info
    assert lookup(info.group, info.version, info.plural) is info


def test_core_is_one_version_and_groups_name_a_preferred_one() -> None:
    assert json.loads(discovery.api_versions("1.2.3.4:6443"))["versions"] == ["v1"]
    groups = {group["name"]: group for group in json.loads(discovery.api_groups())["groups"]}
    assert groups["autoscaling"]["preferredVersion"]["version"] == "v2"
    assert [v["version"] for v in groups["autoscaling"]["versions"]] == ["v2", "v1"]
    assert "" not in groups
    assert discovery.api_group("nonsense") is None
    assert discovery.resource_list("apps", "v9") is None


def test_names_short_names_and_categories() -> None:
    listed = {
        item["name"]: item for item in json.loads(discovery.resource_list("apps", "v1") or b"")["resources"]
    }
    assert listed["deployments"] == {
        "name": "deployments",
        "singularName": "deployment",
        "namespaced": True,
        "kind": "Deployment",
        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        "shortNames": ["deploy"],
        "categories": ["all"],
    }
    assert listed["deployments/scale"]["group"] == "autoscaling"
    assert listed["deployments/scale"]["kind"] == "Scale"


def test_the_aggregated_form_holds_the_same_kinds() -> None:
    for version in discovery.AGGREGATED_VERSIONS:
        document = json.loads(discovery.aggregated("/apis", version))
        assert document["apiVersion"] == f"apidiscovery.k8s.io/{version}"
        seen = {
            (group["metadata"]["name"], served["version"], item["resource"])
            for group in document["items"]
            for served in group["versions"]
            for item in served["resources"]
        }
        assert seen == {(i.group, i.version, i.plural) for i in RESOURCES if i.group}
    core = json.loads(discovery.aggregated("/api", "v2"))["items"][0]["versions"][0]["resources"]
    pods = next(item for item in core if item["resource"] == "pods")
    assert {sub["subresource"] for sub in pods["subresources"]} >= {"log", "exec", "status", "eviction"}
    assert pods["scope"] == "Namespaced"


def test_entries_are_those_of_a_real_server(oracle: Callable[[str], Any]) -> None:
    compared = 0
    for path, recorded in oracle("discovery.json").items():
        parts = path.split("/")
        group, version = ("", parts[2]) if parts[1] == "api" else (parts[2], parts[3])
        raw = discovery.resource_list(group, version)
        if raw is None:
            continue
        mine = {item["name"]: item for item in json.loads(raw)["resources"]}
        for wanted in recorded["resources"]:
            name = wanted["name"]
            if name not in mine or name in ("pods/eviction", "services"):
                continue
            compared += 1
            wanted.pop("storageVersionHash", None)
            assert {**mine[name], "singularName": ""} == wanted
    assert compared > 60
