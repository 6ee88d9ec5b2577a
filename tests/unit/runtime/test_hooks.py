"""Hooks get the state on standard input; time and failure are handled as the specification says."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import HookError
from runtime.hooks import run_hooks
from runtime.spec import Hook

STATE = {"id": "c1", "pid": 7}


def shell(script: str, timeout: int | None = None) -> Hook:
    return Hook("/bin/sh", ("sh", "-c", script), ("PATH=/bin:/usr/bin",), timeout)


def test_a_hook_reads_the_state(tmp_path: Path) -> None:
    target = tmp_path / "state"
    assert run_hooks("prestart", [shell(f"cat > {target}")], STATE) == []
    assert target.read_text() == '{"id": "c1", "pid": 7}'


def test_a_failing_hook_stops_what_comes_before_the_start(tmp_path: Path) -> None:
    target = tmp_path / "second"
    hooks = [shell("echo no luck; exit 3"), shell(f"touch {target}")]
    with pytest.raises(HookError, match="exit code 3: no luck"):
        run_hooks("createRuntime", hooks, STATE)
    assert not target.exists()


def test_a_failing_poststop_hook_is_reported_and_the_next_one_runs(tmp_path: Path) -> None:
    target = tmp_path / "second"
    problems = run_hooks("poststop", [shell("exit 1"), shell(f"touch {target}")], STATE)
    assert len(problems) == 1 and "exit code 1" in problems[0]
    assert target.exists()


def test_a_slow_hook_is_killed() -> None:
    with pytest.raises(HookError, match="longer than 1 s"):
        run_hooks("prestart", [shell("exec tail -f /dev/null", timeout=1)], STATE)


def test_a_missing_hook_is_named() -> None:
    with pytest.raises(HookError, match="/no/such: ENOENT"):
        run_hooks("prestart", [Hook("/no/such", (), (), None)], STATE)
