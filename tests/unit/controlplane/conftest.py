"""The recorded answers of a real API server lie beside the checkout, not in the repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).resolve().parents[4] / "shared" / "wire" / "oracle"


@pytest.fixture
def oracle() -> Callable[[str], Any]:
    """Loads one recorded file; skips the test where the recordings are not at hand."""

    def load(name: str) -> Any:
        path = _FOLDER / name
        if not path.is_file():
            pytest.skip(f"no recorded answers: {path} is missing")
        return json.loads(path.read_text(encoding="utf-8"))

    return load
