"""What a weakening is: see weakenings.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weakening:
    """`changes`: (file, old text, new text); `tests`: names of tests that must all fail under it."""

    name: str
    changes: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def weak(name: str, file: str, old: str, new: str, *tests: str) -> Weakening:
    return Weakening(name, ((file, old, new),), tests)
