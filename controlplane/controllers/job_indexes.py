"""Numbers of an Indexed Job's pods as its status writes them: "0,2-4,7". Pure."""

from __future__ import annotations

from collections.abc import Iterable

from controlplane.controllers.base import Object

ANNOTATION = "batch.kubernetes.io/job-completion-index"


def read(text: str | None) -> set[int]:
    """The numbers of such a text; "" and None have none."""
    found: set[int] = set()
    for part in (text or "").split(","):
        first, dash, last = part.partition("-")
        if first:
            found.update(range(int(first), int(last if dash else first) + 1))
    return found


def write(numbers: Iterable[int]) -> str:
    """The numbers in order; three or more in a row are written as a range."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}-{b}" for a, b in runs)


def of(pod: Object) -> int | None:
    """The pod's number; None for one that has none."""
    text = str((pod["metadata"].get("annotations") or {}).get(ANNOTATION, ""))
    return int(text) if text.isascii() and text.isdigit() else None


def indexed(job: Object) -> bool:
    return bool(job["spec"].get("completionMode") == "Indexed")
