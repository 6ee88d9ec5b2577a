"""config.json is checked at the border, and errors name the field."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import SpecError
from runtime.spec import Namespace, Rlimit, parse, parse_process

MINIMAL: dict[str, Any] = {"ociVersion": "1.2.0"}


def process(**changes: Any) -> dict[str, Any]:
    return {**MINIMAL, "process": {"args": ["sh"], "cwd": "/", **changes}}


def linux(**changes: Any) -> dict[str, Any]:
    return {**MINIMAL, "linux": changes}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "ociVersion"),
        ({"ociVersion": "2.0.0"}, "ociVersion"),
        ({**MINIMAL, "root": {}}, "root.path"),
        ({**MINIMAL, "root": "x"}, "root"),
        (process(args=[]), "process.args"),
        (process(args=["a", 1]), "process.args[1]"),
        (process(args=["a\0b"]), "process.args[0]"),
        (process(cwd="tmp"), "process.cwd"),
        (process(env=["A=1", "B"]), "process.env[1]"),
        (process(env=["=1"]), "process.env[0]"),
        (process(noNewPrivileges="yes"), "process.noNewPrivileges"),
        (process(oomScoreAdj=1001), "process.oomScoreAdj"),
        (process(user={"uid": -1}), "process.user.uid"),
        (process(user={"additionalGids": ["x"]}), "process.user.additionalGids"),
        (process(capabilities={"bounding": [7]}), "process.capabilities.bounding[0]"),
        (process(rlimits=[{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), "process.rlimits[0].type"),
        (process(rlimits=[{"type": "NOFILE", "soft": 1, "hard": 1}]), "process.rlimits[0].type"),
        (process(rlimits=[{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]), "process.rlimits[0].soft"),
        (process(rlimits=[{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2), "process.rlimits[1].type"),
        ({**MINIMAL, "mounts": [{}]}, "mounts[0].destination"),
        ({**MINIMAL, "mounts": [{"destination": "/x/.."}]}, "mounts[0].destination"),
        (linux(namespaces=[{"type": "net"}]), "linux.namespaces[0].type"),
        (linux(namespaces=[{"type": "pid"}, {"type": "pid"}]), "linux.namespaces[1].type"),
        (linux(namespaces=[{"type": "pid", "path": "x"}]), "linux.namespaces[0].path"),
        (linux(devices=[{"path": "/dev/x", "type": "z"}]), "linux.devices[0].type"),
        (linux(rootfsPropagation="loud"), "linux.rootfsPropagation"),
        (linux(sysctl={"a": 1}), "linux.sysctl[a]"),
        ({**MINIMAL, "hooks": {"prestart": [{"path": "x"}]}}, "hooks.prestart[0].path"),
    ],
)
def test_a_wrong_field_is_named(config: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(config)
    assert caught.value.field == field


def test_values_are_read() -> None:
    spec = parse(
        {
            **process(
                env=["A=1"],
                user={"uid": 1, "gid": 2, "additionalGids": [3]},
                rlimits=[{"type": "RLIMIT_NOFILE", "soft": 4, "hard": 5}],
                consoleSize={"height": 24, "width": 80},
            ),
            "root": {"path": "rootfs", "readonly": True},
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/x"}],
                "maskedPaths": ["/proc/kcore"],
            },
        }
    )
    assert spec.process is not None and spec.root is not None
    assert spec.process.user.additional_gids == (3,)
    assert spec.process.rlimits == (Rlimit("NOFILE", 7, 4, 5),)
    assert spec.process.console_size == (24, 80)
    assert spec.root.readonly
    assert spec.linux.namespaces == (Namespace("pid"), Namespace("network", "/x"))


def test_a_final_slash_leaves_no_file_unprotected() -> None:
    masked, read_only = ["/proc/timer_list//", "/proc/keys"], ["/proc/sysrq-trigger/", "/"]
    found = parse({**process(), "linux": {"maskedPaths": masked, "readonlyPaths": read_only}}).linux
    assert found.masked_paths == ("/proc/timer_list", "/proc/keys")
    assert found.readonly_paths == ("/proc/sysrq-trigger", "/")


def test_of_two_values_for_one_name_the_last_counts() -> None:
    found = parse_process({"args": ["sh"], "cwd": "/", "env": ["A=1", "PATH=/bin", "A=2", "A_B=3"]})
    assert found.env == ("A=2", "PATH=/bin", "A_B=3")


def test_a_specification_without_process_or_root_is_a_sandbox() -> None:
    spec = parse(MINIMAL)
    assert spec.process is None and spec.root is None


def test_a_process_can_be_read_alone() -> None:
    assert parse_process({"args": ["a"], "cwd": "/"}).args == ("a",)


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        parse(MINIMAL).hostname = "x"  # type: ignore[misc]
