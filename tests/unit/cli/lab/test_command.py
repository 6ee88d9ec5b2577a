from __future__ import annotations

import re
from pathlib import Path

import pytest

from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.lab import state
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import DEFAULT_ROOT, LabPaths
from kubelet_py.cli.lab.node import check
from kubelet_py.cli.lab_command import own_root
from kubelet_py.cli.main import build_parser, main

VERBS = ("up", "down", "status", "node", "logs", "exec", "kubectl", "image", "kubeconfig")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_names_the_folder(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(["lab", verb, "--help"]) == 0
    except SystemExit as end:
        assert end.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: kubelet-py lab {verb}")
    assert "--root" in text and len(text.splitlines()) > 6


@pytest.mark.parametrize(
    ("argv", "line", "root"),
    [
        (["kubectl", "get", "pods", "-A"], ["get", "pods", "-A"], DEFAULT_ROOT),
        (["kubectl", "-n", "x", "get", "pods"], ["-n", "x", "get", "pods"], DEFAULT_ROOT),
        (["kubectl", "get", "--help"], ["get", "--help"], DEFAULT_ROOT),
        (["kubectl", "exec", "p", "--", "ls", "-l"], ["exec", "p", "--", "ls", "-l"], DEFAULT_ROOT),
        (["--root", "/a", "kubectl", "-v", "get"], ["-v", "get"], Path("/a")),
        (["kubectl", "--root", "/a", "-v", "get"], ["-v", "get"], Path("/a")),
        (["kubectl", "--root=/a", "get"], ["get"], Path("/a")),
        (["--root", "/b", "kubectl", "--root", "/a", "get"], ["get"], Path("/a")),
        (["kubectl", "get", "--root", "/a"], ["get", "--root", "/a"], DEFAULT_ROOT),
        (["image", "--root", "/a", "pull", "--help"], ["pull", "--help"], Path("/a")),
        (["exec", "--root", "/a", "node1", "--", "ls", "-l"], ["ls", "-l"], Path("/a")),
        (["exec", "node1", "--root", "/a", "--", "ls", "-l"], ["ls", "-l"], Path("/a")),
        (["exec", "node1", "ls", "--root", "/a"], ["ls", "--root", "/a"], DEFAULT_ROOT),
    ],
)
def test_the_folder_is_ours_before_the_other_command_and_its_options_stay_its_own(
    argv: list[str], line: list[str], root: Path
) -> None:
    args = build_parser("lab").parse_args(["lab", *argv])
    found, rest = own_root(args.root, args.command_line)
    assert (found, rest[rest[:1] == ["--"] :]) == (root, line)


@pytest.mark.parametrize("verb", ["down", "status", "kubeconfig"])
def test_other_verbs_take_the_folder_on_either_side(verb: str) -> None:
    parser = build_parser("lab")
    for argv in (["lab", "--root", "/a", verb], ["lab", verb, "--root", "/a"]):
        assert parser.parse_args(argv).root == Path("/a")


@pytest.mark.parametrize("line", [["--root"], ["--root="], ["--root", ""]])
def test_a_folder_that_is_not_said_is_refused(line: list[str]) -> None:
    with pytest.raises(CommandError, match="say which folder"):
        own_root(DEFAULT_ROOT, line)


def test_what_to_do_next_names_the_folder_of_this_lab(tmp_path: Path) -> None:
    assert LabPaths(DEFAULT_ROOT).command == "kubelet-py lab"
    with pytest.raises(LabError, match=f"make one: kubelet-py lab --root {tmp_path} up"):
        state.require(LabPaths(tmp_path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kill 5", "kill takes no '5' (it is for delay and loss)"),
        ("heal 5%", "heal takes no '5%'"),
        ("kill --wait", "kill takes no --wait (it is for start)"),
        ("start --grace 5", "start takes no --grace (it is for stop)"),
        ("heal --from node2", "heal takes no --from (it is for partition)"),
        ("stop --timeout 5", "stop takes no --timeout"),
        ("stop --grace -1", "--grace -1: it must be a number of seconds, 0 or more"),
        ("start --wait --timeout nan", "--timeout nan: it must be a number of seconds"),
        ("partition --from ,", "--from: say which machines"),
    ],
)
def test_what_a_verb_has_no_use_for_is_refused(line: str, said: str) -> None:
    args = build_parser("lab").parse_args(["lab", "node", "node1", *line.split()])
    with pytest.raises(LabError, match=re.escape(said)):
        check(args)


@pytest.mark.parametrize(
    "line",
    ["stop", "stop --grace 0", "start --wait --timeout 9", "loss 5%", "delay 0", "partition --from a,host"],
)
def test_what_belongs_to_a_verb_is_taken(line: str) -> None:
    check(build_parser("lab").parse_args(["lab", "node", "node1", *line.split()]))
