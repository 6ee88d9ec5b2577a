"""A pytest plugin that prints, for every collected test, the conformance entries that it stands for.

`python -m pytest -p conformance_titles --collect-only …` with this folder on PYTHONPATH;
tests/unit/test_docs.py compares what it prints with docs/conformance.md.
"""

from __future__ import annotations

import json

import pytest

HEADER = "conformance-titles: "


def pytest_collection_finish(session: pytest.Session) -> None:
    rows = set()
    for item in session.items:
        for mark in item.iter_markers("conformance"):
            file = item.path.relative_to(session.config.rootpath)
            rows.add((mark.args[0], str(file), getattr(item, "originalname", None) or item.name))
    print(HEADER + json.dumps(sorted(rows)))
