"""The scripts of hack/ say what they do when they are asked, and do nothing else then."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HACK = Path(__file__).parents[2] / "hack"
SCRIPTS = sorted(
    str(path.relative_to(HACK))
    for path in (*HACK.iterdir(), *(HACK / "vm").iterdir())
    # What is not executable is read by the others.
    if path.is_file() and path.stat().st_mode & 0o100
)


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_says_what_it_does(script: str, option: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [HACK / script, option],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, *_ = done.stdout.splitlines()
    assert first.endswith((".", ":")) or len(first) > 60, first
    assert not first.startswith("#")
    assert "set -euo" not in done.stdout and "pytest [options]" not in done.stdout


def test_the_tests_of_the_vm_are_not_run_on_the_machine(tmp_path: Path) -> None:
    done = subprocess.run([HACK / "vm/guest"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "hack/vm/guest: this is not the VM (run it there: sudo ./hack/vm/run)\n"
    assert not done.stdout and not list(tmp_path.iterdir())
