"""One verdict out of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from kubelet_py.cli.doctor.finding import Finding


@pytest.fixture
def worst() -> Callable[[Sequence[Finding]], Finding]:
    """The finding that is not ok, which has to say what to do; else the first. More than one is a failure."""

    def choose(findings: Sequence[Finding]) -> Finding:
        bad = [each for each in findings if each.state != "ok"]
        assert len(bad) <= 1 and all(each.purpose and each.found for each in findings)
        assert all(each.mend for each in bad)
        return bad[0] if bad else findings[0]

    return choose
