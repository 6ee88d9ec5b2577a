"""User and time namespaces, new and joined, through the OCI command line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle

pytestmark = pytest.mark.privileged

MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def mapped(bundle: Bundle) -> None:
    """Gives the bundle a user namespace and the root to its mapped root."""
    bundle.namespace("user", uidMappings=MAPPING, gidMappings=MAPPING)
    subprocess.run(["chown", "-hR", "100000:100000", str(bundle.root)], check=True)


def test_a_new_user_namespace_has_a_root_of_its_own(bundle: Bundle) -> None:
    mapped(bundle)
    bundle.change(lambda config: config["process"]["capabilities"].update(
        {key: ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"] for key in ("bounding", "effective", "permitted")}
    ))  # fmt: skip
    done = bundle.run(
        "id -u; cat /proc/self/uid_map; touch /made; echo x > /dev/null; grep CapEff /proc/self/status;"
        "mount -t tmpfs none /full && echo mounted; grep -c ' /proc ' /proc/self/mountinfo"
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "0", done.stderr
    assert lines[1].split() == ["0", "100000", "65536"]
    assert lines[2] == "CapEff:\t0000000000201000"
    assert lines[3] == "1", "the host's /proc must not be left below the container's"
    assert (bundle.root / "made").stat().st_uid == 100000


def test_no_file_of_the_hosts_root_can_be_changed_from_inside(bundle: Bundle, tmp_path: Path) -> None:
    mapped(bundle)
    (tmp_path / "host").mkdir()
    (tmp_path / "host/secret").write_text("kept")
    (tmp_path / "host/secret").chmod(0o600)
    bundle.mount(destination="/mnt", type="bind", source=str(tmp_path / "host"), options=["bind", "rw"])
    done = bundle.run("cat /mnt/secret; echo changed > /mnt/secret; touch /mnt/new; ls /mnt")
    assert done.stdout == "secret\n"
    assert done.stderr.count("Permission denied") == 3
    assert os.listdir(tmp_path / "host") == ["secret"]


def test_exec_where_the_cgroup_namespace_is_the_hosts(bundle: Bundle) -> None:
    """It belongs to the host's user namespace, and nobody inside another may join it."""
    mapped(bundle)
    bundle.change(
        lambda config: config["linux"].update(
            namespaces=[n for n in config["linux"]["namespaces"] if n["type"] != "cgroup"]
        )
    )
    bundle.start("sleep", "1000")
    done = bundle("exec", bundle.identity, "stat", "-c", "%N", "/proc/self/ns/cgroup")
    assert os.readlink("/proc/self/ns/cgroup") in done.stdout, done.stderr


def test_exec_enters_the_user_namespace(bundle: Bundle) -> None:
    mapped(bundle)
    bundle.start("sleep", "1000")
    assert Path(f"/proc/{bundle.pid()}/uid_map").read_text().split() == ["0", "100000", "65536"]
    done = bundle("exec", bundle.identity, "sh", "-c", "id -u; cat /proc/self/uid_map; exit 3")
    assert (done.stdout.split(), done.returncode) == (["0", "0", "100000", "65536"], 3), done.stderr
    other = bundle("exec", "--user", "5:6", bundle.identity, "sh", "-c", "id -u; id -g")
    assert other.stdout.split() == ["5", "6"], other.stderr


def test_hooks_where_the_cgroup_namespace_is_the_hosts(bundle: Bundle) -> None:
    mapped(bundle)

    def shared(config: dict[str, Any]) -> None:
        listed = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [one for one in listed if one["type"] != "cgroup"]
        config["hooks"] = {"createContainer": [{"path": "/bin/true"}]}

    bundle.change(shared)
    done = bundle.run("echo ran")
    assert done.stdout == "ran\n", done.stderr


def test_a_user_namespace_can_be_joined(bundle: Bundle, tmp_path: Path, oci_binary: str) -> None:
    mapped(bundle)
    bundle.start("sleep", "1000")
    (tmp_path / "second").mkdir()
    second = Bundle(tmp_path / "second", oci_binary, bundle.root)
    pid = bundle.pid()
    second.namespace("user", f"/proc/{pid}/ns/user")
    second.namespace("network", f"/proc/{pid}/ns/net")
    second.args("sh", "-c", "stat -Lc %i /proc/self/ns/user /proc/self/ns/net; id -u")
    done = second("run", "--bundle", str(second.folder), "kubelet-py-second")
    expected = [str(os.stat(f"/proc/{pid}/ns/{kind}").st_ino) for kind in ("user", "net")]
    assert done.stdout.split() == [*expected, "0"], done.stderr


def test_a_cgroup_with_processes_is_not_taken_over(bundle: Bundle, tmp_path: Path, oci_binary: str) -> None:
    bundle.start("sleep", "1000")
    (tmp_path / "second").mkdir()
    second = Bundle(tmp_path / "second", oci_binary, bundle.root)
    done = second.run("true")
    assert done.returncode == 1 and "has processes" in done.stderr
    assert bundle.pid() > 0


def test_a_mapping_without_root_is_refused(bundle: Bundle) -> None:
    mapping = [{"containerID": 1, "hostID": 100000, "size": 10}]
    bundle.namespace("user", uidMappings=mapping, gidMappings=mapping)
    done = bundle.run("true")
    assert done.returncode == 1 and "uidMappings" in done.stderr


def test_a_new_time_namespace_has_its_own_clocks(bundle: Bundle) -> None:
    bundle.namespace("time", timeOffsets={"boottime": {"secs": 864000}, "monotonic": {"secs": 864000}})
    bundle.start("sh", "-c", "cat /proc/uptime; exec sleep 1000")
    bundle.wait_for("\n")
    ours = float(Path("/proc/uptime").read_text().split()[0])
    assert 863000 < float(bundle.output().split()[0]) - ours < 865000
    done = bundle("exec", bundle.identity, "cat", "/proc/uptime")
    assert 863000 < float(done.stdout.split()[0]) - ours < 865000, done.stderr


def test_clocks_of_a_user_namespaces_time_namespace(bundle: Bundle) -> None:
    mapped(bundle)
    bundle.namespace("time", timeOffsets={"boottime": {"secs": 864000}})
    done = bundle.run("cat /proc/uptime")
    ours = float(Path("/proc/uptime").read_text().split()[0])
    assert 863000 < float(done.stdout.split()[0]) - ours < 865000, done.stderr


def test_a_time_namespace_can_be_joined(bundle: Bundle, tmp_path: Path, oci_binary: str) -> None:
    bundle.namespace("time", timeOffsets={"boottime": {"secs": 864000}})
    bundle.start("sleep", "1000")
    (tmp_path / "second").mkdir()
    second = Bundle(tmp_path / "second", oci_binary, bundle.root)
    second.namespace("time", f"/proc/{bundle.pid()}/ns/time")
    second.args("stat", "-Lc", "%i", "/proc/self/ns/time")
    done = second("run", "--bundle", str(second.folder), "kubelet-py-second")
    assert int(done.stdout) == os.stat(f"/proc/{bundle.pid()}/ns/time").st_ino, done.stderr
