"""How volumes are mounted into containers: below what, how deep read-only, and whether mounts travel."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import Node, sh
from volume_pods import event, holding, looking, over, shown, waiting

pytestmark = pytest.mark.e2e

Object = dict[str, Any]
FAILING = "[sig-node] Variable Expansion should fail substituting values in a volume subpath with"


@pytest.fixture(scope="module")
def host(node: Node) -> Path:
    folder = node.root / "home/host"
    folder.mkdir()
    return folder


@pytest.fixture
def shared_mount(host: Path) -> Iterator[Path]:
    """A shared mount of the host with another mount below it."""
    folder = host / "shared"
    folder.mkdir(exist_ok=True)
    sh("mount", "-t", "tmpfs", "tmpfs", str(folder))
    sh("mount", "--make-shared", str(folder))
    (folder / "below").mkdir()
    sh("mount", "-t", "tmpfs", "tmpfs", str(folder / "below"))
    yield folder
    subprocess.run(["umount", "-R", "-l", str(folder)], check=False)


def test_what_lies_below_a_read_only_mount(node: Node, shared_mount: Path) -> None:
    """Read-only by itself covers the volume alone; recursively also what is mounted below it."""
    volume = {"name": "v", "hostPath": {"path": str(shared_mount)}}
    script = "for f in /v/x /v/below/x; do touch $f 2>/dev/null && echo wrote || echo refused; done"
    modes = {"plain": None, "disabled": "Disabled", "possible": "IfPossible", "enabled": "Enabled"}
    for name, mode in modes.items():
        mount: Object = {"name": "v", "mountPath": "/v", "readOnly": True}
        mount |= {"recursiveReadOnly": mode} if mode else {}
        node.apply(looking(f"ro-{name}", script, [volume], mounts=[mount]))
    for name in modes:
        recursive = name in ("possible", "enabled")
        assert over(node, f"ro-{name}") == ["refused", "refused" if recursive else "wrote"]
        status = node.get("pod", f"ro-{name}")["status"]["containerStatuses"][0]["volumeMounts"]
        entry = next(mount for mount in status if mount["name"] == "v")
        assert entry == {
            "name": "v",
            "mountPath": "/v",
            "readOnly": True,
            "recursiveReadOnly": "Enabled" if recursive else "Disabled",
        }


def test_mounts_travel_as_they_are_asked_to(node: Node, shared_mount: Path) -> None:
    volume = {"name": "v", "hostPath": {"path": str(shared_mount)}}

    def mount(propagation: str) -> list[Object]:
        return [{"name": "v", "mountPath": "/v", "mountPropagation": propagation}]

    privileged = {"securityContext": {"privileged": True}}
    for name, kind, more in (("none", "None", {}), ("in", "HostToContainer", {}),
                             ("both", "Bidirectional", privileged)):  # fmt: skip
        node.apply(holding(f"travel-{name}", volume, mounts=mount(kind), container=more))
    node.wait_running("travel-none", "travel-in", "travel-both")
    (shared_mount / "late").mkdir()
    sh("mount", "-t", "tmpfs", "tmpfs", str(shared_mount / "late"))
    (shared_mount / "late/file").write_text("late")
    seen = [shown(node, f"travel-{name}", "/v/late/file") for name in ("none", "in", "both")]
    assert seen == ["", "late", "late"]
    inside = "mkdir /v/mine; mount -t tmpfs tmpfs /v/mine; echo mine > /v/mine/file"
    node.kubectl("exec", "travel-both", "--", "sh", "-c", inside)
    assert (shared_mount / "mine/file").read_text() == "mine\n"
    assert shown(node, "travel-in", "/v/mine/file") == "mine\n"
    # What may not travel is refused: by the API, and by the node where the host's mount is private.
    refused = node.kubectl(
        "apply", "-f", "-", check=False,
        stdin=json.dumps(holding("travel-no", volume, mounts=mount("Bidirectional"))),
    )  # fmt: skip
    assert "Bidirectional mount propagation is available only to privileged containers" in refused.err
    private = {"name": "v", "hostPath": {"path": str(shared_mount.parent)}}
    node.apply(holding("travel-private", private, mounts=mount("HostToContainer")))
    assert "but it is not a shared or slave mount" in event(node, "travel-private", "Failed")


@pytest.mark.conformance("[sig-node] Variable Expansion should allow substituting values in a volume subpath")
@pytest.mark.conformance("[sig-node] Variable Expansion should succeed in writing subpaths in container")
def test_a_sub_path_from_a_variable(node: Node) -> None:
    variable = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    mounts = [
        {"name": "v", "mountPath": "/logs", "subPathExpr": "$(POD_NAME)/deep"},
        {"name": "v", "mountPath": "/whole"},
    ]
    script = "echo x > /logs/file; cat /whole/expanding/deep/file; stat -c %a /whole/expanding"
    own = {"container": {"env": [variable]}, "securityContext": {"runAsUser": 1001}}
    node.apply(looking("expanding", script, [{"name": "v", "emptyDir": {}}], mounts=mounts, **own))
    assert over(node, "expanding") == ["x", "777"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        pytest.param("absolute", "/tmp", "error SubPath `/tmp` must not be an absolute path",
                     marks=pytest.mark.conformance(f"{FAILING} absolute path")),
        pytest.param("climbing", "..", "unable to provision SubPath `../x`: must not contain '..'",
                     marks=pytest.mark.conformance(f"{FAILING} backticks")),
    ],
)  # fmt: skip
def test_a_sub_path_that_leads_elsewhere_keeps_its_container_waiting(
    node: Node, name: str, value: str, text: str
) -> None:
    expression = "$(POD_NAME)" if name == "absolute" else "$(POD_NAME)/x"
    mounts = [{"name": "v", "mountPath": "/v", "subPathExpr": expression}]
    container = {"env": [{"name": "POD_NAME", "value": value}]}
    node.apply(holding(f"sub-{name}", {"name": "v", "emptyDir": {}}, mounts=mounts, container=container))
    assert event(node, f"sub-{name}", "Failed") == f"Error: {text}"
    told = {"reason": "CreateContainerConfigError", "message": text}
    node.until("told", lambda: waiting(node, f"sub-{name}") == told)


@pytest.mark.conformance(
    "[sig-node] Variable Expansion should verify that a failing subpath expansion can be modified during the "
    "lifecycle of a container [Slow]"
)
def test_a_failing_sub_path_can_be_mended(node: Node) -> None:
    variable = {
        "name": "WHERE",
        "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['where']"}},
    }
    mounts = [{"name": "v", "mountPath": "/v", "subPathExpr": "$(WHERE)"}]
    body = holding("mended", {"name": "v", "emptyDir": {}}, mounts=mounts, container={"env": [variable]})
    body["metadata"]["annotations"] = {"where": "/absolute"}
    node.apply(body)
    event(node, "mended", "Failed")
    node.kubectl("annotate", "pod", "mended", "where=inside", "--overwrite")
    node.wait_running("mended")
