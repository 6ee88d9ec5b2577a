"""docs/cni-checklist.md and the tests it names say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_line_of_the_table_heads_the_docstring_of_its_test() -> None:
    source = (ROOT / "tests/privileged/cni/test_checklist.py").read_text()
    tests = {
        node.name: " ".join((ast.get_docstring(node) or "").split()).rstrip(".")
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    text = (ROOT / "docs/cni-checklist.md").read_text()
    rows = re.findall(r"^\| (.+) \| `test_checklist\.py::(\w+)` \|$", text, re.MULTILINE)
    assert {name: line for line, name in rows} == tests
    for name in re.findall(r"\(`(test_\w+\.py)`\)", text):
        assert (ROOT / "tests/privileged/cni" / name).exists(), name
