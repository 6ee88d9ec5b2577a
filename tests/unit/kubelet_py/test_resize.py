"""In-place resize, decided: what differs, what restarts, what comes first, what is shown, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pods_in_words import NOW, down, pod, up, view

from kubelet_py.pods import resize, resources
from kubelet_py.pods.actions import compute_pod_actions
from kubelet_py.pods.admission import Gate
from kubelet_py.pods.allocations import Allocations
from kubelet_py.pods.model import Object
from kubelet_py.pods.record import PodRecord
from kubelet_py.pods.resize import Held, Progress
from kubelet_py.pods.resizer import Resizer
from kubelet_py.pods.resources import Rules
from kubelet_py.pods.status import Situation, difference, generate
from runtime.cgroups.files import CgroupLimits, shares_of_weight, weight_of_shares

MI = 1 << 20
SMALL: Object = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}}
AS_SMALL = CgroupLimits(shares=102, quota=50000, period=100000, memory=128 * MI, memory_known=True)


def having(tables: Object, **container: Any) -> Object:
    body = pod()
    body["spec"]["containers"][0] |= {"resources": tables, **container}
    return body


def actual(**changes: Any) -> CgroupLimits:
    values = {name: getattr(AS_SMALL, name) for name in CgroupLimits._fields}
    return CgroupLimits(**{**values, **changes})


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (AS_SMALL, set()),
        (actual(shares=103), {"cpu"}),
        (actual(quota=100000, period=200000), set()),
        (actual(quota=-1), {"cpu"}),
        (actual(memory=64 * MI), {"memory"}),
        (actual(memory=128 * MI + 1), set()),
        (actual(memory=None), {"memory"}),
        (actual(memory=None, memory_known=False), set()),
        (CgroupLimits(), set()),
        (actual(shares=shares_of_weight(weight_of_shares(102)), by_weight=True), set()),
        (actual(shares=512, by_weight=True), {"cpu"}),
    ],
)
def test_what_differs_between_a_cgroup_and_what_is_allocated(seen: CgroupLimits, wanted: set[str]) -> None:
    expected = resources.container_resources({"resources": SMALL}, Rules())
    assert resize.differing(expected, seen) == wanted


def test_every_weight_has_shares_that_become_it() -> None:
    assert all(weight_of_shares(shares_of_weight(weight)) == weight for weight in range(1, 10001))


def test_only_a_changed_resource_with_that_policy_restarts() -> None:
    container = {"resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"},
                                  {"resourceName": "cpu", "restartPolicy": "NotRequired"}]}  # fmt: skip
    assert resize.restarts(container, frozenset({"memory"}))
    assert not resize.restarts(container, frozenset({"cpu"}))
    assert not resize.restarts({}, frozenset({"cpu", "memory"}))


@pytest.mark.parametrize(
    ("expected", "first"),
    [
        ({"cpu": {"quota": 60000, "period": 100000}, "memory": {"limit": 256 * MI}},
         {"cpu": {"quota": 60000, "period": 100000}, "memory": {"limit": 256 * MI}}),
        ({"cpu": {"quota": 40000, "period": 100000}, "memory": {"limit": 64 * MI}}, {}),
        ({"cpu": {"shares": 2}}, {"cpu": {"quota": -1}, "memory": {"limit": -1}}),
    ],
)  # fmt: skip
def test_a_pods_limits_grow_before_its_containers(expected: Any, first: Any) -> None:
    assert resize.grows(expected, AS_SMALL) == first


def test_the_status_shows_the_kernels_values_in_the_specs_words() -> None:
    assert resize.shown(SMALL, AS_SMALL) == {"allocatedResources": SMALL["requests"], "resources": SMALL}
    assert resize.shown(SMALL, None)["resources"] == SMALL, "it does not run: what it will get"
    other = actual(shares=204, quota=25000, memory=64 * MI)
    assert resize.shown(SMALL, other)["resources"] == {
        "requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"cpu": "250m", "memory": "64Mi"}
    }  # fmt: skip
    free = actual(quota=-1, memory=None)
    assert "limits" not in resize.shown(SMALL, free)["resources"]
    assert resize.shown({}, AS_SMALL) == {}


def test_conditions_are_there_only_while_something_waits() -> None:
    assert resize.conditions(Progress()) == {}
    held = Progress(held=Held("Deferred", "full"), under_way=True)
    assert resize.conditions(held) == {
        "PodResizePending": {"status": "True", "reason": "Deferred", "message": "full"},
        "PodResizeInProgress": {"status": "True"},
    }
    assert resize.conditions(Progress(error="EBUSY"))["PodResizeInProgress"]["reason"] == "Error"


def test_a_condition_that_is_over_is_deleted_from_the_api() -> None:
    body = pod()
    waiting = generate(body, view(up()), Situation(NOW, resize=Progress(held=Held("Deferred", "full"))))
    assert [c["type"] for c in waiting["conditions"]][-1] == "PodResizePending"
    over = generate({**body, "status": waiting}, view(up()), Situation(NOW))
    assert difference(waiting, over) == {"conditions": [{"$patch": "delete", "type": "PodResizePending"}]}


def test_a_container_that_restarts_for_its_size_is_killed_and_started_whatever_its_exit_code() -> None:
    body = pod(policy="OnFailure")
    kill = compute_pod_actions(body, view(up()), NOW, resized={"c"})
    assert [k.message for k in kill.kills] == ["Container c resize requires restart"]
    start = compute_pod_actions(body, view(down()), NOW, resized={"c"})
    assert [s.name for s in start.starts] == ["c"]
    assert compute_pod_actions(body, view(down()), NOW).finished, "else it would be over"


PLAIN = Rules()


class Cgroup:
    def __init__(self, tree: Tree, path: str) -> None:
        self.tree, self.path = tree, path

    def limits(self) -> CgroupLimits:
        return self.tree.now[self.path]

    def update(self, values: Any) -> None:
        self.tree.writes.append((self.path, values))


class Tree:
    """A cgroup driver, as far as a resize needs it."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, Any]] = []
        self.now: dict[str, CgroupLimits] = {}
        self.names = self

    def group_of(self, home: str) -> str:
        return home

    def open(self, path: str) -> Cgroup:
        return Cgroup(self, path)


