"""Which processors are chosen, and the file that upstream's kubelet would read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubelet_py.errors import ConfigError
from kubelet_py.node import cpu_checkpoint, cpu_topology
from kubelet_py.node.cpu_checkpoint import CpuState, checksum
from kubelet_py.node.cpu_topology import Place, take

# Two sockets of two cores of two threads each, numbered as most machines do: 0 and 4 are one core.
BIG = {cpu: Place(cpu % 4 // 2, cpu % 2) for cpu in range(8)}
FLAT = {cpu: Place(0, cpu) for cpu in range(2)}


@pytest.mark.parametrize(
    ("count", "available", "wanted"),
    [
        (1, "0-7", "0"),
        (2, "0-7", "0,4"),  # a core
        (2, "1-7", "1,5"),  # not beside what is taken
        (1, "1-7", "4"),  # the rest of a core that is broken into
        (4, "0-7", "0-1,4-5"),  # a socket
        (4, "1-7", "2-3,6-7"),
        (3, "1-7", "1,4-5"),
        (0, "0-7", ""),
    ],
)
def test_whole_places_first_then_broken_ones(count: int, available: str, wanted: str) -> None:
    assert cpu_topology.write(take(count, cpu_topology.parse(available), BIG)) == wanted


def test_not_more_than_there_are() -> None:
    text = "not enough cpus available to satisfy request: requested=2, available=1"
    with pytest.raises(ValueError, match=text):
        take(2, {1}, FLAT)


@pytest.mark.parametrize("text", ["", "0", "0-1", "0,2-4,7"])
def test_lists_are_written_as_they_are_read(text: str) -> None:
    assert cpu_topology.write(cpu_topology.parse(text)) == text


def test_places_are_read_from_the_kernel(tmp_path: Path) -> None:
    for cpu, (socket, core) in enumerate(((0, 7), (1, 7))):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{socket}\n")
        (folder / "core_id").write_text(f"{core}\n")
    assert cpu_topology.read([0, 1, 9], tmp_path) == {0: Place(0, 7), 1: Place(1, 7), 9: Place(0, 9)}


# Numbers that upstream's kubelet wrote.
@pytest.mark.parametrize(
    ("policy", "shared", "entries", "number"),
    [
        ("none", "", {}, 1353318690),
        ("none", "4-6", {}, 354655845),
        ("none", "1-3", {"pod": {"container1": "4-6", "container2": "1-3"}}, 3610638499),
    ],
)
def test_the_checksum_is_upstreams(
    policy: str, shared: str, entries: dict[str, dict[str, str]], number: int
) -> None:
    assert checksum(policy, shared, entries) == number


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "sub/cpu_manager_state"
    assert cpu_checkpoint.read(file) is None
    state = CpuState("static", frozenset({0, 3}), {"u": {"c": frozenset({1, 2})}})
    cpu_checkpoint.save(file, state)
    assert cpu_checkpoint.read(file) == state
    assert {key: value for key, value in json.loads(file.read_text()).items() if key != "checksum"} == {
        "policyName": "static",
        "defaultCpuSet": "0,3",
        "entries": {"u": {"c": "1-2"}},
    }
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"policyName":"static","defaultCpuSet":"a","checksum":0}',
     '{"policyName":"none","defaultCpuSet":"","checksum":7}'],
)  # fmt: skip
def test_a_damaged_file_is_named_with_its_remedy(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cpu_manager_state"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"Could not read .*cpu_manager_state: .*delete the file"):
        cpu_checkpoint.read(file)
