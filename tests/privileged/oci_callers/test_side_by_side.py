"""The same commands given to ours, to Debian's runc and to Debian's crun, with the same outcome expected.

Exit codes are compared by what callers make of them: 0, the program's own, or a failure; words of error
texts by what the failure was. crun is left out of what it does not have or does otherwise, by name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle

from runtime import cgroups
from runtime.oci_documents import example_config

pytestmark = pytest.mark.privileged

OURS, RUNC, CRUN = "kubelet-py-oci", "runc", "crun"


def covered(folder: Path) -> str:
    """crun on a hybrid host: in a mount namespace without the v2 tree, which it refuses."""
    driver = cgroups.detect()
    if driver.name != "hybrid":
        return CRUN
    tree = getattr(driver, "unified", "")
    path = folder / "crun"
    inside = f'mount -t tmpfs none {tree} && exec crun "$@"'
    path.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{inside}' crun \"$@\"\n")
    path.chmod(0o755)
    return str(path)


class Peer(Bundle):
    """A bundle for one of the three. Its id is its own, for tests that run beside these."""

    def __init__(self, name: str, folder: Path, binary: str, root: Path) -> None:
        self.name = name
        self._ours = name == OURS
        self._command = binary
        super().__init__(folder, binary, root)

    def __call__(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        if args[:1] == ("spec",):
            config = example_config()
            config["ociVersion"] = "1.0.2"
            config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
            (self.folder / "config.json").write_text(json.dumps(config))
            return subprocess.CompletedProcess(args, 0)
        return super().__call__(*args, **options)

    @property
    def identity(self) -> str:
        return f"kubelet-py-side-{os.getpid()}"

    def refused(self, *args: str, **options: Any) -> str:
        """The error of a command that fails and prints nothing else."""
        done = self(*args, **options)
        assert done.returncode not in (0, 127, 126) and done.returncode > 0, (args, done)
        if self._ours:
            assert done.returncode == (255 if "exec" in args[:3] else 1)
            assert done.stderr.count("\n") == 1 and done.stderr.startswith("kubelet-py-oci: "), done.stderr
        assert done.stdout == "" and done.stderr
        return done.stderr.lower()

    def status(self) -> str:
        return str(json.loads(self("state", self.identity).stdout)["status"])

    def wait_for_status(self, wanted: str) -> None:
        deadline = time.monotonic() + 30
        while self.status() != wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.status() == wanted


@pytest.fixture(params=[OURS, RUNC, CRUN])
def peer(
    request: pytest.FixtureRequest, tmp_path: Path, oci_binary: str, busybox_root: Path
) -> Iterator[Peer]:
    if request.param != OURS and not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    binary = {OURS: oci_binary, RUNC: RUNC, CRUN: covered(tmp_path)}[request.param]
    made = Peer(request.param, tmp_path, binary, busybox_root)
    yield made
    made("delete", "--force", made.identity)


def test_a_life(peer: Peer, tmp_path: Path) -> None:
    peer.args("sh", "-c", "echo up; exec sleep 1000")
    pid_file = tmp_path / "pid"
    with open(peer.folder / "output", "w") as output:
        done = peer(
            "create", "--bundle", str(peer.folder), "--pid-file", str(pid_file), peer.identity,
            capture_output=False, stdout=output, stderr=output,
        )  # fmt: skip
    assert done.returncode == 0, peer.output()
    state = json.loads(peer("state", peer.identity).stdout)
    assert (state["status"], state["id"]) == ("created", peer.identity)
    assert state["pid"] == int(pid_file.read_text()) and state["bundle"] == str(peer.folder)
    assert peer.output() == ""
    assert peer("start", peer.identity).returncode == 0
    peer.wait_for("up")
    assert peer.status() == "running"
    assert peer("list", "-q").stdout.split() == [peer.identity]
    (listed,) = json.loads(peer("list", "--format", "json").stdout)
    assert {"id", "pid", "status", "bundle", "created", "owner"} <= set(listed)
    assert peer("ps", "--format", "json", peer.identity).stdout.strip() == f"[{state['pid']}]" or (
        json.loads(peer("ps", "--format", "json", peer.identity).stdout) == [state["pid"]]
    )
    assert peer("pause", peer.identity).returncode == 0
    assert peer.status() == "paused"
    assert peer("resume", peer.identity).returncode == 0
    assert peer.status() == "running"
    assert peer("kill", "--all", peer.identity, "KILL").returncode == 0
    peer.wait_for_status("stopped")
    assert peer("delete", peer.identity).returncode == 0
    assert peer("list", "-q").stdout.split() == []


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("true", 0)])
def test_a_run_ends_as_its_program_and_is_gone(peer: Peer, script: str, code: int) -> None:
    # A shell as the first process could not kill itself: signals to a namespace's init are dropped.
    done = peer.run(f"sh -c '{script}'; exit $?")
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert peer("list", "-q").stdout == ""


def test_unknown_containers(peer: Peer) -> None:
    for verb in ("state", "start", "kill", "delete", "pause", "resume", "ps", "update", "exec"):
        more = {"exec": ["true"], "update": ["--memory", "64000000"]}.get(verb, [])
        flags, words = (more, []) if verb == "update" else ([], more)
        text = peer.refused(verb, *flags, "nobody", *words)
        assert "exist" in text or "no such file" in text, (verb, text)
    assert peer("delete", "--force", "nobody").returncode == 0


def test_what_a_running_container_refuses(peer: Peer) -> None:
    peer.start("sleep", "1000")
    text = peer.refused("create", "--bundle", str(peer.folder), peer.identity)
    assert "exist" in text
    text = peer.refused("delete", peer.identity)
    assert "running" in text or "not in `created` or `stopped`" in text
    assert peer.refused("start", peer.identity)
    if peer.name != CRUN:  # which lets both pass
        assert "signal" in peer.refused("kill", peer.identity, "FOO")
        assert peer.refused("resume", peer.identity)
    assert peer.status() == "running"


def test_what_a_stopped_container_refuses(peer: Peer) -> None:
    peer.start("true")
    peer.wait_for_status("stopped")
    for verb, *words in (["kill", "TERM"], ["pause"], ["resume"], ["exec", "true"], ["start"]):
        assert peer.refused(verb, peer.identity, *words)
    assert peer("delete", peer.identity).returncode == 0


def test_exec(peer: Peer, tmp_path: Path) -> None:
    peer.start("sleep", "1000")
    script = "echo $A; pwd; id -u; exit 5"
    done = peer(
        "exec",
        "--env",
        "A=b",
        "--env",
        "PATH=/bin",
        "--cwd",
        "/bin",
        "--user",
        "7",
        peer.identity,
        "sh",
        "-c",
        script,
    )
    assert (done.stdout.split(), done.returncode) == (["b", "/bin", "7"], 5), done.stderr
    process = {"args": ["sh", "-c", "echo $X"], "cwd": "/", "env": ["PATH=/bin", "X=y"], "user": {"uid": 0}}
    (tmp_path / "process").write_text(json.dumps(process))
    assert peer("exec", "--process", str(tmp_path / "process"), peer.identity).stdout == "y\n"
    pid_file = tmp_path / "pid"
    done = peer("exec", "--detach", "--pid-file", str(pid_file), peer.identity, "sleep", "999",
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, capture_output=False)  # fmt: skip
    assert done.returncode == 0
    assert b"999" in Path(f"/proc/{int(pid_file.read_text())}/cmdline").read_bytes()
    assert int(pid_file.read_text()) in json.loads(peer("ps", "--format", "json", peer.identity).stdout)


def test_execs_that_cannot_start(peer: Peer) -> None:
    peer.start("sleep", "1000")
    missing = peer.refused("exec", peer.identity, "nosuch")
    assert "not found" in missing or "no such file" in missing
    assert peer.refused("exec", "--process", "/nonexistent", peer.identity)
    assert peer.refused("exec", "--cwd", "/nonexistent", peer.identity, "true")
    assert not (peer.root / "nonexistent").exists()
    assert peer("pause", peer.identity).returncode == 0
    if peer.name != CRUN:  # 1.8 waits until somebody resumes it
        assert "paused" in peer.refused("exec", peer.identity, "true")
    assert "paused" in peer.refused("delete", peer.identity) or peer.name == CRUN
    assert peer("resume", peer.identity).returncode == 0


def test_a_program_that_is_missing_leaves_no_container(peer: Peer) -> None:
    peer.args("nosuch")
    with open(peer.folder / "output", "w") as output:
        done = peer("run", "--bundle", str(peer.folder), peer.identity,
                    capture_output=False, stdout=output, stderr=output)  # fmt: skip
    assert done.returncode not in (0, 127)
    assert "not found" in peer.output() or "No such file" in peer.output()
    assert peer("list", "-q").stdout == ""


@pytest.mark.parametrize("name", ["/etc/passwd", "/full"])
def test_a_path_that_is_no_program_leaves_no_container(peer: Peer, name: str) -> None:
    """create says so: at start nobody would be told."""
    peer.args(name)
    text = peer.refused("create", "--bundle", str(peer.folder), peer.identity)
    assert "permission denied" in text or "operation not permitted" in text
    assert peer("list", "-q").stdout == ""
    peer.args("sleep", "1000")
    peer.start("sleep", "1000")
    assert "permission denied" in peer.refused("exec", peer.identity, name) or peer.name == CRUN


def test_a_new_network_namespace_has_its_loopback_up(peer: Peer) -> None:
    done = peer.run("ip -o link show lo; ip -o addr show lo")
    assert "LOOPBACK,UP" in done.stdout and "127.0.0.1/8" in done.stdout, done.stderr


@pytest.mark.parametrize(("source", "destination"), [("file", "/full"), ("folder", "/etc/passwd")])
def test_a_file_goes_on_no_folder_and_a_folder_on_no_file(
    peer: Peer, tmp_path: Path, source: str, destination: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    peer.mount(destination=destination, type="bind", source=str(tmp_path / source), options=["rbind"])
    text = peer.refused("create", "--bundle", str(peer.folder), peer.identity)
    assert "not a directory" in text or peer.name != OURS
    assert peer("list", "-q").stdout == ""


def test_limits(peer: Peer) -> None:
    peer.start("sleep", "1000")
    done = peer("update", "--memory", "67108864", "--pids-limit", "50", peer.identity)
    assert done.returncode == 0, done.stderr
    text = json.dumps({"memory": {"limit": 33554432}})
    assert peer("update", "--resources", "-", peer.identity, input=text).returncode == 0
    if peer.name == CRUN:  # it has no events
        return

    def stats() -> Any:
        return json.loads(peer("events", "--stats", peer.identity).stdout)["data"]

    data, deadline = stats(), time.monotonic() + 30
    while data["memory"]["raw"]["pgfault"] == 0:  # the kernel adds these counters up every two seconds
        assert time.monotonic() < deadline
        time.sleep(0.1)
        data = stats()
    assert data["memory"]["usage"]["limit"] == 33554432
    assert data["pids"] == {"current": 1, "limit": 50}
    assert data["cpu"]["usage"]["total"] > 0 and {"kernel", "user"} <= set(data["cpu"]["usage"])
    assert "usage" in data["memory"]["usage"]


def test_descriptors_are_kept_when_asked_for(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("through\n")
    peer.args("sh", "-c", "cat <&3")
    words = ["--root", str(peer.state), "run", "--bundle", str(peer.folder), "--preserve-fds", "1"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" 3<{tmp_path}/given', peer._command, *words, peer.identity],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "through\n", done.stderr


@pytest.mark.parametrize("form", ["json", "text"])
def test_errors_go_to_the_log(peer: Peer, tmp_path: Path, form: str) -> None:
    log = tmp_path / "log"
    assert peer("--log", str(log), "--log-format", form, "state", "nobody").returncode == 1
    last = log.read_text().splitlines()[-1]
    if form == "json":
        entry = json.loads(last)
        assert entry["level"] == "error" and entry["msg"] and entry["time"]
    else:
        assert "nobody" in last or "exist" in last


def test_wrong_command_lines(peer: Peer) -> None:
    for words in (["run", "--bogus", "x"], ["bogus"], ["run", "--bundle"], ["run", "a", "b"], ["state"]):
        done = peer(*words)
        assert done.returncode != 0, words
    for words in (["--log-format", "xml", "list"], ["list", "--format", "yaml"]):
        assert words[-1] if peer.refused(*words) else None


def test_home_comes_from_the_roots_passwd(peer: Peer) -> None:
    """Engines leave it to the runtime (containerd does)."""
    (peer.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n")
    peer.change(lambda config: config["process"].update(env=["PATH=/bin"]))
    assert peer.run("echo $HOME").stdout == "/root\n"
    peer.start("sleep", "1000")
    for user, home in (("0", "/root"), ("1000", "/home/u")):
        done = peer("exec", "--user", user, peer.identity, "/bin/sh", "-c", "echo $HOME")
        assert done.stdout == f"{home}\n", done.stderr
    done = peer("exec", "--env", "HOME=/given", peer.identity, "/bin/sh", "-c", "echo $HOME")
    assert done.stdout == "/given\n", done.stderr


def test_a_relative_source_is_in_the_bundle(peer: Peer) -> None:
    (peer.folder / "beside").write_text("of the bundle\n")
    for kind, options in (("bind", ["rbind", "ro"]), ("none", ["bind"])):
        peer.mount(destination=f"/{kind}", type=kind, source="beside", options=options)
    done = peer.run("cat /bind /none")
    assert done.stdout == "of the bundle\n" * 2, done.stderr


def test_signal_0_asks_only_whether_it_is_there(peer: Peer) -> None:
    peer.start("sleep", "1000")
    assert peer("kill", peer.identity, "0").returncode == 0
    assert peer.status() == "running"
    assert peer("exec", "--", peer.identity, "/bin/true").returncode == 0


def test_files_that_cannot_be_written_are_errors(peer: Peer, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "absent/file")
    assert nowhere in peer.refused("--log", nowhere, "list") or peer.name == CRUN
    assert peer.refused("run", "--bundle", str(peer.folder), "--pid-file", nowhere, peer.identity)
    assert peer("list", "-q").stdout == ""
    if peer.name == CRUN:  # 1.8 leaves the process that it could not tell of, and waits for it
        return
    peer.start("sleep", "1000")
    assert peer.refused("exec", "--pid-file", nowhere, peer.identity, "sleep", "999")
    found = json.loads(peer("ps", "--format", "json", peer.identity).stdout)
    assert found == [json.loads(peer("state", peer.identity).stdout)["pid"]]
    assert "greater than 0" in peer.refused("events", "--interval", "0s", peer.identity)


@pytest.mark.parametrize("text", ["{", "[]", "", "nonsense", '{"ociVersion": "1.0.2", "process": []}'])
def test_a_configuration_that_is_none(peer: Peer, text: str) -> None:
    (peer.folder / "config.json").write_text(text)
    assert peer.refused("create", "--bundle", str(peer.folder), peer.identity)
    assert peer("list", "-q").stdout == ""


def test_a_variable_without_a_value_is_refused(peer: Peer) -> None:
    if peer.name == CRUN:
        pytest.skip("crun hands it on")
    peer.change(lambda config: config["process"]["env"].append("BROKEN"))
    assert "broken" in peer.refused("run", "--bundle", str(peer.folder), peer.identity)


def test_a_cpu_limit_that_the_kernel_refuses_makes_no_container(peer: Peer) -> None:
    if peer.name == CRUN:
        pytest.skip("crun 1.8 leaves its cgroups behind")
    peer.change(lambda config: config["linux"].update(resources={"cpu": {"quota": 10, "period": 100000}}))
    assert "quota" in peer.refused("run", "--bundle", str(peer.folder), peer.identity)
    assert peer("list", "-q").stdout == ""


def test_ambient_capabilities_that_cannot_be_are_left_out(peer: Peer) -> None:
    """Runtimes should not fail for capabilities that cannot be granted, and must warn (config.md)."""
    sets = {"bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"]}
    sets |= {"inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN", "CAP_KILL"]}
    peer.change(lambda config: config["process"].update(capabilities=sets))
    done = peer.run("grep CapAmb /proc/self/status")
    assert done.stdout == "CapAmb:\t0000000000000001\n" or peer.name != OURS, done
    assert done.returncode == 0, done.stderr
    assert "CAP_KILL" in done.stderr or peer.name != OURS


def test_the_root_itself_is_no_place_for_a_mount(peer: Peer) -> None:
    peer.mount(destination="/", type="tmpfs", source="tmpfs")
    assert peer.refused("run", "--bundle", str(peer.folder), peer.identity)


def test_a_kept_run_stays(peer: Peer) -> None:
    if peer.name == CRUN:
        pytest.skip("crun 1.8 has no --keep")
    assert peer.run("exit 3", "--keep").returncode == 3
    assert peer.status() == "stopped"
    assert peer("delete", peer.identity).returncode == 0


@pytest.mark.parametrize("option", ["ro", "rro"])
def test_a_read_only_dev_is_filled_first(peer: Peer, option: str) -> None:
    if peer.name != OURS and option == "rro":
        pytest.skip("crun 1.8 fails, runc 1.1 ignores it")

    def change(config: dict[str, Any]) -> None:
        (dev,) = (mount for mount in config["mounts"] if mount["destination"] == "/dev")
        dev["options"] = ["nosuid", option, "mode=755"]

    peer.change(change)
    done = peer.run("touch /dev/x; echo y > /dev/null && ls /dev/pts/ptmx && ls -d /dev/full")
    assert done.stdout.splitlines() == ["/dev/pts/ptmx", "/dev/full"], done
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize("option", ["ro", "rro"])
def test_a_read_only_tmpfs_holds_the_mounts_below_it(peer: Peer, option: str) -> None:
    """Also one with rro: it has nothing below it when it is mounted."""
    if peer.name != OURS and option == "rro":
        pytest.skip("crun 1.8 fails, runc 1.1 ignores it")
    (peer.folder / "data").mkdir()
    peer.mount(destination="/place", type="tmpfs", source="tmpfs", options=[option, "nosuid"])
    peer.mount(destination="/place/data", type="bind", source=str(peer.folder / "data"), options=["bind"])
    done = peer.run("touch /place/x; touch /place/data/y; ls /place")
    assert (done.stdout, "Read-only" in done.stderr) == ("data\n", True), done
    assert os.listdir(peer.folder / "data") == ["y"]


@pytest.mark.parametrize("propagation", ["private", "slave", "rprivate", "rslave"])
def test_a_root_in_a_shared_mount(peer: Peer, propagation: str) -> None:
    """systemd shares all mounts, and pivot_root(2) wants no shared mount around the root."""
    root = str(peer.root)
    subprocess.run(["mount", "--bind", root, root], check=True)
    try:
        subprocess.run(["mount", "--make-shared", root], check=True)
        peer.change(lambda config: config["linux"].update(rootfsPropagation=propagation))
        done = peer.run("echo up")
        assert (done.stdout, done.returncode) == ("up\n", 0), done.stderr
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def test_the_root_may_be_named_among_the_read_only_paths(peer: Peer) -> None:
    if peer.name == CRUN:
        pytest.skip("crun 1.8 leaves the root writable")
    peer.change(lambda config: config["linux"].update(readonlyPaths=["/"]))
    assert "Read-only file system" in peer.run("touch /x").stderr


def test_of_two_values_of_a_variable_the_last_is_handed_over(peer: Peer) -> None:
    peer.change(lambda config: config["process"].update(env=["PATH=/bin", "A=1", "A=2"]))
    peer.args("env")
    (peer.root / "bin/env").symlink_to("busybox")
    done = peer("run", "--bundle", str(peer.folder), peer.identity)
    assert [line for line in done.stdout.splitlines() if line.startswith("A=")] == ["A=2"], done


def test_an_exec_in_a_created_container(peer: Peer) -> None:
    peer.args("sleep", "1000")
    assert peer.create().returncode == 0, peer.output()
    done = peer("exec", peer.identity, "sh", "-c", "echo up; exit 4")
    assert (done.stdout, done.returncode) == ("up\n", 4), done.stderr
    assert peer.status() == "created"
    assert peer("start", peer.identity).returncode == 0


def test_a_paused_created_container_is_not_started(peer: Peer) -> None:
    if peer.name == CRUN:
        pytest.skip("crun 1.8 starts it when it is resumed")
    peer.args("sleep", "1000")
    assert peer.create().returncode == 0, peer.output()
    assert peer("pause", peer.identity).returncode == 0
    assert "paused" in peer.refused("start", peer.identity)
    assert peer("resume", peer.identity).returncode == 0
    assert peer("start", peer.identity).returncode == 0


def test_an_exec_in_the_containers_own_cgroup_by_name(peer: Peer) -> None:
    peer.start("sleep", "1000")
    done = peer("exec", "--cgroup", "/", peer.identity, "/bin/true")
    assert done.returncode == 0, done.stderr


def test_a_console_socket_without_a_terminal_is_refused(peer: Peer) -> None:
    if peer.name == CRUN:
        pytest.skip("crun 1.8 takes it")
    peer.start("sleep", "1000")
    assert "console socket" in peer.refused("exec", "--console-socket", "/nowhere", peer.identity, "true")


@pytest.mark.parametrize("identity", ["_x", "+x", "-x"])
def test_an_id_may_begin_with_a_sign(peer: Peer, identity: str) -> None:
    peer.args("true")
    done = peer("run", "--bundle", str(peer.folder), "--", identity)
    assert done.returncode == 0, done.stderr


def test_systemd_is_asked_for_by_who_makes_cgroups_alone(peer: Peer) -> None:
    """Callers give the flag to all commands, on machines without systemd, too."""
    assert peer("--systemd-cgroup", "list", "-q").returncode == 0
    assert "exist" in peer.refused("--systemd-cgroup", "state", "nobody") or peer.name == CRUN


def test_files_that_are_not_there_are_named(peer: Peer, tmp_path: Path) -> None:
    peer.start("sleep", "1000")
    nowhere = str(tmp_path / "absent")
    for words in (["update", "--resources", nowhere, peer.identity],):
        text = peer.refused(*words)
        assert nowhere.lower() in text and "errno" not in text, text


def test_debug_without_a_log_goes_to_standard_error(peer: Peer) -> None:
    if peer.name == CRUN:
        pytest.skip("crun 1.8 has nothing to say")
    done = peer("--debug", "state", "nobody")
    assert len(done.stderr.splitlines()) > 1 or peer.name == RUNC, done.stderr


def test_a_seccomp_profile_for_other_machines_filters_this_one_too(peer: Peer) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    other = "SCMP_ARCH_AARCH64"
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": [other], "syscalls": [rule]}
    peer.change(lambda config: config["linux"].update(seccomp=profile))
    done = peer.run("mkdir /x; echo up")
    assert (done.stdout, "not permitted" in done.stderr) == ("up\n", True), done


def test_a_memory_limit_that_is_too_low_is_said(peer: Peer) -> None:
    peer.change(lambda config: config["linux"].update(resources={"memory": {"limit": 4096}}))
    with open(peer.folder / "output", "w") as output:
        done = peer("create", "--bundle", str(peer.folder), peer.identity,
                    capture_output=False, stdout=output, stderr=output)  # fmt: skip
    assert done.returncode != 0
    assert "too low" in peer.output() or "unable to set memory limit" in peer.output()
    assert peer("list", "-q").stdout == "" or peer.name == CRUN


def test_sockets_of_systemd_are_handed_on(peer: Peer, tmp_path: Path) -> None:
    """sd_listen_fds(3): a unit's sockets reach the container's first process, which is told of them."""
    (tmp_path / "given").write_text("through\n")
    peer.args("sh", "-c", "echo $LISTEN_FDS $LISTEN_PID; cat <&3")
    words = ["--root", str(peer.state), "run", "--bundle", str(peer.folder), peer.identity]
    script = 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@" 3<' + str(tmp_path / "given")
    command = ["sh", "-c", script, peer._command, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told, sent = done.stdout.splitlines()
    assert sent == "through", done
    assert told == "1 1" or peer.name == CRUN  # 1.8 in its wrapper, whose process is another