class Node:
    """A node of two cores whose pod `u` has SMALL; its sandbox's cgroup is "home"."""

    def __init__(self, folder: Path, body: Object, rules: Rules = PLAIN, *, pinned: bool = False) -> None:
        self.tree, self.record = Tree(), PodRecord(body, 0.0)
        self.tree.now = {"home": AS_SMALL, "home/c-0": AS_SMALL}
        allocatable = {"cpu": "2", "memory": "1Gi", "pods": "9"}
        allocations = Allocations(folder)
        self.gate = Gate(
            records=lambda: [self.record], held=set, node=lambda: {"metadata": {"name": "n"}, "spec": {}},
            allocatable=allocatable, totals=lambda totals: None, restore=allocations.restore,
        )  # fmt: skip
        tree: Any = self.tree
        self.resizer = Resizer(
            tree, rules=rules, gate=self.gate, allocatable=allocatable, allocations=allocations,
            update=lambda identity, values: self.tree.open(f"home/{identity}").update(values),
            pins=lambda pod: pinned,
        )  # fmt: skip
        assert self.gate.admit(self.record) is None
        self.resizer.agree(self.record)

    def want(self, tables: Object, **container: Any) -> None:
        self.record.take(having(tables, **container))
        self.resizer.agree(self.record)

    def act(self) -> frozenset[str]:
        seen = view(up())
        sandbox = replace(seen.sandboxes[0], cgroup="home")
        return self.resizer.act(self.record, replace(seen, sandboxes=(sandbox,)))


