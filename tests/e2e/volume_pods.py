"""Pods that look at a volume, say what they see, and end; and cases that are all started at once.

A module of such cases takes as long as its slowest pod: everything is applied with one kubectl call, and each
test only waits for its own pod and reads what that said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from e2e_node import Node, pod

Object = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One pod to its end. `title`: upstream's name of the test; `said`: the lines that it must print."""

    title: str
    pod: Object
    said: Sequence[str] | Callable[[Node], Sequence[str]]
    objects: Sequence[Object] = field(default_factory=tuple)


def looking(
    name: str,
    script: str,
    volumes: Sequence[Object],
    *,
    mounts: Sequence[Object] | None = None,
    container: Object | None = None,
    **spec: Any,
) -> Object:
    """A pod that runs `script` over its volumes, which are mounted at /<name of the volume>."""
    places = [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in volumes]
    own = {"volumeMounts": list(places if mounts is None else mounts), **(container or {})}
    return pod(name, script, container=own, volumes=list(volumes), restartPolicy="Never", **spec)


def config_map(name: str, data: Object, **more: Any) -> Object:
    metadata = {"name": name, "namespace": more.pop("namespace", "default")}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data, **more}


def secret(name: str, data: Object, **more: Any) -> Object:
    metadata = {"name": name, "namespace": more.pop("namespace", "default")}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data, **more}


def parameters(cases: Sequence[Case]) -> list[Any]:
    """The cases as pytest parameters; those that upstream has, too, carry its title."""
    return [
        pytest.param(
            case,
            id=case.title,
            marks=[pytest.mark.conformance(case.title)] if case.title.startswith("[sig-") else [],
        )
        for case in cases
    ]


def start_all(node: Node, cases: Sequence[Case]) -> None:
    """Everything at once; objects that several cases share only once."""
    found: dict[tuple[str, str, str], Object] = {}
    for case in cases:
        for each in (*case.objects, case.pod):
            metadata = each["metadata"]
            found[each["kind"], metadata.get("namespace", ""), metadata["name"]] = each
    node.apply(*found.values())


def check(node: Node, case: Case) -> None:
    """Wait for the case's pod to succeed, and compare what it said."""
    name = case.pod["metadata"]["name"]
    namespace = case.pod["metadata"]["namespace"]
    ended = node.until(
        f"pod {name} over",
        lambda: node.phase(name, namespace) in ("Succeeded", "Failed") and node.phase(name, namespace),
        seconds=60,
    )
    said = node.kubectl("logs", name, "-n", namespace, "--all-containers").out.splitlines()
    wanted = case.said(node) if callable(case.said) else case.said
    assert (ended, said) == ("Succeeded", list(wanted)), f"{ended}: {said}, not {list(wanted)}"


def holding(name: str, *volumes: Object, **more: Any) -> Object:
    body = looking(name, "sleep 3600", volumes, **more)
    return body | {"spec": body["spec"] | {"restartPolicy": "Always"}}


def shown(node: Node, name: str, path: str) -> str:
    """A file as the pod sees it; "" where there is none."""
    return node.kubectl("exec", name, "--", "cat", path, check=False).out


def event(node: Node, name: str, reason: str) -> str:
    return str(node.until(f"event {reason} about {name}", lambda: events(node, name, reason))[0])


def events(node: Node, name: str, reason: str) -> list[str]:
    found = node.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json")
    return [each["message"] for each in found.json()["items"] if each["reason"] == reason]


def waiting(node: Node, name: str) -> Object:
    """For what the pod's container waits, as its status says: that and its events are told one by one."""
    statuses = node.get("pod", name)["status"].get("containerStatuses") or [{}]
    return dict((statuses[0].get("state") or {}).get("waiting") or {"reason": ""})


def over(node: Node, name: str) -> list[str]:
    """What the pod said, when it has succeeded."""
    node.until(f"{name} over", lambda: node.phase(name) == "Succeeded", 60)
    return node.kubectl("logs", name).out.splitlines()
