"""Whether a process is on its way out, as the shim asks before it tells of a child's OOM kill."""

from __future__ import annotations

import os
import signal
import subprocess

from runtime.oom import is_ending


def test_a_process_ends_when_it_is_killed_and_stays_ended() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        assert not is_ending(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert not is_ending(process.pid)
        process.kill()
        assert is_ending(process.pid)  # SIGKILL is pending, being worked on, or done
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_ending(process.pid)
    assert is_ending(process.pid)
