from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kubelet_py.cli.lab import machines, state
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import DEFAULT_ROOT, LabPaths
from kubelet_py.cli.lab.state import Cable, Lab
from kubelet_py.cli.processes import ProcessIdentity

LAB = Lab(network="198.18.44.0/24", cluster_cidr="10.244.0.0/16", service_cidr="10.96.0.0/12")


def test_a_new_lab_has_a_control_machine_and_its_nodes_with_addresses_that_do_not_clash() -> None:
    lab = LAB.grown(3)
    assert lab.names == ("control", "node1", "node2", "node3")
    assert [lab.address(m.number) for m in lab.machines] == [f"198.18.44.{n}" for n in (10, 11, 12, 13)]
    assert len({machine.mac for machine in lab.machines}) == 4


def test_growing_keeps_what_is_there_as_it_is() -> None:
    lab = LAB.grown(2).with_cable("node2", Cable(loss=5.0))
    grown = lab.grown(4)
    assert grown.machines[:3] == lab.machines
    assert grown.names[3:] == ("node3", "node4")


def test_a_saved_lab_is_read_back_the_same(tmp_path: Path) -> None:
    lab = replace(LAB, options=("--proxy-mode", "nftables")).grown(2)
    lab = lab.with_cable("node1", Cable(apart=("node2", "control"), delay=50.0))
    state.save(LabPaths(tmp_path), lab)
    assert state.load(LabPaths(tmp_path)) == lab


def test_no_file_is_no_lab_and_says_how_to_make_one(tmp_path: Path) -> None:
    assert state.load(LabPaths(tmp_path)) is None
    with pytest.raises(LabError, match="there is no lab in"):
        state.require(LabPaths(tmp_path))


def test_a_broken_file_says_how_to_go_on(tmp_path: Path) -> None:
    LabPaths(tmp_path).state.write_text("{")
    with pytest.raises(LabError, match=f"kubelet-py lab --root {tmp_path} down"):
        state.load(LabPaths(tmp_path))


def test_an_unknown_machine_is_told_with_those_there_are() -> None:
    with pytest.raises(LabError, match=r"no machine node9 in the lab \(it has control, node1\)"):
        LAB.grown(1).machine("node9")


@pytest.mark.parametrize(
    ("changes", "nodes", "text"),
    [
        ({"network": "nonsense"}, 3, "Could not read an address range"),
        ({"network": "fd00::/64"}, 3, "must be IPv4"),
        ({"network": "198.18.44.0/28"}, 10, "with room for 10 nodes"),
        ({"network": "10.244.7.0/24"}, 3, "--cluster-cidr 10.244.0.0/16 overlap"),
        ({"network": "10.96.0.0/24"}, 3, "--service-cidr 10.96.0.0/12 overlap"),
    ],
)
def test_networks_that_cannot_be_are_refused(changes: dict[str, str], nodes: int, text: str) -> None:
    with pytest.raises(LabError, match=text):
        state.check(replace(LAB, **changes), nodes)


def test_two_labs_share_no_name_of_the_kernel() -> None:
    default, other, third = LabPaths(DEFAULT_ROOT), LabPaths(Path("/a")), LabPaths(Path("/b"))
    assert default.link == "kpylab0" and default.cgroup == "kubelet-py-lab"
    assert len({paths.link for paths in (default, other, third)}) == 3
    assert len({paths.cgroup for paths in (default, other, third)}) == 3
    assert all(len(paths.link) <= 15 for paths in (default, other, third))


def test_a_folder_with_something_else_in_it_is_no_place_for_a_lab(tmp_path: Path) -> None:
    state.check_folder(LabPaths(tmp_path / "new"))
    state.check_folder(LabPaths(tmp_path))
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(LabError, match="is not empty"):
        state.check_folder(LabPaths(tmp_path))


def test_two_commands_do_not_change_a_lab_at_once(tmp_path: Path) -> None:
    paths = LabPaths(tmp_path / "lab")
    with state.locked(paths), pytest.raises(LabError, match="another `kubelet-py lab`"), state.locked(paths):
        pass
    with state.locked(paths):
        pass


def test_a_lab_remembers_no_process_of_another_boot(tmp_path: Path) -> None:
    mine = ProcessIdentity.of(os.getpid())
    assert mine is not None
    machines.remember(tmp_path / "process.json", mine)
    assert machines.recall(tmp_path / "process.json") == mine
    pid, start, _ = json.loads((tmp_path / "process.json").read_text())
    (tmp_path / "process.json").write_text(json.dumps([pid, start, "another boot"]))
    assert machines.recall(tmp_path / "process.json") is None
    assert machines.recall(tmp_path / "none.json") is None
