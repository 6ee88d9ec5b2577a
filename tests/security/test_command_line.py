"""E01 against `kubelet-py-oci`: the file of the Python that runs it, when a container gets hold of that.

All run a copy of the interpreter, which is what a test that fails has overwritten.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import oci_launcher
from tests.privileged.oci_callers.bundle import Bundle
from tests.security.test_links import swapper

pytestmark = pytest.mark.privileged

TRIES = 400
QUIET = {"capture_output": False, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
LOADERS = ("lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1")
# What the container has an exec execute. It is a shell, or our interpreter with a loader that is one: this
# keeps the file, becomes another program and writes to the file as soon as nobody executes that.
ATTACK = """
[ "$(/bin/busybox stat -Lc %i /proc/$$/exe)" = INODE ] || exit 0
exec 3< /proc/self/exe
: > /reached
exec /bin/busybox sh -c '
    while :; do
        said=$( (echo overwritten >> /proc/self/fd/3) 2>&1 )
        case "$said" in *"Text file busy"*) /bin/busybox usleep 20000;; *) break;; esac
    done
    echo "said: $said" > /answer.new && /bin/busybox mv /answer.new /answer'
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the interpreter that will be chosen for the command."""
    taken = oci_launcher.interpreter(
        os.path.realpath(sys.executable), oci_launcher.SYSTEM.format(*sys.version_info)
    )
    copy = tmp_path / "python3"
    shutil.copy(taken, copy)
    monkeypatch.setattr(oci_launcher, "interpreter", lambda *_: str(copy))
    return copy


@pytest.fixture
def bundle(tmp_path: Path, python: Path) -> Iterator[Bundle]:
    """Of a busybox that is also what a dynamic program's loader is called."""
    assert python.exists()
    root = tmp_path / "root"
    for name in ("bin/busybox", "bin/sh", *LOADERS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/usr/bin/busybox", root / name)
    launcher = tmp_path / "kubelet-py-oci"
    oci_launcher.write(launcher, tmp_path / "code")
    made = Bundle(tmp_path, str(launcher), root)
    yield made
    made("delete", "--force", made.identity)


@pytest.fixture
def entry_point(bundle: Bundle, python: Path) -> Bundle:
    """The same, started by what pip makes of an entry point."""
    script = bundle.folder / "kubelet-py-oci"
    places = f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})"
    script.write_text(f"#!{python}\nimport sys\n{places}\nfrom runtime.oci_cli import program\nprogram()\n")
    script.chmod(0o755)
    bundle.binary = str(script)
    return bundle


def test_E01_the_command_lines_program_cannot_be_written(bundle: Bundle, python: Path) -> None:
    """E01, CVE-2019-5736: not even root of the host can through /proc/<pid>/exe, nor when it has ended."""
    cannot_be_written(bundle, python)


def test_E01_the_program_of_pips_entry_point_cannot_be_written(entry_point: Bundle, python: Path) -> None:
    """E01, CVE-2019-5736: which begins again for that, and looks as if it had not."""
    assert cannot_be_written(entry_point, python) == "kubelet-py-oci\n"


def cannot_be_written(bundle: Bundle, python: Path) -> str:
    """What the process of `run` is called."""
    bundle.args("/bin/busybox", "sleep", "600")
    command = [bundle.binary, "--root", str(bundle.state), "run", "--bundle", str(bundle.folder)]
    with subprocess.Popen([*command, bundle.identity], stdin=subprocess.DEVNULL) as process:
        wait_until_running(bundle)
        program = os.open(f"/proc/{process.pid}/exe", os.O_RDONLY)
        name = Path(f"/proc/{process.pid}/comm").read_text()
        bundle("kill", bundle.identity, "KILL")
    try:
        assert os.fstat(program).st_ino == python.stat().st_ino
        with pytest.raises(OSError, match="Read-only file system"):
            os.close(os.open(f"/proc/self/fd/{program}", os.O_WRONLY))
    finally:
        os.close(program)
    return name


def test_E01_a_swapped_program_cannot_overwrite_the_command_lines(bundle: Bundle, python: Path) -> None:
    """E01, CVE-2019-5736: one that becomes a link to /proc/self/exe between our look and the execve."""
    before = python.read_bytes()
    bundle.start("/bin/busybox", "sleep", "600")
    attack = ATTACK.replace("INODE", str(python.stat().st_ino))
    link, stop = bundle.root / "bin/link", threading.Event()
    link.symlink_to("/proc/self/exe")
    thread = threading.Thread(target=swapper, args=(bundle.root / "bin/sh", link, stop))
    thread.start()
    try:
        for _ in range(TRIES):
            # Not into a pipe: it would be waited for as long as the attacker lives.
            bundle("exec", "--detach", bundle.identity, "/bin/sh", "-c", attack, **QUIET)
            if (bundle.root / "reached").exists():
                break
    finally:
        stop.set()
        thread.join()
    answer = bundle.root / "answer"
    for _ in range(600):
        if answer.exists():
            break
        time.sleep(0.05)
    if not (bundle.root / "reached").exists():
        pytest.skip(f"the container's program was not in time for any of {TRIES} execs")
    assert "Read-only file system" in answer.read_text()
    assert python.read_bytes() == before


def wait_until_running(bundle: Bundle) -> None:
    for _ in range(1000):
        if '"running"' in bundle("state", bundle.identity).stdout:
            return
        time.sleep(0.02)
    raise AssertionError("the container did not start")
