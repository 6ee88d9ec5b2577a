"""The short way to JSON gives what the standard one gives."""

from __future__ import annotations

import json
import subprocess
import sys
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


def test_half_a_text_is_a_value_error_where_json_was_never_imported() -> None:
    """The C scanner takes its exception from there, and gives none without."""
    script = """
import sys
from runtime import json_text
for text in ("{", "[1,", '"a', '{"a"'):
    try:
        json_text.loads(text)
    except ValueError:
        continue
    raise SystemExit(f"{text} was read")
raise SystemExit("json was imported" if "json.decoder" in sys.modules else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError):
        json_text.dumps(float("nan"))
    with pytest.raises(TypeError):
        json_text.dumps({"a": object()})
