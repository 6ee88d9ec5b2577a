"""What exec's flags make of the container's process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.errors import StateError
from runtime.oci_arguments import parse
from runtime.oci_exec import below, wanted
from runtime.oci_flags import Arguments

BASE: dict[str, Any] = {
    "args": ["init"],
    "cwd": "/home",
    "env": ["PATH=/bin", "A=old"],
    "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
    "capabilities": {"bounding": ["CAP_KILL"]},
    "terminal": True,
}


def made(line: str) -> dict[str, Any]:
    arguments = Arguments()
    parse(["exec", *line.split()], arguments)
    return wanted(arguments, BASE)


def test_without_flags_it_is_the_containers_process_with_another_command() -> None:
    assert made("one ls -l") == {**BASE, "args": ["ls", "-l"], "terminal": False}


def test_no_new_privs_can_be_switched_off() -> None:
    base = {**BASE, "noNewPrivileges": True}
    arguments = Arguments()
    parse(["exec", "--no-new-privs=false", "one", "x"], arguments)
    assert wanted(arguments, base)["noNewPrivileges"] is False
    parse(["exec", "one", "x"], arguments)
    assert wanted(arguments, base)["noNewPrivileges"] is True


def test_flags_change_what_they_name() -> None:
    process = made(
        "--env A=new -e B=c -u 7 -g 8 --cwd / --no-new-privs --apparmor p --process-label l -t one x"
    )
    assert process["env"] == ["PATH=/bin", "A=new", "B=c"]
    assert process["user"] == {"uid": 7, "gid": 2, "additionalGids": [3, 8]}
    assert (process["cwd"], process["terminal"], process["noNewPrivileges"]) == ("/", True, True)
    assert (process["apparmorProfile"], process["selinuxLabel"]) == ("p", "l")
    assert made("--user 5:6 one x")["user"]["gid"] == 6
    assert made("--cap kill --cap NET_RAW one x")["capabilities"] == {
        "bounding": ["CAP_KILL", "CAP_KILL", "CAP_NET_RAW"],
        "effective": ["CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_KILL", "CAP_NET_RAW"],
    }
    assert BASE["capabilities"] == {"bounding": ["CAP_KILL"]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("one", "no command"),
        ("--user bob one x", "numbers are needed"),
        ("--user 1: one x", "numbers are needed"),
        ("--cap FLY one x", "capability FLY"),
        ("--process /nonexistent one", "ENOENT"),
    ],
)
def test_what_cannot_be_is_refused(line: str, said: str) -> None:
    with pytest.raises(StateError, match=said):
        made(line)


def test_a_process_file_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "process").write_text('{"args": ["y"], "cwd": "/"}')
    assert made(f"--process {tmp_path}/process one") == {"args": ["y"], "cwd": "/"}
    (tmp_path / "process").write_text("[]")
    with pytest.raises(StateError, match="an object is needed"):
        made(f"--process {tmp_path}/process one")


def test_cgroups_are_named_for_all_or_by_controller() -> None:
    assert below(["/sub"]) == {"": "/sub"}
    assert below(["memory,pids:a", "cpu:b"]) == {"memory": "a", "pids": "a", "cpu": "b"}
    for wrong in ([":x"], ["memory:"], [""], ["a,:x"], ["a", "b"]):
        with pytest.raises(StateError):
            below(wrong)
