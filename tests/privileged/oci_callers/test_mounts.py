"""Mount options that outside callers use: tmpcopyup, idmap, recursive read-only, propagation, --no-pivot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle

from runtime import cgroups

pytestmark = pytest.mark.privileged

FIRST_CGROUP_NAMESPACE = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO of the kernel's proc_ns.h
MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A mount of the host that propagates, with one mount below it."""
    folder = tmp_path / "shared"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shared", str(folder)], check=True)
    subprocess.run(["mount", "--make-shared", str(folder)], check=True)
    (folder / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "below", str(folder / "below")], check=True)
    yield folder
    subprocess.run(["umount", "-R", str(folder)], check=True)


def test_tmpcopyup_fills_the_tmpfs_with_what_it_covers(bundle: Bundle) -> None:
    folder = bundle.root / "full"
    folder.chmod(0o1770)
    (folder / "deep").mkdir(mode=0o750)
    (folder / "deep/program").write_text("x")
    os.chown(folder / "deep/program", 7, 8)
    (folder / "deep/program").chmod(0o4755)
    (folder / "link").symlink_to("/etc/passwd")
    bundle.mount(destination="/full", type="tmpfs", source="tmpfs", options=["nosuid", "tmpcopyup"])
    done = bundle.run(
        "cat /full/file; cd /full; stat -c '%a %u %g' . deep deep/program; readlink link; touch new",
    )
    assert done.stdout.splitlines() == [
        "from the image", "1770 0 0", "750 0 0", "4755 7 8", "/etc/passwd"
    ]  # fmt: skip
    assert sorted(os.listdir(folder)) == ["deep", "file", "link"]


def test_tmpcopyup_that_does_not_fit_is_an_error(bundle: Bundle) -> None:
    (bundle.root / "full/big").write_bytes(b"x" * 100_000)
    bundle.mount(destination="/full", type="tmpfs", source="tmpfs", options=["tmpcopyup", "size=16k"])
    assert "ENOSPC" in bundle.run("true").stderr


def test_an_idmapped_mount_shows_other_owners(bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    (source / "file").write_text("x")
    os.chown(source / "file", 5, 6)
    bundle.mount(destination="/mnt", type="bind", source=str(source), options=["bind", "idmap"],
                 uidMappings=MAPPING, gidMappings=MAPPING)  # fmt: skip
    done = bundle.run("stat -c '%u %g' /mnt/file")
    if "EINVAL" in done.stderr:
        pytest.skip("idmapped mounts of this file system are missing")
    assert done.stdout == "100005 100006\n", done.stderr
    assert (source / "file").stat().st_uid == 5


def test_an_idmapped_mount_is_the_containers_own_in_a_user_namespace(bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    (source / "file").write_text("x")
    bundle.namespace("user", uidMappings=MAPPING, gidMappings=MAPPING)
    subprocess.run(["chown", "-hR", "100000:100000", str(bundle.root)], check=True)
    bundle.mount(destination="/mnt", type="bind", source=str(source), options=["bind", "idmap"])
    done = bundle.run("stat -c '%u %g' /mnt/file; touch /mnt/new")
    assert done.stdout == "0 0\n", done.stderr
    assert (source / "new").stat().st_uid == 0


def test_mappings_may_stand_in_the_option(bundle: Bundle, tmp_path: Path) -> None:
    """As crun has them and podman documents: -v SRC:DST:idmap=uids=…;gids=…"""
    source = tmp_path / "data"
    source.mkdir()
    for number in (0, 10):
        (source / f"file{number}").write_text("x")
        os.chown(source / f"file{number}", number, number)
    option = "idmap=uids=0-1000-10#10-2000-5;gids=0-3000-11"
    bundle.mount(destination="/mnt", type="bind", source=str(source), options=["bind", option])
    done = bundle.run("stat -c '%u %g' /mnt/file0 /mnt/file10")
    if "EINVAL" in done.stderr:
        pytest.skip("idmapped mounts of this file system are missing")
    assert done.stdout == "1000 3000\n2000 3010\n", done.stderr


def test_mappings_in_the_option_may_be_the_containers(bundle: Bundle, tmp_path: Path) -> None:
    """@: the second number is an id of the container's user namespace."""
    source = tmp_path / "data"
    source.mkdir()
    (source / "file").write_text("x")
    bundle.namespace("user", uidMappings=MAPPING, gidMappings=MAPPING)
    subprocess.run(["chown", "-hR", "100000:100000", str(bundle.root)], check=True)
    option = "idmap=uids=@0-5-10;gids=@0-6-10"
    bundle.mount(destination="/mnt", type="bind", source=str(source), options=["bind", option])
    done = bundle.run("stat -c '%u %g' /mnt/file")
    if "EINVAL" in done.stderr:
        pytest.skip("idmapped mounts of this file system are missing")
    assert done.stdout == "5 6\n", done.stderr


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("idmap=uids=0-1-2", "needs both uids and gids"),
        ("idmap=uids=0-1-2;gids=0-1", "0-1 is not three numbers"),
        ("idmap=uids=0-1-2;gids=0--1-2", "0--1-2 is not three numbers"),
        ("idmap=0-1-2", "is not uids="),
    ],
)
def test_mappings_of_an_option_that_are_none_are_refused(
    bundle: Bundle, tmp_path: Path, option: str, words: str
) -> None:
    bundle.mount(destination="/mnt", type="bind", source=str(tmp_path), options=["bind", option])
    done = bundle.run("true")
    assert done.returncode == 1 and "mounts[" in done.stderr and words in done.stderr


