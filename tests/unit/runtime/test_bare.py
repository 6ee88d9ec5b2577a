"""A container that begins with an empty mount namespace: the order of its start, and which ones may."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from runtime.bare import Bare, HoldMasks, appends
from runtime.cgroups.join import CgroupJoin
from runtime.fake import FakeKernel
from runtime.mounts import mask_of
from runtime.operations import Rootfs, container_plan
from runtime.plan import NO_STDIO, Context
from runtime.spec import parse

_found = importlib.util.spec_from_file_location("example_spec", Path(__file__).parent / "example_spec.py")
assert _found and _found.loader
example = importlib.util.module_from_spec(_found)
_found.loader.exec_module(example)

BARE = Bare("/proc/42/ns/mnt", "6.18.44-generic")
ONE = Rootfs(("/layers/a",), "/c/upper", "/c/work")
TWO = Rootfs(("/layers/b", "/layers/a"), "/c/upper", "/c/work")
COVERED = "cover the empty root"


def described(spec: dict[str, Any], bare: Bare = BARE, rootfs: Rootfs = TWO, **options: Any) -> list[str]:
    cgroup = CgroupJoin("/cg2/pod/c", (), ())
    join = options.pop("join", {"ipc": "/proc/42/ns/ipc"})
    return container_plan(
        parse(spec), rootfs=rootfs, join=join, cgroup=cgroup, bare=bare, **options
    ).describe()


def test_what_it_needs_of_the_host_is_opened_before_the_host_is_left() -> None:
    lines = described(example.container())
    start = lines.index("separate the working directory")
    assert lines[start + 1 : start + 11] == [
        "make an overlay of 2 layers and /c/upper",
        "open the host's /dev/null for 4 paths",
        "open /pod/hosts for /etc/hosts",
        "join the ipc namespace /proc/42/ns/ipc",
        "join the mount namespace /proc/42/ns/mnt",
        "make new mount, uts, network, pid namespaces",
        "bring up the loopback interface",
        "make all mounts rprivate",
        COVERED,
        "mount proc on /proc",
    ]
    plain = container_plan(parse(example.container()), rootfs=TWO, join={}, cgroup=None).describe()
    assert "make all mounts rslave" in plain and "make all mounts rslave" not in lines
    masked = plain.index("mask /sys/firmware")
    rest = [line.replace("change to the container's", "enter the container's") for line in plain[masked:]]
    assert lines[lines.index("mask /sys/firmware") :] == rest


def test_a_mask_is_held_only_for_what_may_need_it() -> None:
    """Each that is not attached is closed at the end, and waited for. What an image has is not known yet."""
    kernel = FakeKernel(missing=("/proc/kcore", "/sys/firmware", "/etc/secret", "/process"))
    context = Context(NO_STDIO, False)
    paths = ("/proc/kcore", "/proc/keys", "/sys/firmware", "/etc/secret", "/process")
    HoldMasks(paths).run(kernel, context)
    assert set(context.prepared) == {mask_of(path) for path in ("/proc/keys", "/etc/secret", "/process")}
    assert len([call for call in kernel.calls if call[0] == "open_tree"]) == 3


@pytest.mark.parametrize("release", ["6.6.9", "6.1.0-18-amd64", "5.15", "next", ""])
def test_many_layers_need_a_kernel_that_takes_them_one_by_one(release: str) -> None:
    old = Bare(BARE.path, release)
    assert COVERED not in described(example.container(), old, TWO)
    assert COVERED in described(example.container(), old, ONE)


def test_releases_are_numbers() -> None:
    assert all(map(appends, ("6.7", "6.10.1", "7.0.0-rc1"))) and not any(map(appends, ("6.6.99", "7.x", "6")))


@pytest.mark.parametrize("path", ["/a:b", "/a,b", "/a\\b", "/" + "a" * 255])
def test_paths_that_one_option_cannot_bear_go_the_other_way(path: str) -> None:
    assert COVERED not in described(example.container(), rootfs=Rootfs((path,), "/u", "/w"))
    assert COVERED not in described(example.container(), rootfs=Rootfs(("/l",), path, "/w"))


def changed(**linux: Any) -> dict[str, Any]:
    spec: dict[str, Any] = example.container()
    spec["linux"].update(linux)
    return spec


def test_what_has_to_do_with_the_hosts_mounts_later_is_a_copy_of_the_hosts() -> None:
    for propagation in ("rprivate", "rslave"):
        assert COVERED in described(changed(rootfsPropagation=propagation))
    for propagation in ("shared", "rshared", "runbindable"):
        assert COVERED not in described(changed(rootfsPropagation=propagation))
    for option, possible in (("rprivate", True), ("rslave", False), ("rshared", False)):
        spec = example.container()
        volume = {"destination": "/v", "type": "bind", "source": "/v", "options": ["rbind", option]}
        spec["mounts"].append(volume)
        assert (COVERED in described(spec)) is possible, option
        if possible:
            spec["mounts"].append(volume)
            assert COVERED not in described(spec), "two on one place are told apart by their order"


def test_hooks_and_other_roots_go_the_other_way() -> None:
    spec = example.container()
    spec["hooks"] = {"prestart": [{"path": "/bin/true"}]}
    assert COVERED not in described(spec)
    assert COVERED not in described(example.container(), pivot=False)
    spec = example.container()
    spec["root"]["path"] = "/bundle"
    plan = container_plan(parse(spec), rootfs=None, join={}, cgroup=None, bare=BARE)
    assert COVERED not in plan.describe()
