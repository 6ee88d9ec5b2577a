"""The order of a container's start, without a kernel."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.join import CgroupJoin
from runtime.early import WaitForStart
from runtime.errors import SpecError
from runtime.mounts import MountCgroup
from runtime.operations import Rootfs, container_plan, exec_plan, sandbox_plan
from runtime.spec import parse, parse_process

_found = importlib.util.spec_from_file_location("example_spec", Path(__file__).parent / "example_spec.py")
assert _found and _found.loader
example = importlib.util.module_from_spec(_found)
_found.loader.exec_module(example)

CGROUP = CgroupJoin("/cg2/pod/c", ("/cg1/memory/pod/c/tasks",), (("/cg1/cpu/pod/c/cpu.shares", "2"),))
ROOTFS = Rootfs(("/layers/b", "/layers/a"), "/c/upper", "/c/work")


def described(spec: dict[str, Any], **options: Any) -> list[str]:
    given: dict[str, Any] = {"rootfs": ROOTFS, "join": {}, "cgroup": CGROUP, **options}
    return container_plan(parse(spec), **given).describe()


def test_a_container_starts_in_the_order_of_isolation() -> None:
    assert described(example.container()) == [
        "forbid tracing of the process that sets up",
        "open the host's /proc",
        "open the cgroup /cg2/pod/c",
        "separate the working directory",
        "make new mount, uts, ipc, network, pid namespaces",
        "bring up the loopback interface",
        "make all mounts rslave",
        "open the host's /dev/null",
        "mount an overlay of 2 layers on /c/upper",
        "mount proc on /proc",
        "mount tmpfs on /dev",
        "mount devpts on /dev/pts",
        "mount sysfs on /sys",
        "mount /pod/hosts on /etc/hosts",
        "make 6 device nodes",
        "link the standard streams into /dev",
        "open a terminal",
        "bind the terminal to /dev/console",
        "set the hostname box",
        "set the sysctl net.ipv4.ping_group_range",
        "make /proc/bus read-only",
        "make /proc/sys read-only",
        "mask /proc/acpi",
        "mask /proc/kcore",
        "mask /proc/keys",
        "mask /sys/firmware",
        "make the root read-only",
        "change to the container's root",
        "change to the working directory /work",
        'find "sh"',
        "enter the cgroup",
        "make a new cgroup namespace",
        "mount cgroup2 on /sys/fs/cgroup",
        "run on every processor of the cgroup",
        "start a session",
        'examine "sh"',
        "connect standard input, output and error",
        "set oom_score_adj to 500",
        "set RLIMIT_NOFILE to 10:20",
        "reset signals",
        "close descriptors from 3",
        "close descriptors from 3 at once",
        "become user 1000:1001 with capabilities 0x5fb",
        "set no_new_privs",
        "load a seccomp filter of 116 instructions",
        'execute "sh"',
        "start the process",
    ]


def test_without_no_new_privileges_seccomp_comes_before_the_credentials() -> None:
    """S04: loading then needs CAP_SYS_ADMIN, which the credentials take away."""
    lines = described(example.container(noNewPrivileges=False))
    load = next(line for line in lines if "seccomp" in line)
    become = next(line for line in lines if line.startswith("become"))
    assert lines.index(load) < lines.index(become)
    assert "set no_new_privs" not in lines


def test_joined_namespaces_are_not_made() -> None:
    lines = described(example.container(), join={"network": "/proc/9/ns/net", "uts": "/proc/9/ns/uts"})
    assert "join the network namespace /proc/9/ns/net" in lines
    assert "make new mount, ipc, pid namespaces" in lines
    assert "set the hostname box" not in lines


def test_a_bundle_is_bound_instead_of_overlaid() -> None:
    assert "bind the root folder /bundle/rootfs" in described(example.container(), rootfs=None)


def test_a_relative_root_is_refused() -> None:
    spec = example.container()
    spec["root"]["path"] = "rootfs"
    with pytest.raises(SpecError, match=r"root\.path"):
        described(spec, rootfs=None)


def test_a_user_namespace_needs_a_mapping_of_its_root() -> None:
    spec = example.container()
    spec["linux"]["namespaces"].append({"type": "user"})
    with pytest.raises(SpecError, match="must map 0"):
        described(spec, rootfs=None)


def test_mappings_without_a_user_namespace_are_refused() -> None:
    spec = example.container()
    spec["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 10}]
    with pytest.raises(SpecError, match="needs a user namespace"):
        described(spec)


def test_a_user_namespace_is_made_after_the_sources_are_open_and_before_what_it_owns() -> None:
    spec = example.container()
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["root"] = {"path": "/bundle/rootfs"}
    plan = container_plan(parse(spec), rootfs=None, join={}, cgroup=CGROUP)
    assert plan.apart and plan.mappings == ("0 100000 65536\n",) * 2
    lines = plan.describe()
    order = [
        "enter the cgroup /cg2/pod/c",
        "open /pod/hosts for /etc/hosts",
        "open the root folder /bundle/rootfs",
        "make a new user namespace and map its users",
        "make new mount, uts, ipc, network, pid namespaces",
        "bring up the loopback interface",
        "attach the root",
        "bind 6 device nodes",
        "change to the container's root",
    ]
    assert [line for line in lines if line in order] == order
    assert not any(line.startswith("set oom_score_adj") for line in lines)


def test_in_a_pods_user_namespace_the_layers_are_mapped_before_it_is_joined() -> None:
    spec = example.container()
    mapping = [{"containerID": 0, "hostID": 131072, "size": 65536}]
    spec["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
    spec["linux"]["namespaces"].append({"type": "user"})
    join = {"user": "/proc/7/ns/user", "network": "/proc/7/ns/net"}
    plan = container_plan(parse(spec), rootfs=ROOTFS, join=join, cgroup=CGROUP)
    lines = plan.describe()
    order = [
        "open /pod/hosts for /etc/hosts",
        f"mount an overlay of {len(ROOTFS.layers)} idmapped layers on {ROOTFS.upper}",
        "open the network namespace /proc/7/ns/net",
        "join the user namespace /proc/7/ns/user",
        "become root of the user namespace",
        "join the network namespace /proc/7/ns/net",
        "attach the root",
    ]
    assert [line for line in lines if line in order] == order
    assert plan.apart


def test_a_sandbox_with_users_of_its_own_makes_them_before_what_they_own() -> None:
    mapping = [{"containerID": 0, "hostID": 131072, "size": 65536}]
    spec = {
        "ociVersion": "1.2.0",
        "process": {"args": ["/pause"], "cwd": "/"},
        "linux": {
            "namespaces": [{"type": kind} for kind in ("network", "uts", "user")],
            "uidMappings": mapping,
            "gidMappings": mapping,
        },
    }
    plan = sandbox_plan(parse(spec), cgroup=CGROUP)
    lines = plan.describe()
    order = [
        "make a new user namespace and map its users",
        "make new mount, uts, network namespaces",
    ]
    assert [line for line in lines if line in order] == order
    assert plan.apart and plan.mappings == ("0 131072 65536\n",) * 2


def test_clock_offsets_need_a_time_namespace() -> None:
    spec = example.container()
    spec["linux"]["timeOffsets"] = {"monotonic": {"secs": 100}}
    with pytest.raises(SpecError, match="needs a new time namespace"):
        described(spec)
    spec["linux"]["namespaces"].append({"type": "time"})
    lines = described(spec)
    assert lines.index("set the clocks of the time namespace") == 1 + lines.index(
        "make new mount, uts, ipc, network, time, pid namespaces"
    )


def test_a_container_without_mount_namespace_is_refused() -> None:
    spec = example.container()
    spec["linux"]["namespaces"] = []
    with pytest.raises(SpecError, match="mount namespace"):
        described(spec)


def test_a_bound_dev_is_not_filled() -> None:
    spec = example.container()
    spec["mounts"] = [{"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}]
    assert not any("device nodes" in line for line in described(spec))


def test_cpu_limits_wait_until_after_the_start() -> None:
    assert (
        container_plan(parse(example.container()), rootfs=ROOTFS, join={}, cgroup=CGROUP).late == CGROUP.late
    )


def test_a_sandbox_is_pause_in_an_empty_root() -> None:
    spec = parse({"ociVersion": "1.2.0", "linux": {"namespaces": [{"type": "network"}]}})
    lines = sandbox_plan(spec, cgroup=None).describe()
    assert "make new mount, network namespaces" in lines
    assert "mount an empty root" in lines
    assert lines[-2:] == ["execute pause from memory", "start the process"]


def test_a_sandbox_that_is_given_an_empty_root_copies_it_and_leaves_no_other() -> None:
    spec = parse({"ociVersion": "1.2.0", "hostname": "pod", "linux": {"namespaces": [{"type": "uts"}]}})
    lines = sandbox_plan(spec, cgroup=None, join={"network": "/n"}, empty="/proc/7/fd/9").describe()
    order = [
        "open the host's /proc",
        "separate the working directory",
        "join the network namespace /n",
        "join the mount namespace /proc/7/fd/9",
        "make new mount, uts namespaces",
        "set the hostname pod",
        "start a session",
    ]
    assert lines[1 : len(order) + 1] == order


def test_an_exec_joins_and_mounts_nothing() -> None:
    process = parse_process({"args": ["ls"], "cwd": "/", "env": ["PATH=/bin"]})
    lines = exec_plan(parse(example.container()), process, init_pid=42, cgroup=None).describe()
    assert "join the mount, uts, ipc, network, pid namespaces of process 42" in lines
    assert not any(line.startswith(("mount", "make")) for line in lines)
    assert "load a seccomp filter of 116 instructions" not in lines[: lines.index('find "ls"')]


def test_an_exec_enters_the_cgroup_namespace_after_it_was_born_into_the_cgroup() -> None:
    """From inside the namespace clone3 would not find the cgroup where cgroup2 is mounted with nsdelegate."""
    process = parse_process({"args": ["ls"], "cwd": "/", "env": ["PATH=/bin"]})
    lines = exec_plan(parse(example.container()), process, init_pid=42, cgroup=CGROUP).describe()
    assert lines.index("enter the cgroup") + 1 == lines.index("join the cgroup namespace")


def test_a_cgroup_namespace_named_by_path_is_joined_by_the_child() -> None:
    spec = example.container()
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "cgroup"]
    lines = described(spec, join={"cgroup": "/proc/7/ns/cgroup"})
    opened = lines.index("open the cgroup namespace /proc/7/ns/cgroup")
    assert opened < lines.index("make new mount, uts, ipc, network, pid namespaces")
    assert lines.index("enter the cgroup") + 1 == lines.index("join the cgroup namespace")
    assert not any(line.startswith("join the cgroup namespace /") for line in lines)


@pytest.mark.parametrize("path", [None, "", "/proc/1/ns/cgroup"])
@pytest.mark.parametrize("created", [False, True])
def test_a_cgroup_tree_that_is_mounted_from_a_shared_namespace_keeps_its_options(
    path: str | None, created: bool
) -> None:
    """From the first cgroup namespace a mount sets the options of the one tree that everybody sees."""
    spec = example.container()
    others = [n for n in spec["linux"]["namespaces"] if n["type"] != "cgroup"]
    own = [] if path is None else [{"type": "cgroup", "path": path}]
    spec["linux"]["namespaces"] = [*others, *own]
    next(m for m in spec["mounts"] if m["type"] == "cgroup")["options"] = ["ro", "nsdelegate"]
    plan = container_plan(
        parse(spec), rootfs=ROOTFS, join={}, cgroup=None, tree=("nsdelegate", "memory_recursiveprot"),
        wait_on=WaitForStart(7) if created else None,
    )  # fmt: skip
    (mount,) = (operation for operation in plan if isinstance(operation, MountCgroup))
    assert mount.data == ("nsdelegate" if path == "" else "nsdelegate,memory_recursiveprot")


def test_create_bears_its_child_before_the_mounts_and_runs_hooks_before_the_change_of_root() -> None:
    """config.md: mounts in the listed order; createRuntime and createContainer before pivot_root."""
    spec = example.container()
    spec["hooks"] = {"createContainer": [{"path": "/bin/true"}]}
    lines = described(spec, wait_on=WaitForStart(7))
    order = [
        "mount an overlay of 2 layers on /c/upper",
        "make the process",
        "enter the cgroup",
        "make a new cgroup namespace",
        "mount proc on /proc",
        "mount tmpfs on /dev",
        "mount cgroup2 on /sys/fs/cgroup",
        "mount /pod/hosts on /etc/hosts",
        "run hooks",
        "mask /proc/kcore",
        "make the root read-only",
        "change to the container's root",
        'find "sh"',
        "have the process follow into the root",
        "wait for the start",
        'execute "sh"',
    ]
    assert [line for line in lines if line in order] == order
    assert "run hooks" not in described(example.container(), wait_on=WaitForStart(7))


def test_a_filter_with_a_listener_comes_before_the_wait_and_needs_one() -> None:
    spec = example.container()
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/agent",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
    }  # fmt: skip
    lines = described(spec, wait_on=WaitForStart(7))
    load = next(line for line in lines if "with a listener" in line)
    assert lines.index(load) < lines.index("wait for the start")
    with pytest.raises(SpecError, match="who takes the listener"):
        described(spec)


@pytest.mark.parametrize("profile", [None, {"defaultAction": "SCMP_ACT_ALLOW"}])
def test_the_gate_is_the_last_thing_before_the_program(profile: dict[str, Any] | None) -> None:
    """And the only descriptor left."""
    spec = example.container()
    spec["linux"]["seccomp"] = profile
    lines = described(spec, gate=40)
    kept = lines.index("hold on to the gate")
    assert lines[kept + 1] == "close descriptors from 4 at once"
    assert lines[-3:] == ["wait at the gate", 'execute "sh"', "start the process"]
    plain = described(spec)
    assert "close descriptors from 3 at once" in plain and "wait at the gate" not in plain


def test_a_filter_that_may_forbid_the_wait_comes_after_it() -> None:
    spec = example.container()
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}
    lines = described(spec, gate=40)
    gate = lines.index("wait at the gate")
    assert lines[gate + 1] == "close descriptors from 3 at once"
    assert next(n for n, line in enumerate(lines) if "seccomp filter" in line) > gate


def test_a_hostname_without_a_uts_namespace_is_refused() -> None:
    spec = example.container()
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "uts"]
    with pytest.raises(SpecError, match="hostname: needs a UTS namespace"):
        described(spec)


def test_an_unknown_capability_is_a_note() -> None:
    sets = {"bounding": ["CAP_CHOWN", "CAP_FLY"]}
    plan = container_plan(parse(example.container(capabilities=sets)), rootfs=ROOTFS, join={}, cgroup=CGROUP)
    assert plan.notes == ("Could not give capability 'CAP_FLY': there is none of that name",)


def test_file_system_options_of_a_bind_mount_are_a_note() -> None:
    spec = example.container()
    spec["mounts"][-1]["options"].append("mode=755")
    plan = container_plan(parse(spec), rootfs=ROOTFS, join={}, cgroup=CGROUP)
    assert plan.notes == ("Could not use mode=755 for /etc/hosts: it is a bind mount",)
