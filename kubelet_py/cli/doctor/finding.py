"""One line of the report."""

from __future__ import annotations

from dataclasses import dataclass

OK, DEGRADED, MISSING = "ok", "degraded", "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """`state` is "missing" where pods cannot run, "degraded" where something promised cannot be kept or a
    person should look; `purpose` is what it is for, `mend` what to type."""

    name: str
    state: str
    found: str
    purpose: str
    mend: str = ""
