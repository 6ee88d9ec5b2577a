"""What makes plugin programs start fast, and what stands in the place of the slow parts of the library."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cni import programs
from cni.beside import beside
from cni.frozen import frozen, replace
from cni.jsontext import dumps, loads

ROOT = Path(__file__).parents[3]
SLOW = {
    "dataclasses",
    "enum",
    "inspect",
    "json",
    "pathlib",
    "re",
    "socket",
    "subprocess",
    "threading",
    "typing",
}


@pytest.mark.parametrize("kind", ["bridge", "ptp", "host_local", "loopback", "portmap", "bandwidth"])
def test_a_plugin_program_imports_nothing_slow(kind: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cni.skeleton, cni.host_local, cni.{kind}; "
    code += "print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert SLOW & set(done.stdout.split()) == set()


@frozen
class Point:
    x: int
    y: int = 7
    names: Mapping[str, str] = {}

    @property
    def sum(self) -> int:
        return self.x + self.y


def test_a_frozen_value_is_as_a_dataclass_would_be() -> None:
    point = Point(1)
    assert (point.x, point.y, point.names, point.sum) == (1, 7, {}, 8)
    assert point == Point(x=1, y=7)
    assert point != Point(2)
    assert point != (1, 7, {})
    assert repr(point) == "Point(x=1, y=7, names={})"
    assert replace(point, y=2) == Point(1, 2)
    assert pickle.loads(pickle.dumps(point)) == point
    assert not hasattr(point, "__dict__")
    for change in (
        lambda: setattr(point, "x", 3),
        lambda: delattr(point, "x"),
        lambda: setattr(point, "z", 3),
    ):
        with pytest.raises(AttributeError, match="frozen Point"):
            change()


@pytest.mark.parametrize(
    ("given", "named"), [((), {}), ((1, 2, {}, 4), {}), ((1,), {"x": 2}), ((1,), {"z": 2})]
)
def test_wrong_fields_are_refused(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Point"):
        Point(*given, **named)


VALUES = [
    None,
    True,
    False,
    0,
    -12,
    1 << 70,
    1.5,
    1e300,
    "",
    '\u00e4\U0001f600"\\\n',
    [],
    {},
    [1, [2]],
    {"a": {"b": ()}},
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_json_is_as_the_library_writes_and_reads_it(value: Any) -> None:
    assert dumps(value) == json.dumps(value)
    assert loads(dumps(value)) == json.loads(json.dumps(value))
    assert loads(b" \n" + json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\r\t ") == loads(
        dumps(value)
    )


@pytest.mark.parametrize(
    "text", ["", " ", "{", "[1,]", "{'a': 1}", "1 2", '{"a": 1}}', "nul", '"a', "NaN", b"\xff"]
)
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        loads(text)


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        dumps({"a": {1}})


def test_a_program_is_given_its_input_and_heard_on_both_streams() -> None:
    much = "x" * 300_000
    script = "cat; head -c 200000 /dev/zero | tr '\\0' e >&2; exit 3"
    status, told, complaint = programs.run(["/bin/sh", "-c", script], much)
    assert (status, told, complaint[:3]) == (3, much, "eee")
    assert programs.run(["/bin/sh", "-c", "kill -9 $$"], "")[0] == -9
    with pytest.raises(FileNotFoundError):
        programs.run(["/nowhere/at-all"], "")


def test_running_programs_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    for words in (["/bin/true"], ["/nowhere/at-all"]):
        try:
            programs.run(words, "in")
        except FileNotFoundError:
            assert words != ["/bin/true"]
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_program_is_found_along_the_path(tmp_path: Path) -> None:
    for folder, mode in (("a", 0o644), ("b", 0o755), ("c", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").touch(mode)
    path = f":{tmp_path}/none:{tmp_path}/a:{tmp_path}/b:{tmp_path}/c"
    assert programs.find("tool", path) == f"{tmp_path}/b/tool"
    assert programs.find("other", path) is None


def test_what_goes_on_beside_gives_its_value_or_its_error_to_whoever_waits() -> None:
    go = threading.Event()
    wait = beside(lambda: go.wait(60) and threading.get_ident())
    go.set()
    assert wait() not in (False, threading.get_ident())
    assert wait() == wait()
    fails = beside(lambda: loads("{"))
    for _ in range(2):
        with pytest.raises(ValueError):
            fails()
