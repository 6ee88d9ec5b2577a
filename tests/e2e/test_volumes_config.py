"""configMap, secret and projected volumes: what their files hold, their modes and owners."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from e2e_node import Node
from volume_pods import Case, check, config_map, looking, parameters, secret, start_all

pytestmark = pytest.mark.e2e

Object = dict[str, Any]
USER = {"securityContext": {"runAsUser": 1000}}
GROUP = {"securityContext": {"runAsUser": 1000, "fsGroup": 1001}}
DATA = {"data-1": "value-1", "data-2": "value-2"}
MAPPED = [{"key": "data-2", "path": "path/to/data-2"}]
SHOW = "cat /v/data-1; echo; stat -Lc '%a %u %g' /v/data-1; id -u"
SHOW_MAPPED = "cat /v/path/to/data-2; echo; stat -Lc %a /v/path/to/data-2; id -u; ls /v"


def source(kind: str, name: str, projected: bool, **more: Any) -> Object:
    """The volume `v` of one ConfigMap or Secret, by itself or in a projection."""
    if not projected:
        key = "secretName" if kind == "secret" else "name"
        return {"name": "v", kind: {key: name, **more}}
    mode = {"defaultMode": more.pop("defaultMode")} if "defaultMode" in more else {}
    return {"name": "v", "projected": {"sources": [{kind: {"name": name, **more}}], **mode}}


def of_kind(kind: str, projected: bool) -> list[Case]:
    """The cases that upstream repeats for each of the four combinations."""
    what = {"configMap": "configMap", "secret": "secret"}[kind]
    area = f"Projected {what}" if projected else {"configMap": "ConfigMap", "secret": "Secrets"}[kind]
    title = f"[sig-storage] {area} should be consumable"
    short = f"{'p' if projected else ''}{kind[0]}"
    name = f"files-{kind.lower()}"
    made = config_map(name, DATA) if kind == "configMap" else secret(name, DATA)
    item = "mode" if kind == "configMap" else "Mode"

    def case(about: str, tag: str, script: str, said: list[str], spec: Object, **more: Any) -> Case:
        volumes = [source(kind, name, projected, **more)]
        return Case(f"{title} {about}", looking(f"{short}-{tag}", script, volumes, **spec), said, [made])

    inside = "from pods in volume"
    cases = [
        case(inside, "plain", SHOW, ["value-1", "644 0 0", "0"], {}),
        case(
            f"{inside} with defaultMode set", "mode", SHOW,
            ["value-1", "400 0 0", "0"], {}, defaultMode=0o400,
        ),
        case(
            f"{inside} with mappings", "mapped", SHOW_MAPPED,
            ["value-2", "644", "0", "path"], {}, items=MAPPED,
        ),
        case(
            f"{inside} with mappings and Item {item} set", "item", SHOW_MAPPED,
            ["value-2", "400", "0", "path"], {}, items=[MAPPED[0] | {"mode": 0o400}],
        ),
    ]  # fmt: skip
    if kind == "configMap":
        cases += [
            case(f"{inside} as non-root", "user", SHOW, ["value-1", "644 0 0", "1000"], USER),
            case(
                f"{inside} with mappings as non-root", "mapuser", SHOW_MAPPED,
                ["value-2", "644", "1000", "path"], USER, items=MAPPED,
            ),
        ]  # fmt: skip
    else:
        cases.append(
            case(
                f"{inside} as non-root with defaultMode and fsGroup set", "group", SHOW,
                ["value-1", "440 0 1001", "1000"], GROUP, defaultMode=0o440,
            )
        )  # fmt: skip
    both = [{**source(kind, name, projected), "name": letter} for letter in ("v", "w")]
    where = "the same pod" if kind == "configMap" else "a pod"
    cases.append(
        Case(
            f"{title} in multiple volumes in {where}",
            looking(f"{short}-twice", "cat /v/data-1; echo; cat /w/data-1; echo", both),
            ["value-1", "value-1"],
            [made],
        )
    )
    return cases


SHOW_BINARY = "cat /v/text; echo; base64 -w0 < /v/dump; echo"
SHOW_BOTH = "cat /v/data-1; echo; cat /w/data-1; echo; grep -c ' /v ' /proc/mounts"
BINARY = bytes(range(256))
OTHER = secret("files-secret", {"data-1": "another"}, namespace="elsewhere")
PODINFO = {"items": [{"path": "podname", "fieldRef": {"fieldPath": "metadata.name"}}]}

CASES = [
    *of_kind("configMap", False),
    *of_kind("configMap", True),
    *of_kind("secret", False),
    *of_kind("secret", True),
    Case(
        "[sig-storage] ConfigMap binary data should be reflected in volume",
        looking("binary", SHOW_BINARY, [source("configMap", "binary", False)]),
        ["plain", base64.b64encode(BINARY).decode()],
        [config_map("binary", {"text": "plain"}, binaryData={"dump": base64.b64encode(BINARY).decode()})],
    ),
    Case(
        "[sig-storage] Secrets should be able to mount in a volume regardless of a different secret existing "
        "with same name in different namespace",
        looking("twins", "cat /v/data-1; echo", [source("secret", "files-secret", False)]),
        ["value-1"],
        [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere"}}, OTHER],
    ),
    Case(
        "[sig-storage] Projected combined should project all components that make up the projection API",
        looking(
            "combined",
            "cat /v/podname; echo; cat /v/from-map; echo; cat /v/from-secret; echo",
            [
                {
                    "name": "v",
                    "projected": {
                        "sources": [
                            {"downwardAPI": PODINFO},
                            {"configMap": {"name": "files-configmap",
                                           "items": [{"key": "data-1", "path": "from-map"}]}},
                            {"secret": {"name": "files-secret",
                                        "items": [{"key": "data-2", "path": "from-secret"}]}},
                        ]
                    },
                }
            ],
        ),
        ["combined", "value-1", "value-2"],
    ),
    Case(
        "[sig-storage] EmptyDir wrapper volumes should not conflict",
        looking(
            "wrappers",
            SHOW_BOTH,
            [
                source("configMap", "files-configmap", False),
                {**source("secret", "files-secret", False), "name": "w"},
            ],
        ),
        ["value-1", "value-1", "1"],
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def started(node: Node) -> Node:
    start_all(node, CASES)
    return node


@pytest.mark.parametrize("case", parameters(CASES))
def test_conformance(started: Node, case: Case) -> None:
    check(started, case)


@pytest.mark.conformance(
    "[sig-storage] EmptyDir wrapper volumes should not cause race condition when used for configmaps [Serial]"
)
def test_fifty_config_maps_in_each_of_five_pods(started: Node) -> None:
    maps = [config_map(f"race-{number}", {"data-1": f"value-{number}"}) for number in range(50)]
    volumes = [{"name": f"v{n}", "configMap": {"name": f"race-{n}"}} for n in range(50)]
    pods = [looking(f"racer-{number}", "cat /v*/data-1 | sed 's/value-/ /g'", volumes) for number in range(5)]
    started.apply(*maps, *pods)
    for body in pods:
        name = body["metadata"]["name"]
        started.until(f"{name} over", lambda name=name: started.phase(name) == "Succeeded", 60)
        numbers = started.kubectl("logs", name).out.split()
        assert sorted(map(int, numbers)) == list(range(50))
