"""placeholder"""
from __future__ import annotations
from collections.abc import Mapping
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def compiled(profile: Mapping[str, Any]) -> tuple[bytes, int]:
    raise NotImplementedError
