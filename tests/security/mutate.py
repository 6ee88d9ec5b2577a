"""Runs tests against deliberately weakened copies of the tree: a test that stays green has proved nothing.

Each weakening is tried in a jail of its own, because weakened code writes where it should not: mount, PID,
network, IPC and UTS namespaces whose root is an overlay over the machine's, with everything written kept in
memory, entered by pivot_root and with the old root detached. /dev, /tmp, /run and the tree are tmpfs. Of the
machine only the cgroup trees can be changed from there, and they are not what is weakened.
"""

from __future__ import annotations

import argparse
import ctypes
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.security.weakening import Weakening
from tests.security.weakenings import WEAKENINGS

REPOSITORY = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "vagrant")
ISOLATION = (
    "unshare",
    "--net",
    "--mount",
    "--pid",
    "--fork",
    "--ipc",
    "--uts",
    "--propagation",
    "private",
    "--",
)
SECONDS = 120
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 1, 0x20, 0x1000, 0x4000, 1 << 18, 2
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
HOST_CHECK = (
    "assert host_state.settled_difference(before) == []"  # others' processes are not the question here
)
Results = dict[str, str]


# -- outside ---------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="hack/security --mutate")
    parser.add_argument("--mutate", action="store_true", required=True)
    parser.add_argument("--only", default="", help="weakenings whose name contains this")
    parser.add_argument("--commit", help="take this commit instead of the working tree")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    begin = time.monotonic()
    chosen = [one for one in WEAKENINGS if options.only in one.name]
    with tempfile.TemporaryDirectory(prefix="kubelet-py-mutate-") as folder:
        tree = Path(folder) / "tree"
        copy_tree(tree, options.commit)
        tests = tuple(sorted({test for one in chosen for test in one.tests}))
        sound = jailed(tree, Weakening("none", (), tests))
        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = list(pool.map(lambda one: jailed(tree, one), chosen))
    return report(chosen, tests, sound, outcomes, time.monotonic() - begin)


def copy_tree(target: Path, commit: str | None) -> None:
    if commit is None:
        shutil.copytree(REPOSITORY, target, symlinks=True, ignore=LEFT_OUT)
        return
    target.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, check=True)


def jailed(tree: Path, weakening: Weakening) -> Results:
    """Outcome by test name: passed, failed, missing, or why nothing ran (under "")."""
    with tempfile.TemporaryDirectory(prefix="kubelet-py-jail-") as folder:
        order = Path(folder) / "order.json"
        body = {"tree": str(tree), "changes": weakening.changes, "tests": weakening.tests, "folder": folder}
        order.write_text(json.dumps(body))
        command = [*ISOLATION, sys.executable, "-m", "tests.security.mutate", "--jail", str(order)]
        try:
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return {"": f"no end within {SECONDS} s"}
        finally:
            sweep(Path(folder).name)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        return {"": (done.stderr or done.stdout).strip()[-300:] or f"exit code {done.returncode}"}


def sweep(jail_name: str) -> None:
    """Remove the cgroups that a weakened runtime has left; what was in them ended with the jail."""
    for tree in ("/sys/fs/cgroup", *glob.glob("/sys/fs/cgroup/*")):
        for left in glob.glob(f"{tree}/kubelet-py-test-{jail_name}*"):
            for folder, _, _ in os.walk(left, topdown=False):
                os.rmdir(folder)


def report(
    chosen: list[Weakening], tests: tuple[str, ...], sound: Results, outcomes: list[Results], seconds: float
) -> int:
    rows, slipped = [], 0
    for one, results in zip(chosen, outcomes, strict=True):
        for test in one.tests:
            caught = results.get(test) == "failed"
            slipped += not caught
            word = "caught" if caught else f"SLIPPED ({results.get('') or results.get(test, 'missing')})"
            rows.append((test.removeprefix("test_"), one.name, word))
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for row in rows:
        print(f"{row[0]:{wide[0]}}  {row[1]:{wide[1]}}  {row[2]}")
    broken = [test for test in tests if sound.get(test) != "passed"]
    for test in broken:
        print(f"{test} does not pass on the tree as it is: {sound.get('') or sound.get(test, 'missing')}")
    print(
        f"{len(chosen)} weakenings, {len(tests)} tests, {len(rows)} pairs: {len(rows) - slipped} caught,"
        f" {slipped} slipped through, {len(broken)} tests broken without any; {seconds:.0f} s"
    )
    return 1 if slipped or broken else 0


# -- inside ----------------------------------------------------------------------------------------------