def test_idmap_without_mappings_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.mount(destination="/mnt", type="bind", source=str(tmp_path), options=["bind", "idmap"])
    assert "idmap needs mappings" in bundle.run("true").stderr


def test_rro_is_read_only_all_the_way_down_and_ro_is_not(bundle: Bundle, shared: Path) -> None:
    for name, option in (("/one", "ro"), ("/all", "rro")):
        bundle.mount(destination=name, type="bind", source=str(shared), options=["rbind", option])
    done = bundle.run("for f in /one/a /one/below/a /all/b /all/below/b; do touch $f && echo $f; done")
    assert done.stdout == "/one/below/a\n"
    assert done.stderr.count("Read-only file system") == 3


@pytest.mark.parametrize(("propagation", "seen"), [("rshared", True), ("rslave", False), ("", False)])
def test_mounts_made_inside_reach_the_host_only_when_shared(
    bundle: Bundle, shared: Path, propagation: str, seen: bool
) -> None:
    bundle.change(lambda config: config["linux"].update(rootfsPropagation=propagation))
    bundle.change(lambda config: config["process"]["capabilities"]["bounding"].append("CAP_SYS_ADMIN"))
    bundle.change(lambda config: config["process"]["capabilities"]["effective"].append("CAP_SYS_ADMIN"))
    bundle.change(lambda config: config["process"]["capabilities"]["permitted"].append("CAP_SYS_ADMIN"))
    bundle.change(lambda config: config["linux"].pop("seccomp"))
    (shared / "inside").mkdir()
    bundle.mount(destination="/mnt", type="bind", source=str(shared),
                 options=["rbind", propagation or "rprivate"])  # fmt: skip
    before = Path("/proc/self/mountinfo").read_text().splitlines()
    bundle.start("sh", "-c", "mount -t tmpfs made /mnt/inside && echo mounted; exec sleep 1000")
    bundle.wait_for("mounted")
    after = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [line.split()[4] for line in after if line not in before]
    assert places == ([f"{shared}/inside"] if seen else [])


def test_mounts_of_the_host_reach_a_slave(bundle: Bundle, shared: Path) -> None:
    bundle.mount(destination="/mnt", type="bind", source=str(shared), options=["rbind", "rslave"])
    (shared / "later").mkdir()
    bundle.start("sleep", "1000")
    subprocess.run(["mount", "-t", "tmpfs", "later", str(shared / "later")], check=True)
    (shared / "later/file").write_text("x")
    assert bundle("exec", bundle.identity, "ls", "/mnt/later").stdout == "file\n"


def test_without_pivot_the_root_is_still_the_containers(bundle: Bundle) -> None:
    done = bundle.run("ls /; cat /full/file", "--no-pivot")
    assert done.stdout == "bin\ndev\netc\nfull\nproc\nsys\nfrom the image\n", done.stderr


def test_mounting_the_cgroup_tree_from_the_hosts_namespace_leaves_its_options(bundle: Bundle) -> None:
    """From the first cgroup namespace a mount sets the options of the one tree that everybody sees: without
    them again, systemd's nsdelegate and memory_recursiveprot would be off for the whole machine."""
    if os.stat("/proc/self/ns/cgroup").st_ino != FIRST_CGROUP_NAMESPACE:
        pytest.skip("the machine's first cgroup namespace is missing (sudo ./hack/test --vm)")
    before = cgroups.tree_options(Path("/proc/self/mountinfo").read_text())
    if not before:
        pytest.skip("a cgroup2 tree with options is missing (sudo ./hack/test --vm)")

    def change(config: dict[str, Any]) -> None:
        linux = config["linux"]
        linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "cgroup"]
        config["mounts"] = [m for m in config["mounts"] if m["type"] not in ("cgroup", "cgroup2")]

    bundle.change(change)
    bundle.mount(destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=["nosuid", "ro"])
    done = bundle.run("ls /sys/fs/cgroup/system.slice && grep /sys/fs/cgroup /proc/self/mountinfo")
    assert done.returncode == 0, done.stderr
    after = cgroups.tree_options(Path("/proc/self/mountinfo").read_text())
    if after != before:  # or a second try would find nothing to lose
        remount = ["mount", "-o", f"remount,{','.join(before)}", cgroups.detect().unified]
        subprocess.run(remount, check=True)
    assert after == before
    assert cgroups.tree_options(done.stdout.splitlines()[-1]) == before
