"""What changes while a pod runs is in its files soon, and all at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e_node import Node
from volume_pods import config_map, holding, looking, secret, shown

pytestmark = pytest.mark.e2e

Object = dict[str, Any]
SOON = 60.0  # what the tests allow on a busy machine; the goal of 2 s is measured by tests/bench


def becomes(node: Node, name: str, path: str, wanted: str) -> None:
    node.until(f"{path} of {name} is {wanted!r}", lambda: shown(node, name, path) == wanted, SOON)


def patch(node: Node, kind: str, name: str, change: Object) -> None:
    node.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(change))


KINDS = [
    pytest.param(
        kind,
        projected,
        id=f"{'projected ' if projected else ''}{kind}",
        marks=[pytest.mark.conformance(f"[sig-storage] {area} {about}") for about in abouts],
    )
    for kind, projected, area, abouts in (
        ("configMap", False, "ConfigMap",
         ("updates should be reflected in volume", "optional updates should be reflected in volume")),
        ("configMap", True, "Projected configMap",
         ("updates should be reflected in volume", "optional updates should be reflected in volume")),
        ("secret", False, "Secrets", ("optional updates should be reflected in volume",)),
        ("secret", True, "Projected secret", ("optional updates should be reflected in volume",)),
    )
]  # fmt: skip


@pytest.mark.parametrize(("kind", "projected"), KINDS)
def test_changed_created_and_deleted_objects(node: Node, kind: str, projected: bool) -> None:
    made: Callable[..., Object] = config_map if kind == "configMap" else secret
    tag = f"{'p' if projected else 'v'}-{kind.lower()}"

    def volume(name: str) -> Object:
        if projected:
            sources = [{kind: {"name": f"{tag}-{name}", "optional": True}}]
            return {"name": name, "projected": {"sources": sources}}
        key = "secretName" if kind == "secret" else "name"
        return {"name": name, kind: {key: f"{tag}-{name}", "optional": True}}

    node.apply(made(f"{tag}-changed", {"key": "one"}), made(f"{tag}-deleted", {"key": "here"}))
    node.apply(holding(tag, volume("changed"), volume("deleted"), volume("created")))
    node.wait_running(tag)
    assert [shown(node, tag, f"/{v}/key") for v in ("changed", "deleted", "created")] == ["one", "here", ""]
    node.apply(made(f"{tag}-changed", {"key": "two", "more": "x"}), made(f"{tag}-created", {"key": "new"}))
    node.kubectl("delete", kind, f"{tag}-deleted")
    becomes(node, tag, "/changed/key", "two")
    becomes(node, tag, "/changed/more", "x")
    becomes(node, tag, "/created/key", "new")
    becomes(node, tag, "/deleted/key", "")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.conformance(f"[sig-storage] {area} should be immutable if "
                                                         "`immutable` field is set"))
        for kind, area in (("configMap", "ConfigMap"), ("secret", "Secrets"))
    ],
)  # fmt: skip
def test_an_immutable_object_cannot_be_changed(node: Node, kind: str) -> None:
    made: Callable[..., Object] = config_map if kind == "configMap" else secret
    node.apply(made("fixed", {"key": "one"}))
    patch(node, kind, "fixed", {"data": {"key": "dHdv"}})
    patch(node, kind, "fixed", {"immutable": True})
    for change in ({"data": {"key": "b25l"}}, {"immutable": False}):
        refused = node.kubectl("patch", kind, "fixed", "--type=merge", "-p", json.dumps(change), check=False)
        assert refused.code != 0 and "field is immutable when `immutable` is set" in refused.err
    patch(node, kind, "fixed", {"metadata": {"labels": {"a": "b"}}})


DOWNWARD = [
    pytest.param(
        field, projected, id=f"{field}{' projected' if projected else ''}",
        marks=pytest.mark.conformance(
            f"[sig-storage] {'Projected downwardAPI' if projected else 'Downward API volume'} should update "
            f"{field} on modification"
        ),
    )
    for field in ("labels", "annotations") for projected in (False, True)
]  # fmt: skip


@pytest.mark.parametrize(("field", "projected"), DOWNWARD)
def test_labels_and_annotations(node: Node, field: str, projected: bool) -> None:
    items = {"items": [{"path": "it", "fieldRef": {"fieldPath": f"metadata.{field}"}}]}
    source = {"projected": {"sources": [{"downwardAPI": items}]}} if projected else {"downwardAPI": items}
    name = f"own-{field}-{'p' if projected else 'd'}"
    body = holding(name, {"name": "v", **source})
    body["metadata"][field] = {"key1": "value1"}
    node.apply(body)
    node.wait_running(name)
    assert 'key1="value1"' in shown(node, name, "/v/it")
    patch(node, "pod", name, {"metadata": {field: {"key1": "changed"}}})
    node.until("the change", lambda: 'key1="changed"' in shown(node, name, "/v/it"), SOON)


def test_files_of_one_volume_change_together(node: Node) -> None:
    """A reader that compares two files never sees one old and one new (a folder may go under its feet)."""
    node.apply(config_map("twins", {"a": "0", "b": "0"}))
    script = (
        "for n in $(seq 30000); do cd /v/..data 2>/dev/null || continue; "
        "a=$(cat a 2>/dev/null); b=$(cat b 2>/dev/null); cd /; "
        '[ -z "$a" ] || [ -z "$b" ] || [ "$a" = "$b" ] || echo "differ: $a $b"; '
        '[ "$a" = 9 ] && break; done; echo done'
    )
    node.apply(looking("comparing", script, [{"name": "v", "configMap": {"name": "twins"}}]))
    node.wait_running("comparing")
    for number in range(1, 10):
        patch(node, "configmap", "twins", {"data": {"a": str(number), "b": str(number)}})
        time.sleep(0.1)  # a change per moment, not a condition that is waited for
    node.until("comparing over", lambda: node.phase("comparing") == "Succeeded", 60)
    assert node.kubectl("logs", "comparing").out == "done\n"


def test_immutable_objects_are_not_watched(node: Node) -> None:
    """The API's own count of watches by this node: one for the map that can change, none for the other."""
    node.apply(config_map("still", {"k": "v"}, immutable=True), config_map("moving", {"k": "v"}))
    names = ("still", "moving")
    node.apply(holding("watched", *({"name": name, "configMap": {"name": name}} for name in names)))
    node.wait_running("watched")
    patch(node, "configmap", "moving", {"data": {"k": "w"}})
    becomes(node, "watched", "/moving/k", "w")
    log = (node.root / "var/log/kubelet-py/agent.log").read_text(errors="replace")
    assert "object=default/moving" in log
    # The other was read, found to be settled, and let go; its name may come back as another object.
    node.kubectl("delete", "configmap", "still")
    node.apply(config_map("still", {"k": "another"}))
    patch(node, "configmap", "moving", {"data": {"k": "x"}})
    becomes(node, "watched", "/moving/k", "x")
    assert shown(node, "watched", "/still/k") == "v"