MORE: Object = {"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}}


def test_what_is_agreed_to_is_what_the_rest_of_the_agent_sees(tmp_path: Path) -> None:
    node = Node(tmp_path, having(SMALL))
    node.want(MORE)
    assert node.record.allocated == {"c": MORE}
    assert node.record.pod["spec"]["containers"][0]["resources"] == MORE
    assert node.record.requests is not None and node.record.requests.amounts["cpu"] == 200
    assert json.loads((tmp_path / "u/allocated.json").read_text()) == {"c": MORE}


def test_the_pods_limits_come_first_when_they_grow_and_again_at_the_end(tmp_path: Path) -> None:
    node = Node(tmp_path, having(SMALL))
    node.want(MORE)
    assert node.act() == frozenset()
    assert [path for path, _ in node.tree.writes] == ["home", "home/c-0", "home"]
    assert node.tree.writes[0][1] == {
        "cpu": {"quota": 100000, "period": 100000}, "memory": {"limit": 256 * MI}
    }  # fmt: skip
    assert node.tree.writes[1][1]["memory"] == {"limit": 256 * MI, "swap": 256 * MI}


def test_what_the_node_has_not_is_held_back_and_nothing_changes(tmp_path: Path) -> None:
    node = Node(tmp_path, having(SMALL))
    node.want({**SMALL, "requests": {"cpu": "3", "memory": "64Mi"}})
    numbers = "requested: 3000, capacity: 2000"
    assert node.record.resize.held == Held("Infeasible", f"Node didn't have enough capacity: cpu, {numbers}")
    assert node.record.pod["spec"]["containers"][0]["resources"] == SMALL
    assert node.act() == frozenset() and node.tree.writes == []
    node.want(SMALL)
    assert node.record.resize.held is None, "the wish was taken back"


def test_processors_of_ones_own_are_not_changed(tmp_path: Path) -> None:
    node = Node(tmp_path, having(SMALL), pinned=True)
    assert node.record.resize.held is None
    node.want(MORE)
    text = "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy"
    assert node.record.resize.held == Held("Infeasible", text)


def test_a_restart_is_waited_for_until_the_new_container_has_what_it_is_to_have(tmp_path: Path) -> None:
    policy = {"resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}
    node = Node(tmp_path, having(SMALL, **policy))
    less = {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}}
    node.want(less, **policy)
    assert node.act() == {"c"}
    assert node.record.resize.under_way
    assert node.tree.writes == [], "it has its old size until it ends, and so has the pod"
    node.tree.now["home/c-0"] = actual(memory=64 * MI)
    node.resizer._limits.clear()
    assert node.act() == frozenset()
    assert not node.record.resize.under_way
    assert [path for path, _ in node.tree.writes] == ["home"]
    assert node.tree.writes[0][1]["memory"] == {"limit": 64 * MI}


def test_a_restart_is_still_due_when_the_container_ended_after_the_look(tmp_path: Path) -> None:
    """It runs in the view and its cgroup is gone already: the pod would end with its exit code of 0."""
    policy = {"resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}
    node = Node(tmp_path, having(SMALL, **policy))
    node.want({"requests": {"memory": "32Mi"}, "limits": {"memory": "64Mi"}}, **policy)
    assert node.act() == {"c"}
    node.tree.now["home/c-0"] = CgroupLimits(quota=0)
    assert node.act() == {"c"}
    node.record.restarting = frozenset()
    assert node.act() == frozenset(), "it ended by itself"


def test_with_memory_qos_a_request_alone_moves_what_protects_it(tmp_path: Path) -> None:
    node = Node(tmp_path, having(SMALL), Rules(throttling=0.9))
    node.want({**SMALL, "requests": {"cpu": "100m", "memory": "100Mi"}})
    node.act()
    written = dict(node.tree.writes)["home/c-0"]["unified"]
    assert written == {"memory.min": str(100 * MI), "memory.high": str(int(125.2 * MI) // 4096 * 4096)}
    del node.tree.writes[:]
    node.act()
    assert node.tree.writes == [], "once"


def test_without_a_file_the_status_tells_what_was_agreed_to(tmp_path: Path) -> None:
    """An agent that comes back while a wish waits: it counts what the pod has, not what it wishes for."""
    wish = having({**SMALL, "requests": {"cpu": "3", "memory": "64Mi"}})
    entry = {"name": "c", "resources": SMALL, "allocatedResources": SMALL["requests"]}
    node = Node(tmp_path, {**wish, "status": {"containerStatuses": [entry]}})
    assert node.record.allocated == {"c": SMALL}
    assert node.record.requests is not None and node.record.requests.amounts["cpu"] == 100
    assert node.record.resize.held is not None
    assert not (tmp_path / "u").exists(), "nothing was agreed to"


def test_a_file_that_a_power_cut_left_empty_is_as_none(tmp_path: Path) -> None:
    (tmp_path / "u").mkdir()
    (tmp_path / "u/allocated.json").write_text("")
    assert Node(tmp_path, having(SMALL)).record.allocated == {"c": SMALL}


def test_an_agent_that_comes_back_holds_to_what_was_agreed(tmp_path: Path) -> None:
    (tmp_path / "u").mkdir()
    (tmp_path / "u/allocated.json").write_text(json.dumps({"c": SMALL}))
    node = Node(tmp_path, having(MORE))
    assert node.record.allocated == {"c": MORE}, "what was asked for meanwhile and fits is agreed to"
    assert node.act() == frozenset()
    assert node.tree.writes != [], "and done"
