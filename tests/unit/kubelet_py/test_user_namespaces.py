"""Ranges of ids: one for each pod, found again, never given twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.errors import ConfigError, SandboxError
from kubelet_py.pods.user_namespaces import IDS, UserNamespaces, first_and_count


def pod(uid: str, host_users: bool | None = False) -> Any:
    spec = {} if host_users is None else {"hostUsers": host_users}
    return {"metadata": {"uid": uid}, "spec": spec}


def users(folder: Path, *, max_pods: int = 3, supported: bool = True) -> UserNamespaces:
    return UserNamespaces(folder / "pods", max_pods=max_pods, supported=lambda: supported, etc=folder / "etc")


def test_each_pod_has_its_own_range_for_as_long_as_its_folder_is_there(tmp_path: Path) -> None:
    known = users(tmp_path)
    first = known.range_of(pod("a"), "")
    assert first == (IDS, IDS)
    assert known.range_of(pod("b"), "") == (2 * IDS, IDS)
    assert known.range_of(pod("a"), "") == first
    assert users(tmp_path).range_of(pod("b"), "") == (2 * IDS, IDS)  # an agent that comes anew
    mapping = [{"hostId": IDS, "containerId": 0, "length": IDS}]
    written = json.loads((tmp_path / "pods/a/userns").read_text())
    assert written == {"uidMappings": mapping, "gidMappings": mapping}
    shutil.rmtree(tmp_path / "pods/a")
    assert known.range_of(pod("c"), "") == first


def test_a_full_node_says_so(tmp_path: Path) -> None:
    known = users(tmp_path, max_pods=1)
    known.range_of(pod("a"), "")
    with pytest.raises(SandboxError, match="could not find an empty slot to allocate a user namespace"):
        known.range_of(pod("b"), "")
    assert not (tmp_path / "pods/b").exists()


@pytest.mark.parametrize("host_users", [None, True])
def test_a_pod_with_the_hosts_users_costs_nothing(tmp_path: Path, host_users: bool | None) -> None:
    known = users(tmp_path, supported=False)
    assert known.range_of(pod("a", host_users), "runc") == (0, 0)
    assert not (tmp_path / "pods").exists()


@pytest.mark.parametrize(("handler", "supported"), [("runc", True), ("", False)])
def test_who_cannot_map_users_refuses_in_upstreams_words(
    tmp_path: Path, handler: str, supported: bool
) -> None:
    with pytest.raises(SandboxError) as caught:
        users(tmp_path, supported=supported).range_of(pod("a"), handler)
    text = f'RuntimeClass handler "{handler}" does not support user namespaces'
    assert str(caught.value) == f"can't set `spec.hostUsers: false`, {text}"


def test_a_range_that_cannot_be_read_is_not_given_to_another(tmp_path: Path) -> None:
    (tmp_path / "pods/a").mkdir(parents=True)
    (tmp_path / "pods/a/userns").write_text("{")
    with pytest.raises(SandboxError, match="a/userns"):
        users(tmp_path).range_of(pod("b"), "")


def write_etc(
    folder: Path, subuid: str, subgid: str, passwd: str = "kubelet:x:998:998::/:/bin/false\n"
) -> Path:
    folder.mkdir()
    for name, text in (("passwd", passwd), ("subuid", subuid), ("subgid", subgid)):
        (folder / name).write_text(text)
    return folder


def test_the_ranges_of_the_user_kubelet_are_used(tmp_path: Path) -> None:
    line = f"other:1:2\nkubelet:{4 * IDS}:{200 * IDS}\n"
    assert first_and_count(write_etc(tmp_path / "etc", line, line), 110) == (4 * IDS, 200)


def test_without_the_user_kubelet_every_pod_has_a_range(tmp_path: Path) -> None:
    assert first_and_count(write_etc(tmp_path / "etc", "", "", "root:x:0:0::/:/bin/sh\n"), 110) == (IDS, 110)


@pytest.mark.parametrize(
    ("subuid", "subgid", "wanted"),
    [
        ("", "", "one range"),
        (f"kubelet:{IDS}:{200 * IDS}", f"kubelet:{2 * IDS}:{200 * IDS}", "the same in both"),
        (f"kubelet:{IDS}:{2 * IDS}", f"kubelet:{IDS}:{2 * IDS}", "for each of 110 pods"),
        (f"kubelet:{IDS + 1}:{200 * IDS}", f"kubelet:{IDS + 1}:{200 * IDS}", "multiple"),
    ],
)
def test_ranges_that_cannot_serve_keep_the_agent_from_starting(
    tmp_path: Path, subuid: str, subgid: str, wanted: str
) -> None:
    with pytest.raises(ConfigError, match=wanted):
        first_and_count(write_etc(tmp_path / "etc", subuid, subgid), 110)
