"""Every weakening of `hack/security --mutate` still fits the source and names tests that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security.weakening import Weakening
from tests.security.weakenings import WEAKENINGS

ROOT = Path(__file__).resolve().parents[2]
TESTS = "\n".join(path.read_text() for path in sorted((ROOT / "tests/security").glob("test_*.py")))


@pytest.mark.parametrize("weakening", WEAKENINGS, ids=lambda weakening: weakening.name)
def test_a_weakening_fits_the_source(weakening: Weakening) -> None:
    for file, old, new in weakening.changes:
        source = (ROOT / file).read_text()
        assert source.count(old) == 1, f"{file} does not have once: {old!r}"
        assert old != new
        compile(source.replace(old, new), file, "exec")  # or no test would run at all
    assert [name for name in weakening.tests if f"def {name}(" not in TESTS] == []
