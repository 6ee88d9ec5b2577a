from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

# In a process of its own: pytest's has threads and files open.
PROGRAM = """
import json, os, subprocess, sys, time
from pathlib import Path
from kubelet_py.cli.lab.warm import ForkedProcess, WarmSpawner
from kubelet_py.cli.supervisor import ChildSpec
folder = Path(sys.argv[1])
open_file = open(folder / "parents-file", "w")

def agent(arguments):
    print("arguments", *arguments, flush=True)
    (folder / "facts").write_text(json.dumps({
        "session": os.getsid(0) == os.getpid(), "open": len(os.listdir("/proc/self/fd")),
        "title": Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0").decode(),
    }))
    time.sleep(60 if "wait" in arguments else 0)
    return 7

spawn = WarmSpawner("node1", {"kubelet_py.agent": agent})
ended = spawn(ChildSpec("agent", [sys.executable, "-m", "kubelet_py.agent", "--port", "1"], folder / "a.log"))
code = ended.wait()
waiting = spawn(ChildSpec("agent", [sys.executable, "-m", "kubelet_py.agent", "wait"], folder / "b.log"))
try:
    waiting.wait(0.05)
    late = False
except subprocess.TimeoutExpired:
    late = True
waiting.terminate()
other = spawn(ChildSpec("other", [sys.executable, "-c", "print('executed')"], folder / "c.log"))
print(json.dumps({"code": code, "again": ended.wait(), "late": late, "killed": waiting.wait(5),
    "other": other.wait(), "forked": [isinstance(p, ForkedProcess) for p in (ended, other)]}))
"""


def test_a_forked_program_begins_as_an_executed_one_does(tmp_path: Path) -> None:
    padding = "x" * 60  # room for the title, as the command line of a real lab has it
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), padding],
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
        check=True,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {
        "code": 7, "again": 7, "late": True, "killed": -signal.SIGTERM, "other": 0, "forked": [True, False]
    }  # fmt: skip
    facts = json.loads((tmp_path / "facts").read_text())
    assert facts["session"] and facts["title"].startswith("node1: agent")
    assert facts["open"] == 4  # stdin, stdout, stderr, and the folder that lists them
    assert (tmp_path / "a.log").read_text() == "arguments --port 1\n"
    assert (tmp_path / "c.log").read_text() == "executed\n"


IMPORTED = """
import gc, json, sys
from kubelet_py.cli.lab import warm
found = warm.import_programs(*warm.PROGRAMS)
before = set(sys.modules)
import kubelet_py.server.app, proxy.dns.server  # what the programs import when they serve
print(json.dumps([sorted(found), sorted(set(sys.modules) - before), gc.get_freeze_count() > 10_000]))
"""


def test_what_the_programs_import_late_is_imported_before_they_are_forked() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [["kubelet_py.agent", "proxy"], [], True]
