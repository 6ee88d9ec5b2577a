"""Which AppArmor profile a container gets, and what is done so that the kernel has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubeclient.app_armor import ANNOTATION, annotated
from kubelet_py.errors import CreateContainerError
from kubelet_py.pods import app_armor, security
from kubelet_py.pods.app_armor import DEFAULT, PROFILE, Profiles

Object = dict[str, Any]

LOCAL = {"appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}}
MISSING = {"appArmorProfile": {"type": "Localhost", "localhostProfile": "other"}}
RUNTIME = {"appArmorProfile": {"type": "RuntimeDefault"}}
UNCONFINED = {"appArmorProfile": {"type": "Unconfined"}}
PRIVILEGED = {"privileged": True}
WORDS = "failed to get container spec opts: failed to generate apparmor spec opts: "


class Host:
    """Loaded profiles in a file, and a parser that writes there what it is told to load."""

    def __init__(self, folder: Path) -> None:
        self.loaded = folder / "profiles"
        self.loaded.write_text("mine (enforce)\nwith a space (complain)\n")
        self.calls = folder / "calls"
        self.text = folder / "text"
        self.parser = folder / "apparmor_parser"
        self.parser.write_text(
            f'#!/bin/sh\necho "$@" >>{self.calls}\ncat >{self.text}\n'
            f"grep -v '^{DEFAULT} ' {self.loaded} >{folder}/rest; cat {folder}/rest >{self.loaded}\n"
            f'[ "$1" = --remove ] || echo "{DEFAULT} (enforce)" >>{self.loaded}\n'
        )
        self.parser.chmod(0o755)

    def profiles(self, enabled: bool = True) -> Profiles:
        return Profiles(enabled=enabled, loaded=self.loaded, search=str(self.parser.parent))

    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("context", "enabled", "wanted"),
    [
        (LOCAL, True, "mine"),
        (LOCAL | PRIVILEGED, True, "mine"),
        (UNCONFINED, False, ""),
        (UNCONFINED, True, ""),
        (RUNTIME, True, DEFAULT),
        (RUNTIME | PRIVILEGED, True, ""),
        ({}, True, DEFAULT),
        (PRIVILEGED, True, ""),
        ({}, False, ""),
    ],
)
def test_the_profile_of_a_container(host: Host, context: Object, enabled: bool, wanted: str) -> None:
    assert host.profiles(enabled).provide(context) == wanted
    assert host.asked() == (["--replace --skip-cache"] if wanted == DEFAULT else [])


@pytest.mark.parametrize("context", [LOCAL, RUNTIME])
def test_a_container_that_asks_is_not_run_unconfined_where_the_host_has_none(
    host: Host, context: Object
) -> None:
    """An ephemeral container's pod was admitted before the container asked."""
    with pytest.raises(CreateContainerError, match="apparmor is not supported"):
        host.profiles(False).provide(context)


def test_the_default_one_is_loaded_once_by_each_agent(host: Host) -> None:
    profiles = host.profiles()
    for _ in range(3):
        profiles.provide({})
    assert len(host.asked()) == 1 and host.text.read_text() == PROFILE
    host.profiles().provide({})
    assert len(host.asked()) == 2, "another version's text may still be loaded"


def test_the_default_one_is_loaded_again_when_it_has_gone(host: Host) -> None:
    profiles = host.profiles()
    profiles.provide({})
    host.loaded.write_text("mine (enforce)\n")
    assert profiles.provide({}) == DEFAULT
    assert DEFAULT in host.loaded.read_text() and len(host.asked()) == 2


def test_a_profile_that_is_not_loaded_is_named(host: Host) -> None:
    with pytest.raises(CreateContainerError) as caught:
        host.profiles().provide(MISSING)
    assert str(caught.value) == f"{WORDS}apparmor profile not found other"
    assert caught.value.reason == "CreateContainerError"


def test_a_parser_that_fails_is_heard(host: Host) -> None:
    host.parser.write_text("#!/bin/sh\necho no such feature >&2; exit 1\n")
    with pytest.raises(CreateContainerError, match=f"failed to load .*{DEFAULT}: .*no such feature"):
        host.profiles().provide({})


@pytest.mark.parametrize("missing", ["apparmor_parser", "/sys/kernel/security"])
def test_only_who_asks_for_a_default_that_cannot_be_is_refused(host: Host, missing: str) -> None:
    (host.parser if missing == "apparmor_parser" else host.loaded).unlink()
    assert host.profiles().lacking == missing
    assert host.profiles().provide({}) == ""
    assert host.profiles().provide(LOCAL) == "mine"
    with pytest.raises(CreateContainerError, match="apparmor is not supported"):
        host.profiles().provide(RUNTIME)


def test_the_default_one_is_removed_unless_somebody_runs_under_it(host: Host, tmp_path: Path) -> None:
    current = tmp_path / "proc/7/attr/apparmor/current"
    current.parent.mkdir(parents=True)
    (tmp_path / "proc/8").mkdir()
    (tmp_path / "proc/version").touch()
    host.profiles().remove_default(tmp_path / "proc")
    assert host.asked() == []
    profiles = host.profiles()
    profiles.provide({})
    current.write_text(f"{DEFAULT} (enforce)\n")
    profiles.remove_default(tmp_path / "proc")
    assert len(host.asked()) == 1
    current.write_text("unconfined\n")
    profiles.remove_default(tmp_path / "proc")
    assert host.asked()[1:] == ["--remove"] and DEFAULT not in host.loaded.read_text()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("runtime/default", {"type": "RuntimeDefault"}),
        ("unconfined", {"type": "Unconfined"}),
        ("localhost/a/b", {"type": "Localhost", "localhostProfile": "a/b"}),
        ("localhost/", {"type": "Localhost", "localhostProfile": ""}),
        ("other", None),
        ("", None),
    ],
)
def test_the_annotation(value: str, wanted: Object | None) -> None:
    assert annotated({ANNOTATION + "c": value, ANNOTATION + "d": "unconfined"}, "c") == wanted


def test_the_annotation_wins_over_the_pod_but_not_over_the_container() -> None:
    container: Object = {"name": "c"}
    pod: Object = {
        "metadata": {"annotations": {ANNOTATION + "c": "localhost/mine"}},
        "spec": {"securityContext": UNCONFINED, "containers": [container]},
    }
    assert security.effective(pod, container) == LOCAL
    container["securityContext"] = RUNTIME
    assert security.effective(pod, container) == RUNTIME


@pytest.mark.parametrize(
    ("context", "host_has_it", "wanted"),
    [
        ({}, False, ""),
        (UNCONFINED, False, ""),
        (LOCAL, False, "Cannot enforce AppArmor: AppArmor is not enabled on the host"),
        (LOCAL, True, ""),
        (RUNTIME, True, ""),
        ({"appArmorProfile": {"type": "Localhost", "localhostProfile": " "}}, True,
         'Cannot enforce AppArmor: invalid empty AppArmor profile name: ""'),
    ],
)  # fmt: skip
def test_a_pod_that_the_node_refuses(context: Object, host_has_it: bool, wanted: str) -> None:
    assert app_armor.problem(context, host_has_it) == wanted


def test_what_the_host_has_is_read_from_it(tmp_path: Path) -> None:
    file = tmp_path / "enabled"
    assert not app_armor.enabled(file)
    file.write_text("N\n")
    assert not app_armor.enabled(file)
    file.write_text("Y\n")
    assert app_armor.enabled(file)
