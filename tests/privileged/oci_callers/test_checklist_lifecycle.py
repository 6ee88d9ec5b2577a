"""The OCI checklist, one test per row, named after it: the life of a container (docs/oci-checklist.md)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle

from runtime import cgroups

pytestmark = pytest.mark.privileged


def status(bundle: Bundle) -> str:
    return str(json.loads(bundle("state", bundle.identity).stdout)["status"])


def until(bundle: Bundle, wanted: str) -> None:
    for _ in range(3000):
        if status(bundle) == wanted:
            return
        os.sched_yield()
    assert status(bundle) == wanted


def alive(pid: int) -> bool:
    """Not ended, and not waiting for init to collect it either."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def created(bundle: Bundle, *args: str) -> None:
    bundle.args(*args)
    assert bundle.create().returncode == 0, bundle.output()


def note(bundle: Bundle, text: str) -> dict[str, Any]:
    """A hook that adds a line to a file in the container's root."""
    script = f"echo {text} >> {bundle.root}/notes"
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}


def test_config_updates_without_affect(bundle: Bundle) -> None:
    """What is written into config.json after create changes nothing."""
    created(bundle, "sh", "-c", "echo first; exec sleep 1000")
    bundle.args("sh", "-c", "echo second; exec sleep 1000")
    assert bundle("start", bundle.identity).returncode == 0
    bundle.wait_for("\n")
    assert bundle.output() == "first\n"


def test_create(bundle: Bundle) -> None:
    """Needs a bundle and an id that nobody has."""
    created(bundle, "sleep", "1000")
    assert status(bundle) == "created"
    assert "exists already" in bundle("create", "--bundle", str(bundle.folder), bundle.identity).stderr
    assert bundle("create", "--bundle", str(bundle.folder)).returncode != 0
    assert "config.json: ENOENT" in bundle("create", "--bundle", str(bundle.root), "other").stderr


def test_default(bundle: Bundle) -> None:
    """The example configuration runs, with everything it asks for."""
    done = bundle.run("hostname; id -u; pwd; echo $TERM; stat -c %a /dev/shm; ls /proc/self/ns | wc -l")
    assert done.stdout.split() == ["container", "0", "/", "xterm", "1777", "10"], done.stderr


def test_delete(bundle: Bundle) -> None:
    """Not while it runs; afterwards nothing is known of it."""
    bundle.start("sleep", "1000")
    assert "it is running" in bundle("delete", bundle.identity).stderr
    assert status(bundle) == "running"
    assert bundle("kill", bundle.identity, "KILL").returncode == 0
    until(bundle, "stopped")
    assert bundle("delete", bundle.identity).returncode == 0
    assert "does not exist" in bundle("state", bundle.identity).stderr


def test_delete_only_create_resources(bundle: Bundle) -> None:
    """A cgroup below its own that somebody else made goes, one beside it stays."""
    bundle.change(lambda config: config["linux"].update(cgroupsPath=f"/{bundle.identity}/inner"))
    driver = cgroups.detect()
    driver.create(f"{bundle.identity}/beside")
    try:
        bundle.start("sleep", "1000")
        assert bundle("delete", "--force", bundle.identity).returncode == 0
        assert driver.exists(f"{bundle.identity}/beside")
        assert not driver.exists(f"{bundle.identity}/inner")
    finally:
        driver.remove(bundle.identity, recursive=True)


def test_delete_resources(bundle: Bundle) -> None:
    bundle.start("sleep", "1000")
    pid = bundle.pid()
    assert bundle("delete", "--force", bundle.identity).returncode == 0
    assert not cgroups.detect().exists(f"kubelet-py-oci-{bundle.identity}")
    assert not alive(pid)
    assert not (bundle.state / bundle.identity).exists()


def test_hooks(bundle: Bundle) -> None:
    """In the listed order, around the process."""
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    listed = {kind: [note(bundle, f"{kind} {n}") for n in (1, 2)] for kind in kinds}
    bundle.change(lambda config: config.update(hooks=listed))
    bundle.start("sleep", "1000")
    assert bundle("delete", "--force", bundle.identity).returncode == 0
    lines = (bundle.root / "notes").read_text().splitlines()
    assert lines == [f"{kind} {n}" for kind in kinds for n in (1, 2)]


def test_hooks_stdin(bundle: Bundle) -> None:
    script = f"cat > {bundle.root}/state"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}
    bundle.change(lambda config: config.update(hooks={"createRuntime": [hook]}))
    created(bundle, "sleep", "1000")
    state = json.loads((bundle.root / "state").read_text())
    assert (state["id"], state["status"], state["pid"]) == (bundle.identity, "creating", bundle.pid())
    assert (state["ociVersion"], state["bundle"]) == ("1.2.0", str(bundle.folder))


def test_hostname(bundle: Bundle) -> None:
    bundle.change(lambda config: config.update(hostname="hostname-specific"))
    assert bundle.run("hostname").stdout == "hostname-specific\n"
    bundle.change(lambda config: config.pop("hostname"))
    assert bundle.run("hostname").stdout.strip() == os.uname().nodename


def test_kill(bundle: Bundle) -> None:
    """Created or running, not stopped, not without an id."""
    created(bundle, "sleep", "1000")
    assert bundle("kill", bundle.identity, "KILL").returncode == 0
    until(bundle, "stopped")
    assert "not running" in bundle("kill", bundle.identity, "KILL").stderr
    assert bundle("kill").returncode != 0
    assert "does not exist" in bundle("kill", "nobody", "KILL").stderr


