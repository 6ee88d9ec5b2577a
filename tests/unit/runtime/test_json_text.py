"""The short way to JSON gives what the standard one gives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime import json_text

VALUES: list[Any] = [
    {}, [], None, True, 1, -2.5, "é\n\"", {"a": [1, {"b": []}], "c": {}}, [[], {"x": None}], 2**70
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back(value: Any) -> None:
    assert json_text.dumps(value) == json.dumps(value)
    assert json_text.pretty(value) == json.dumps(value, indent=2)
    assert json_text.loads(" \n" + json.dumps(value) + "\n\t") == value


@pytest.mark.parametrize(
    "text", ["", "{", "[1,]", "nul", '"a', '{"a":1}x', "NaN", "[Infinity]", '"\x01"', "{'a': 1}", "\ufeff{}"]
)
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        json_text.loads(text)


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError):
        json_text.dumps(float("nan"))
    with pytest.raises(TypeError):
        json_text.dumps({"a": object()})
