"""Units' names and properties: pure tables."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.cgroups.names import PlainNames
from runtime.errors import CgroupError, SpecError, SystemdError
from runtime.systemd import properties
from runtime.systemd.annotations import of_annotations
from runtime.systemd.messages import Variant
from runtime.systemd.names import Place, SystemdNames, cgroup_name, place_of, slice_path

MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("-.slice", ""),
        ("machine.slice", "machine.slice"),
        ("foo-bar.slice", "foo.slice/foo-bar.slice"),
        ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
        ("cpu.x.slice", "_cpu.x.slice"),
    ],
)
def test_a_slices_name_is_its_place(name: str, path: str) -> None:
    assert slice_path(name) == path


@pytest.mark.parametrize("name", ["", "foo", "foo.scope", "-a.slice", "a-.slice", "a--b.slice", "a/b.slice",
                                  "a b.slice", ".slice", "a" * 256 + ".slice"])  # fmt: skip
def test_what_is_no_slice(name: str) -> None:
    with pytest.raises(SystemdError, match="Could not use slice"):
        slice_path(name)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("machine.slice:libpod:abc", "machine.slice/libpod-abc.scope/container"),
        ("user-1.slice:cri-containerd:a1", "user.slice/user-1.slice/cri-containerd-a1.scope/container"),
        (":runc:abc", "system.slice/runc-abc.scope/container"),
        ("machine.slice::abc", "machine.slice/abc.scope/container"),
        ("-.slice:p:abc", "p-abc.scope/container"),
        ("machine.slice:p:a+b", "machine.slice/p-a\\x2bb.scope/container"),
        ("machine.slice::tasks", "machine.slice/tasks.scope/container"),
        ("machine.slice::memory", "machine.slice/_memory.scope/container"),
        ("", "system.slice/kubelet-py-oci-one.scope/container"),
    ],
)
def test_cgroups_path_is_slice_prefix_name(given: str, path: str) -> None:
    assert SystemdNames().container(given, "one") == path


@pytest.mark.parametrize("given", ["/foo", "a:b", "a.slice:b:", "a.slice:b:c:d", "a--b.slice:b:c", "x:y:z",
                                   "machine.slice:p:" + "a" * 250])  # fmt: skip
def test_cgroups_path_in_another_form_is_refused(given: str) -> None:
    with pytest.raises(SpecError, match=r"linux\.cgroupsPath"):
        SystemdNames().container(given, "one")


def test_groups_are_slices_named_as_upstream_names_them() -> None:
    names = SystemdNames()
    pod = names.group("kubelet-py", "kubepods", "burstable", "pod12-34")
    assert pod == (
        "kubelet_py.slice/kubelet_py-kubepods.slice/kubelet_py-kubepods-burstable.slice/"
        "kubelet_py-kubepods-burstable-pod12_34.slice"
    )
    assert names.group_of(f"{pod}/kubelet-py-1.scope") == pod == names.group_of(pod)


def test_plain_names() -> None:
    names = PlainNames()
    assert names.group("kubelet-py", "kubepods", "pod1") == "kubelet-py/kubepods/pod1"
    assert names.group_of("a/b") == "a/b"
    assert names.container("/a//b/", "one") == "a/b"
    assert names.container("", "one") == "kubelet-py-oci-one"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.slice", Place("a.slice", "a.slice", "")),
        ("a.slice/x.scope", Place("x.scope", "a.slice/x.scope", "")),
        ("a.slice/x.scope/one/exec-1", Place("x.scope", "a.slice/x.scope", "one/exec-1")),
        ("a.slice/_memory.scope", Place("memory.scope", "a.slice/_memory.scope", "")),
        ("kubepods/burstable", Place("", "", "kubepods/burstable")),
    ],
)
def test_the_unit_of_a_path(path: str, found: Place) -> None:
    assert place_of(path) == found


@pytest.mark.parametrize("unit", ["tasks.scope", "a.scope", "machine.slice"])
def test_ordinary_names_stay(unit: str) -> None:
    assert cgroup_name(unit) == unit


def numbers(resources: dict[str, Any]) -> dict[str, Any]:
    return {name: variant.value for name, variant in properties.of_resources(resources)}


def test_limits_become_properties() -> None:
    assert properties.of_resources(
        {
            "memory": {"limit": 64 * MIB, "reservation": MIB, "swap": 96 * MIB},
            "cpu": {"shares": 512, "quota": 20000, "period": 50000, "cpus": "0-2,8", "mems": "0"},
            "pids": {"limit": 40},
            "blockIO": {"weight": 500},
            "unified": {"memory.high": str(48 * MIB), "memory.min": "4096", "memory.oom.group": "1"},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        }
    ) == [
        ("MemoryLow", Variant("t", MIB)),
        ("MemoryMax", Variant("t", 64 * MIB)),
        ("MemorySwapMax", Variant("t", 32 * MIB)),
        ("AllowedCPUs", Variant("ay", b"\x07\x01")),
        ("AllowedMemoryNodes", Variant("ay", b"\x01")),
        ("TasksMax", Variant("t", 40)),
        ("IOWeight", Variant("t", 4950)),
        ("MemoryHigh", Variant("t", 48 * MIB)),
        ("MemoryMin", Variant("t", 4096)),
        ("CPUWeight", Variant("t", 20)),
        ("CPUQuotaPerSecUSec", Variant("t", 400_000)),
        ("CPUQuotaPeriodUSec", Variant("t", 50_000)),
    ]


def test_no_limit_is_infinity() -> None:
    unlimited = {"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}
    found = numbers(unlimited)
    names = ("MemoryMax", "MemorySwapMax", "TasksMax", "CPUQuotaPerSecUSec")
    assert [found[name] for name in names] == [2**64 - 1] * 4


def test_a_quota_is_rounded_up_to_a_whole_percent() -> None:
    assert numbers({"cpu": {"quota": 12345, "period": 100000}})["CPUQuotaPerSecUSec"] == 130_000
    assert numbers({"unified": {"cpu.max": "max 1000"}})["CPUQuotaPerSecUSec"] == 2**64 - 1


@pytest.mark.parametrize("unified", [{"memory.high": "lots"}, {"cpuset.cpus": "5-2"}, {"cpu.max": "a b"},
                                     {"cpu.max": ""}, {"cpuset.cpus": "9999"}])  # fmt: skip
def test_what_systemd_could_not_read_is_refused(unified: dict[str, str]) -> None:
    with pytest.raises(CgroupError, match="systemd needs"):
        properties.of_resources({"unified": unified})


def test_processor_and_task_limits_wait_for_the_first_process() -> None:
    every = properties.of_resources(
        {"cpu": {"shares": 2, "quota": 5000, "cpus": "0"}, "pids": {"limit": 1}, "memory": {"limit": MIB}}
    )
    first, later = properties.late(every)
    assert [name for name, _ in first] == ["MemoryMax", "AllowedCPUs"]
    names = ["TasksMax", "CPUWeight", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec"]
    assert [name for name, _ in later] == names


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'text'", Variant("s", "text")),
        ('"a \\"b\\""', Variant("s", 'a "b"')),
        ("true", Variant("b", True)),
        ("5", Variant("i", 5)),
        ("uint64 5", Variant("t", 5)),
        ("['a', 'b']", Variant("as", ["a", "b"])),
        ("[]", Variant("as", [])),
        ("1.5", Variant("d", 1.5)),
    ],
)
def test_annotations_are_properties(text: str, value: Variant) -> None:
    assert of_annotations({"org.systemd.property.Some": text, "other": "x"}) == [("Some", value)]


def test_seconds_become_microseconds() -> None:
    assert of_annotations({"org.systemd.property.TimeoutStopSec": "2"}) == [
        ("TimeoutStopUSec", Variant("t", 2_000_000))
    ]
    assert of_annotations({"org.systemd.property.TimeoutStopUSec": "uint64 2"})[0][1] == Variant("t", 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [("X", "1"), ("Some/Thing", "1"), ("Some", "word"), ("Some", ""), ("Some", "'open"), ("Some", "byte 256"),
     ("Some", "['a' 5]"), ("Some", "['a']x"), ("Some", "uint32 'x'"), ("TimeoutStopSec", "'x'"),
     ("Some", "'a'b")],
)  # fmt: skip
def test_annotations_that_mean_nothing_are_refused(name: str, text: str) -> None:
    with pytest.raises(SpecError, match=r"annotations\.org.systemd.property"):
        of_annotations({f"org.systemd.property.{name}": text})
