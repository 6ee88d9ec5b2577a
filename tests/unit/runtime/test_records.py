"""Records behave like frozen slotted dataclasses, without importing dataclasses."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from runtime.records import Record


class Point(Record):
    x: int
    y: int = 2


class Point3(Point):
    z: int = 3


def test_fields_come_by_position_name_and_default() -> None:
    assert Point(1) == Point(x=1, y=2)
    assert Point3(1, 5) == Point3(1, 5, 3)
    assert repr(Point(1)) == "Point(x=1, y=2)"
    assert hash(Point(1)) == hash(Point(1))
    assert Point(1) != Point3(1)
    assert pickle.loads(pickle.dumps(Point(7))) == Point(7)


@pytest.mark.parametrize("arguments", [{}, {"x": 1, "w": 2}])
def test_missing_and_unknown_fields_are_errors(arguments: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        Point(**arguments)


def test_too_many_values_are_an_error() -> None:
    with pytest.raises(TypeError):
        Point(1, 2, 3)  # type: ignore[call-arg]


def test_records_are_frozen_and_slotted() -> None:
    with pytest.raises(AttributeError):
        Point(1).x = 2  # type: ignore[misc]
    assert not hasattr(Point(1), "__dict__")


def test_nothing_heavy_is_imported_on_the_way_to_a_shim() -> None:
    heavy = {"dataclasses", "inspect", "typing", "logging", "subprocess", "asyncio", "tempfile"}
    code = (
        "import sys; import runtime.launch, runtime.operations, runtime.cgroups, runtime.linux, runtime.spec;"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