def jail(order: Path) -> None:
    """PID 1 of the jail: weaken, go in, test, answer in JSON on the last line of standard output."""
    asked = json.loads(order.read_text())
    tree, root = Path(asked["tree"]), Path(asked["folder"]) / "root"
    build(root, tree)
    for file, old, new in asked["changes"]:
        path = root / str(REPOSITORY).lstrip("/") / file
        text = path.read_text()
        if text.count(old) != 1:
            print(json.dumps({"": f"stale: the text is {text.count(old)} times in {file}"}))
            return
        path.write_text(text.replace(old, new))
    enter(root)
    print(json.dumps(run(asked["tests"])))


def build(root: Path, tree: Path) -> None:
    memory = root.parent / "memory"
    for folder in (root, memory):
        folder.mkdir()
    mount("tmpfs", memory, "tmpfs")
    for name in ("upper", "work"):
        (memory / name).mkdir()
    mount("overlay", root, "overlay", 0, f"lowerdir=/,upperdir={memory}/upper,workdir={memory}/work")
    for name in ("tmp", "run", "dev"):
        (root / name).mkdir(exist_ok=True)
        mount("tmpfs", root / name, "tmpfs")
    (root / "tmp").chmod(0o1777)
    for name, (major, minor) in DEVICES.items():
        os.mknod(root / "dev" / name, 0o020666, os.makedev(major, minor))
        (root / "dev" / name).chmod(0o666)
    for name in ("pts", "shm"):
        (root / "dev" / name).mkdir()
    mount("devpts", root / "dev/pts", "devpts", 0, "newinstance,ptmxmode=0666")
    (root / "dev/ptmx").symlink_to("pts/ptmx")
    mount("tmpfs", root / "dev/shm", "tmpfs")
    mount("proc", root / "proc", "proc")
    mount("sysfs", root / "sys", "sysfs")
    mount("/sys/fs/cgroup", root / "sys/fs/cgroup", "", MS_BIND | MS_REC)
    place = root / str(REPOSITORY).lstrip("/")
    place.mkdir(parents=True, exist_ok=True)  # the tree may lie below /tmp
    mount("tmpfs", place, "tmpfs")
    shutil.copytree(tree, place, symlinks=True, dirs_exist_ok=True)
    (place / ".venv").mkdir()
    mount(str(REPOSITORY / ".venv"), place / ".venv", "", MS_BIND)
    mount("", place / ".venv", "", MS_BIND | MS_REMOUNT | MS_RDONLY)
    # Pids repeat from jail to jail, cgroups are the machine's: name them after the jail.
    boxes = place / "tests/privileged/runtime/conftest.py"
    boxes.write_text(boxes.read_text().replace("{os.getpid()}", root.parent.name))
    os.environ["KUBELET_PY_TEST_CGROUP"] = f"kubelet-py-test-{root.parent.name}"
    check = place / "tests/conftest.py"
    check.write_text(check.read_text().replace(HOST_CHECK, "pass"))


def mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()
    if libc.mount(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"Could not mount {kind or source} on {target}")


def enter(root: Path) -> None:
    """The jail's root becomes ours, the machine's is detached: nothing of it is reachable any more."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.chdir(root)
    number = PIVOT_ROOT[os.uname().machine]
    if libc.syscall(ctypes.c_long(number), b".", b".") != 0 or libc.umount2(b".", MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), "Could not enter the jail")
    os.chdir("/")
    if Path("/proc/self/mountinfo").read_text().count(" - ext4 ") > 1:
        raise OSError(0, "the machine's root is still mounted")  # only the read-only .venv may be
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def run(tests: list[str]) -> Results:
    """A test has failed when one of its cases has, in the test itself and not around it."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout=20",
        "--force-reruns=0",  # a test that fails is what is wanted
        "--junitxml=/tmp/report",
    ]
    subprocess.run(
        [*command, "tests/security", "-k", " or ".join(tests)], cwd=REPOSITORY, stdout=subprocess.DEVNULL
    )
    results: Results = {}
    for case in xml.etree.ElementTree.parse("/tmp/report").getroot().iter("testcase"):
        name = str(case.get("name")).partition("[")[0]
        if case.find("failure") is not None:
            results[name] = "failed"
        elif case.find("skipped") is None and case.find("error") is None:
            results.setdefault(name, "passed")
    return {test: results.get(test, "missing") for test in tests}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--jail"]:
        jail(Path(sys.argv[2]))
    else:
        sys.exit(main())
