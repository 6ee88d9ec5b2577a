"""update, events, ps, exec's flags, --preserve-fds and hooks inside the container."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from bundle import Bundle

from runtime import cgroups

pytestmark = pytest.mark.privileged


def limit(bundle: Bundle) -> int | None:
    return cgroups.detect().open(f"kubelet-py-oci-{bundle.identity}").stats().memory_limit


def test_limits_are_changed_by_flags_file_and_standard_input(bundle: Bundle, tmp_path: Path) -> None:
    bundle.start("sleep", "1000")
    assert bundle("update", "--memory", "64M", "--pids-limit", "20", bundle.identity).returncode == 0
    assert limit(bundle) == 64 << 20
    text = json.dumps({"memory": {"limit": 32 << 20}, "devices": [{"allow": False, "access": "rwm"}]})
    (tmp_path / "resources").write_text(text)
    done = bundle("update", "--resources", str(tmp_path / "resources"), bundle.identity)
    assert done.returncode == 0, done.stderr
    assert limit(bundle) == 32 << 20
    text = json.dumps({"memory": {"limit": 48 << 20}})
    assert bundle("update", "-r", "-", bundle.identity, input=text).returncode == 0
    assert limit(bundle) == 48 << 20
    assert bundle("exec", bundle.identity, "sh", "-c", "echo x > /dev/null").returncode == 0


def test_an_update_without_a_limit_or_a_container_is_an_error(bundle: Bundle) -> None:
    bundle.start("sleep", "1000")
    assert "no limit was given" in bundle("update", bundle.identity).stderr
    assert "does not exist" in bundle("update", "--memory", "1M", "nobody").stderr
    refused = bundle("update", "--kernel-memory", "1M", bundle.identity)
    assert refused.returncode == 1 and "--kernel-memory" in refused.stderr


def test_events_tell_usage(bundle: Bundle) -> None:
    bundle.start("sleep", "1000")
    event = json.loads(bundle("events", "--stats", bundle.identity).stdout)
    assert (event["type"], event["id"]) == ("stats", bundle.identity)
    assert event["data"]["pids"]["current"] == 1
    assert event["data"]["memory"]["usage"]["usage"] > 0
    assert event["data"]["cpu"]["usage"]["total"] > 0
    pressed = {name for name, part in event["data"].items() if "psi" in part}
    counted = cgroups.detect().name == "v2" and Path("/proc/pressure").exists()
    assert pressed == ({"cpu", "memory", "blkio"} if counted else set())


def test_ps_lists_the_containers_processes_as_ps_does(bundle: Bundle) -> None:
    bundle.start("sleep", "1000")
    lines = bundle("ps", bundle.identity).stdout.splitlines()
    assert "PID" in lines[0] and len(lines) == 2
    assert str(bundle.pid()) in lines[1] and "sleep 1000" in lines[1]
    assert json.loads(bundle("ps", "--format", "json", bundle.identity).stdout) == [bundle.pid()]


def test_exec_flags_change_the_process(bundle: Bundle) -> None:
    bundle.change(lambda config: config["process"].update(noNewPrivileges=False))
    bundle.start("sleep", "1000")
    done = bundle(
        "exec", "--cwd", "/bin", "--env", "A=b", "--user", "5:6", "-g", "7", "-g", "8",
        "--cap", "CAP_SYS_PTRACE", "--no-new-privs", bundle.identity, "sh", "-c",
        "pwd; echo $A; id -u; id -g; id -G; grep -E 'CapBnd|NoNewPrivs' /proc/self/status",
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[:5] == ["/bin", "b", "5", "6", "6 7 8"], done.stderr
    assert int(lines[5].split()[1], 16) >> 19 & 1 == 1
    assert lines[6].split()[1] == "1"


def test_descriptors_are_kept_only_when_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("through\n")
    fd = os.open(tmp_path / "given", os.O_RDONLY)
    try:
        assert fd == 3 or os.dup2(fd, 3)
        kept = bundle.run("cat <&3; ls /proc/self/fd", "--preserve-fds", "1", pass_fds=[3])
        assert kept.stdout.splitlines()[0] == "through", kept.stderr
        assert not bundle.run("cat <&3", pass_fds=[3]).stdout
        assert "not open" in bundle.run("true", "--preserve-fds", "5").stderr
    finally:
        os.close(fd)


def hook(script: str) -> dict[str, object]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin", "A=b"]}


def test_a_start_container_hook_runs_in_the_container(bundle: Bundle) -> None:
    script = "cat > /state; echo $A $$ >> /state; test -e /full/file"
    bundle.change(lambda config: config.update(hooks={"startContainer": [hook(script)]}))
    bundle.args("sh", "-c", "cat /state; exec sleep 1000")
    assert bundle.create().returncode == 0
    assert not (bundle.root / "state").exists()
    assert bundle("start", bundle.identity).returncode == 0
    bundle.wait_for("\n")
    first, second = (bundle.root / "state").read_text().split("}")[-2:]
    state = json.loads((bundle.root / "state").read_text().rpartition("}")[0] + "}")
    assert (state["id"], state["status"], state["pid"]) == (bundle.identity, "created", 1), first
    assert second.split()[0] == "b"


def test_features_name_what_is_there(bundle: Bundle) -> None:
    features = json.loads(bundle("features").stdout)
    assert {"user", "time", "cgroup"} <= set(features["linux"]["namespaces"])
    assert features["linux"]["mountExtensions"]["idmap"]["enabled"]
    assert {"tmpcopyup", "idmap", "rro"} <= set(features["mountOptions"])
    kinds = {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}
    assert set(features["hooks"]) == kinds
    assert {"SCMP_ACT_NOTIFY", "SCMP_ACT_KILL_PROCESS"} <= set(features["linux"]["seccomp"]["actions"])
    supported = set(features["linux"]["seccomp"]["supportedFlags"])
    assert "SECCOMP_FILTER_FLAG_LOG" in supported <= set(features["linux"]["seccomp"]["knownFlags"])
    assert not features["linux"]["intelRdt"]["enabled"] and features["linux"]["selinux"]["enabled"]
    assert features["linux"]["cgroup"]["systemd"] is (cgroups.native() == cgroups.SYSTEMD)
    # The prefix of the annotations that reach systemd: whoever passes strangers' on has to know.
    assert features["potentiallyUnsafeConfigAnnotations"] == ["org.systemd.property."]


def test_an_exec_joins_a_cgroup_below_the_containers(bundle: Bundle, tmp_path: Path) -> None:
    bundle.start("sleep", "1000")
    driver, path = cgroups.detect(), f"kubelet-py-oci-{bundle.identity}"
    assert "ENOENT" in bundle("exec", "--cgroup", "/sub", bundle.identity, "true").stderr
    driver.create(f"{path}/sub", {"devices": [{"allow": False, "access": "rwm"}]})  # where the container is
    try:
        words = ("--detach", "--pid-file", str(tmp_path / "pid"), bundle.identity, "sleep", "1000")
        null = subprocess.DEVNULL
        done = bundle("exec", "--cgroup", "/sub", *words, capture_output=False, stdout=null, stderr=null)
        assert done.returncode == 0
        pid = int((tmp_path / "pid").read_text())
        assert driver.open(f"{path}/sub").pids() == [pid]
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        limited = [line for line in lines if {"memory", "pids", ""} & set(line.split(":")[1].split(","))]
        assert limited and all(line.endswith(f"/{path}/sub") for line in limited)
        assert "../up" in bundle("exec", "--cgroup", "../up", bundle.identity, "true").stderr
    finally:
        assert bundle("delete", "--force", bundle.identity).returncode == 0
