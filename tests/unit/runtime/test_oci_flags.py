"""The command line's grammar: what callers of runc and crun write is read, anything else refused by name."""

from __future__ import annotations

import pytest

from runtime.oci_arguments import COMMANDS, GENERAL, parse
from runtime.oci_flags import Arguments, UsageError


def read(line: str) -> Arguments:
    found = Arguments()
    parse(line.split(), found)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "run --bundle /b --detach one",
        "run -b /b -d one",
        "run -d one --bundle=/b",
        "run -bundle /b -detach one",
        "run -db /b one",
        "run -db/b one",
        "run --detach=true -b=/b one",
        "run --bundle /x --bundle /b -d -- one",
    ],
)
def test_a_flag_may_be_written_in_many_ways(line: str) -> None:
    found = read(line)
    assert (found.command, found.bundle, found.detach, found.keep, found.id) == (
        "run", "/b", True, False, "one"
    )  # fmt: skip


def test_what_follows_an_execs_id_is_the_containers() -> None:
    found = read("exec -e A=1 --env B=2 -u 5:6 -g 7 -g 8 one ls -l --env X")
    assert found.args == ["ls", "-l", "--env", "X"]
    assert (found.env, found.user, found.additional_gids) == (["A=1", "B=2"], "5:6", [7, 8])
    assert read("exec one -- ls --").args == ["ls", "--"]
    assert read("ps one -o pid").options == ["-o", "pid"]


def test_general_flags_stand_before_the_command() -> None:
    found = read("--root /r --log /l --log-format json --debug list -q")
    assert (found.root, found.log, found.log_format, found.debug, found.quiet) == (
        "/r", "/l", "json", True, True
    )  # fmt: skip
    assert read("list").root == "/run/kubelet-py-oci"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no command was given"),
        ("fly", "command 'fly': it is unknown"),
        ("run --bogus one", "flag --bogus: it is not one of --bundle"),
        ("run -dx one", "flag -dx: it is not one of"),
        ("start --force one", "not one of none"),
        ("run --bundle", "flag --bundle: it needs a value"),
        ("run --preserve-fds x one", "--preserve-fds x: it takes a number"),
        ("run --preserve-fds -1 one", "--preserve-fds -1: it takes a number"),
        ("run --detach=maybe one", "--detach maybe: it takes yes or no"),
        ("list --format yaml", "--format yaml: it takes table or json"),
        ("--log-format xml list", "--log-format xml: it takes text or json"),
        ("--rootless true list", "--rootless true: it takes auto or false"),
        ("update --memory much one", "--memory much: it takes a number"),
        ("run", "run: its id is missing"),
        ("state one two", "state: 'two' is one word too many"),
    ],
)
def test_a_mistake_is_named(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(line)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_leaves_the_log_that_was_named_before() -> None:
    found = Arguments()
    with pytest.raises(UsageError):
        parse(["--log", "/l", "run", "--bogus", "one"], found)
    assert (found.log, found.command) == ("/l", "run")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64M", 64 << 20), ("1g", 1 << 30), ("512kb", 512 << 10), ("100", 100), ("-1", -1),
        ("1.5GiB", 3 << 29), ("64MiB", 64 << 20),
    ],
)  # fmt: skip
def test_limits_are_numbers_with_units(text: str, value: int) -> None:
    assert read(f"update --memory {text} one").memory == value
    assert read("update one").memory is None


@pytest.mark.parametrize(
    "line",
    [
        "--memory -5", "--memory 5i", "--memory 1.2.3", "--memory M", "--memory 5x", "--cpu-quota 5M",
        "--pids-limit x",
    ],
)  # fmt: skip
def test_what_is_no_limit_is_refused(line: str) -> None:
    with pytest.raises(UsageError):
        read(f"update {line} one")
    assert read("update --pids-limit -1 --cpu-quota 50000 one").pids_limit == -1


def test_two_dashes_end_the_flags_before_the_id_and_before_the_command() -> None:
    for line in ("exec -t -- one sh -c x", "exec -t one -- sh -c x", "exec -t -- one -- sh -c x"):
        found = read(line)
        assert (found.id, found.args, found.tty) == ("one", ["sh", "-c", "x"], True), line
    assert read("-- list").command == "list"
    assert read("state -- one").id == "one"


def test_help_lists_every_command_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert read("--help").command == ""
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert all(f"--{flag[0]}" in shown for flag in GENERAL)
    for name, (flags, _, _) in COMMANDS.items():
        assert read(f"{name} --help").command == ""
        shown = capsys.readouterr().out
        assert all(f"--{flag[0]}" in shown for flag in flags)
    assert read("--version").command == ""
    assert "spec: 1.2" in capsys.readouterr().out