def test_kill_no_effect(bundle: Bundle) -> None:
    """A kill that is refused leaves the container stopped, not gone."""
    bundle.start("true")
    until(bundle, "stopped")
    assert bundle("kill", bundle.identity, "KILL").returncode != 0
    assert status(bundle) == "stopped"


@pytest.mark.parametrize("signal", ["TERM", "USR1", "10", "SIGUSR2"])
def test_killsig(bundle: Bundle, signal: str) -> None:
    catch = "trap 'echo caught; exit 0' TERM USR1 USR2; echo ready; while true; do sleep 0.1; done"
    bundle.start("sh", "-c", catch)
    bundle.wait_for("ready")
    assert bundle("kill", bundle.identity, signal).returncode == 0
    bundle.wait_for("caught")


def test_misc_props(bundle: Bundle) -> None:
    """Unknown annotations and properties are ignored, invalid values are not."""

    def more(config: dict[str, Any]) -> None:
        config["annotations"] = {"org.example.unknown": "value"}
        config["unknownProperty"] = {"x": 1}
        config["linux"]["unknownToo"] = [1]

    bundle.change(more)
    assert bundle.run("true").returncode == 0
    bundle.change(lambda config: config.update(annotations={"": "value"}))
    assert "annotations: a key must not be empty" in bundle.run("true").stderr
    bundle.change(lambda config: config.update(annotations={}, ociVersion="invalid"))
    assert "ociVersion" in bundle.run("true").stderr


def test_pidfile(bundle: Bundle, tmp_path: Path) -> None:
    bundle.args("sleep", "1000")
    path = str(bundle.folder)
    with open(bundle.folder / "output", "w") as output:
        done = bundle(
            "create", "--bundle", path, "--pid-file", str(tmp_path / "pid"), bundle.identity,
            capture_output=False, stdout=output, stderr=output,
        )  # fmt: skip
    assert done.returncode == 0
    assert int((tmp_path / "pid").read_text()) == bundle.pid()


def test_prestart(bundle: Bundle) -> None:
    """Before the process, in create."""
    bundle.change(lambda config: config.update(hooks={"prestart": [note(bundle, "hook")]}))
    created(bundle, "sh", "-c", "echo process >> /notes; exec sleep 1000")
    assert (bundle.root / "notes").read_text() == "hook\n"


def failing(bundle: Bundle, kind: str) -> None:
    hook = {"path": "/bin/false"}
    others = {"poststop": [note(bundle, "poststop")]} if kind != "poststop" else {}
    listed = {kind: [hook, note(bundle, "next")], **others}
    bundle.change(lambda config: config.update(hooks=listed))


def test_prestart_fail(bundle: Bundle) -> None:
    """An error, no process, and on to the end of the lifecycle."""
    failing(bundle, "prestart")
    bundle.args("sh", "-c", "echo process >> /notes")
    assert bundle.create().returncode != 0
    assert "does not exist" in bundle("state", bundle.identity).stderr
    assert (bundle.root / "notes").read_text() == "poststop\n"


def test_poststart(bundle: Bundle) -> None:
    """After the process has been executed, before start returns."""
    notes = f"{bundle.root}/notes"
    wait = f"while ! grep -q process {notes}; do sleep 0.05; done; echo hook >> {notes}"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", wait], "env": ["PATH=/usr/bin:/bin"], "timeout": 30}
    bundle.change(lambda config: config.update(hooks={"poststart": [hook]}))
    (bundle.root / "notes").touch()
    bundle.start("sh", "-c", "echo process >> /notes; exec sleep 1000")
    assert (bundle.root / "notes").read_text() == "process\nhook\n"


def test_poststart_fail(bundle: Bundle) -> None:
    """Specification 1.2.1: an error, and the container is stopped. (1.0 had a warning; runc never did.)"""
    failing(bundle, "poststart")
    created(bundle, "sleep", "1000")
    pid = bundle.pid()
    done = bundle("start", bundle.identity)
    assert done.returncode != 0 and "poststart hook /bin/false" in done.stderr
    assert not alive(pid)
    assert (bundle.root / "notes").read_text() == "poststop\n"


def test_poststop(bundle: Bundle) -> None:
    """After the container is gone, before delete returns."""
    bundle.change(lambda config: config.update(hooks={"poststop": [note(bundle, "hook")]}))
    bundle.start("true")
    until(bundle, "stopped")
    assert not (bundle.root / "notes").exists()
    assert bundle("delete", bundle.identity).returncode == 0
    assert (bundle.root / "notes").read_text() == "hook\n"


def test_poststop_fail(bundle: Bundle) -> None:
    """A warning, and the next one runs."""
    failing(bundle, "poststop")
    bundle.start("true")
    until(bundle, "stopped")
    done = bundle("delete", bundle.identity)
    assert done.returncode == 0 and "poststop hook /bin/false" in done.stderr
    assert (bundle.root / "notes").read_text() == "next\n"


def test_start(bundle: Bundle) -> None:
    """Runs the program, once; needs an id of a created container."""
    created(bundle, "sh", "-c", "echo process >> /notes")
    assert not (bundle.root / "notes").exists()
    assert bundle("start", bundle.identity).returncode == 0
    until(bundle, "stopped")
    assert "it is stopped, not created" in bundle("start", bundle.identity).stderr
    assert (bundle.root / "notes").read_text() == "process\n"
    assert bundle("start").returncode != 0
    assert "does not exist" in bundle("start", "nobody").stderr


def test_state(bundle: Bundle) -> None:
    created(bundle, "sleep", "1000")
    state = json.loads(bundle("state", bundle.identity).stdout)
    assert {"ociVersion", "id", "status", "pid", "bundle"} <= set(state)
    assert bundle("state").returncode != 0
    assert "does not exist" in bundle("state", "nobody").stderr
