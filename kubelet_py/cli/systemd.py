"""systemd, as `install` needs it: unit files, and `systemctl`.

Whether systemd runs the machine is told by the folder /run/systemd/system, as sd_booted(3) says; an installed
package alone means nothing.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from kubelet_py.cli.errors import CommandError


class NotStarted(CommandError):
    """systemd could not start a unit."""


UNITS = Path("/etc/systemd/system")
BOOTED = Path("/run/systemd/system")
PATIENCE = 600.0

Run = Callable[[Sequence[str]], tuple[int, str]]

NOT_BOOTED = (
    "this machine is not run by systemd (no /run/systemd/system): let what starts services here run "
    "`kubelet-py up` in the foreground and restart it, signalling only that one process to stop it; or call "
    "`kubelet-py up --detach` at boot"
)


def execute(argv: Sequence[str]) -> tuple[int, str]:
    """Exit code, and what was printed."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
        )
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, str(error))
        raise CommandError(f"Could not run {argv[0]}: {code}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"Could not wait for {' '.join(argv)}: no end after {PATIENCE:g} s") from error
    return done.returncode, (done.stdout + done.stderr).strip()


class Systemd:
    """The manager of this machine's services. Its verbs raise CommandError with systemd's own words."""

    def __init__(self, *, units: Path = UNITS, booted: Path = BOOTED, run: Run = execute) -> None:
        self._units, self._booted, self._run = units, booted, run

    def require(self) -> None:
        """Raise CommandError where systemd does not run this machine, with what to do instead."""
        if not self._booted.is_dir():
            raise CommandError(NOT_BOOTED)

    def installed(self, unit: str) -> bool:
        """Whether our file is there and somebody could start it."""
        return self._booted.is_dir() and (self._units / unit).exists()

    def state(self, unit: str) -> tuple[str, str]:
        """What is-enabled and is-active say: ("enabled", "active"), for example."""
        enabled, active = (self._run(["systemctl", verb, unit])[1] for verb in ("is-enabled", "is-active"))
        return enabled.splitlines()[-1] if enabled else "", active.splitlines()[-1] if active else ""

    def running(self, unit: str) -> bool:
        """Whether stopping it would stop something; also while it starts or waits to be started again."""
        return self.installed(unit) and self.state(unit)[1] not in ("inactive", "failed")

    def install(self, unit: str, text: str) -> None:
        """Write the unit, have it read, and enabled at boot."""
        file = self._units / unit
        new = file.with_name(f".{unit}.new")
        try:
            self._units.mkdir(parents=True, exist_ok=True)
            new.write_text(text)
            new.chmod(0o644)
            new.rename(file)
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, str(error))
            raise CommandError(f"Could not write {file}: {code}") from error
        self._call("daemon-reload")
        self._call("enable", unit)

    def restart(self, unit: str) -> None:
        """Start it, or start it anew; returns when it says that it is ready. Raises NotStarted."""
        try:
            self._call("restart", unit)
        except CommandError as error:
            raise NotStarted(f"{error} (see: journalctl -u {unit} -n 20)") from error

    def stop(self, unit: str) -> None:
        self._call("stop", unit)

    def remove(self, unit: str) -> None:
        """Undo `install`; nothing happens where it was not installed."""
        if not (self._units / unit).exists():
            return
        if not self._booted.is_dir():
            (self._units / unit).unlink()
            (self._units / "multi-user.target.wants" / unit).unlink(missing_ok=True)
            return
        self._call("disable", "--now", unit)
        (self._units / unit).unlink()
        self._call("daemon-reload")
        self._run(["systemctl", "reset-failed", unit])  # says so where nothing had failed; that is well

    def _call(self, verb: str, *arguments: str) -> None:
        code, output = self._run(["systemctl", verb, *arguments])
        if code != 0:
            lines = output.splitlines() or [f"exit code {code}"]
            raise CommandError(f"Could not {verb} {' '.join(arguments)} by systemd: {lines[0]}")
