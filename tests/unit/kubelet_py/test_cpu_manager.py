"""Processors of their own: who gets them, what others share, and what the next agent finds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kubelet_py.config import Config, checked
from kubelet_py.errors import ConfigError
from kubelet_py.node.cpu_topology import Place
from kubelet_py.pods.cpu_manager import CpuManager, reserved
from kubelet_py.pods.model import Object, PodView, Waiting
from runtime.errors import CgroupError

CPUS = {cpu: Place(0, cpu) for cpu in range(4)}
RESERVING = {"cpu_manager_policy": "static", "reserved_system_cpus": "0"}
STATIC = checked(Config(cpu_manager_policy="static", reserved_system_cpus="0"))


def container(name: str, cpu: str, limit: str = "", **fields: Any) -> Object:
    amounts = {"requests": {"cpu": cpu, "memory": "1Gi"}, "limits": {"cpu": limit or cpu, "memory": "1Gi"}}
    return {"name": name, "resources": amounts, **fields}


def pod(uid: str, *containers: Object, init: Sequence[Object] = ()) -> Object:
    metadata = {"name": uid, "namespace": "default", "uid": uid}
    return {"metadata": metadata, "spec": {"containers": [*containers], "initContainers": [*init]}}


class Node:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 0.0
        self.views: dict[str, list[tuple[str, str]]] = {}  # pod uid → (container's id, name)
        self.updates: list[tuple[str, str]] = []
        self.broken: set[str] = set()

    def manager(self, config: Config = STATIC) -> CpuManager:
        return CpuManager(config, self.folder, self.update, CPUS, clock=lambda: self.now)

    def update(self, identifier: str, resources: Mapping[str, Any]) -> None:
        if identifier in self.broken:
            raise CgroupError("it has ended")
        self.updates.append((identifier, resources["cpu"]["cpus"]))

    def uids(self) -> set[str]:
        return set(self.views)

    def view(self, uid: str) -> PodView:
        found = self.views.get(uid, ())
        boxes = [SimpleNamespace(id=identifier, name=name, state="RUNNING") for identifier, name in found]
        return PodView(uid, (), cast(Any, tuple(boxes)))

    def saved(self) -> Any:
        return json.loads((self.folder / "cpu_manager_state").read_text())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_whole_processors_of_guaranteed_pods_are_their_own(node: Node) -> None:
    manager = node.manager()
    assert manager.cpus("a", "c") == "0-3"
    assert manager.admit(pod("a", container("c", "2"), container("part", "500m"))) is None
    assert manager.admit(pod("burstable", container("c", "1", "2"))) is None
    assert [manager.cpus("a", "c"), manager.cpus("a", "part")] == ["1-2", "0,3"]
    assert manager.cpus("burstable", "c") == "0,3"
    assert node.saved()["entries"] == {"a": {"c": "1-2"}}
    assert manager.pins(pod("a", container("c", "2")))
    assert not manager.pins(pod("b", container("c", "1", "2")))
    assert manager.admit(pod("a", container("c", "2"))) is None, "it has them already"
    manager.release("a")
    assert manager.cpus("b", "c") == "0-3" and "entries" not in node.saved()


def test_what_is_reserved_is_shared_but_nobodys_own(node: Node) -> None:
    manager = node.manager()
    assert manager.admit(pod("a", container("c", "3"))) is None
    assert manager.cpus("other", "c") == "0"
    refused = manager.admit(pod("b", container("c", "1")))
    assert refused is not None and refused.reason == "UnexpectedAdmissionError"
    assert refused.message == (
        "Allocate failed due to not enough cpus available to satisfy request: requested=1, available=0, "
        "which is unexpected"
    )
    assert node.saved()["entries"] == {"a": {"c": "1-3"}}, "nothing is half-made"


def test_init_containers_pass_on_what_they_had_and_sidecars_do_not(node: Node) -> None:
    manager = node.manager()
    sidecar = container("side", "1", restartPolicy="Always")
    wanted = pod("a", container("c", "2"), init=[container("first", "2"), sidecar])
    assert manager.admit(wanted) is None
    assert [manager.cpus("a", name) for name in ("first", "side", "c")] == ["1-2", "1", "2-3"]


def test_those_that_share_are_told_of_a_change_at_once_and_else_by_and_by(node: Node) -> None:
    manager = node.manager()
    node.views = {"s": [("s-1", "c")]}
    manager.look(["s"], node, whole=True)
    assert node.updates.pop() == ("s-1", "0-3")
    manager.admit(pod("a", container("c", "1")))
    node.views["a"] = [("a-1", "c")]
    manager.look(["s", "a"], node, whole=True)
    assert node.updates == [("s-1", "0,2-3"), ("a-1", "1")]
    node.updates.clear()
    node.views["s"].append(("s-2", "d"))
    manager.look(["s", "a"], node, whole=True)
    assert node.updates == [], "nothing has changed, and the period is not over"
    node.now += 10
    node.broken = {"s-2"}
    manager.look(["s", "a"], node, whole=True)
    assert node.updates == []
    node.now, node.broken = node.now + 10, set()
    manager.look(["s", "a"], node, whole=True)
    assert node.updates == [("s-2", "0,2-3")], "what failed is tried again"


def test_the_next_agent_finds_them_and_frees_what_nobody_has(node: Node) -> None:
    first = node.manager()
    first.admit(pod("a", container("c", "1")))
    first.admit(pod("b", container("c", "1")))
    second = node.manager()
    assert [second.cpus("a", "c"), second.cpus("b", "c"), second.cpus("x", "c")] == ["1", "2", "0,3"]
    node.views = {"a": [("a-1", "c")]}
    second.look([], node, whole=False)
    assert second.cpus("b", "c") == "2", "not all pods were heard of yet"
    node.now += 10
    second.look([], node, whole=True)
    assert [second.cpus("a", "c"), second.cpus("x", "c")] == ["1", "0,2-3"]


def test_a_pod_admitted_while_the_loop_looks_keeps_what_it_got(node: Node) -> None:
    manager = node.manager()
    known: list[str] = []  # made before the pod was heard of, and it has no sandbox yet
    manager.admit(pod("a", container("c", "1")))
    manager.look(known, node, whole=True)
    assert manager.cpus("a", "c") == "1"


def test_containers_of_a_pod_with_amounts_of_its_own_share(node: Node) -> None:
    whole = pod("a", container("c", "1"))
    whole["spec"]["resources"] = {name: {"cpu": "2", "memory": "2Gi"} for name in ("requests", "limits")}
    manager = node.manager()
    assert manager.admit(whole) is None
    assert manager.cpus("a", "c") == "0-3"


@pytest.mark.parametrize("error", [FileNotFoundError("x"), RuntimeError("can't start new thread")])
def test_a_container_that_cannot_be_told_does_not_end_the_loop(node: Node, error: Exception) -> None:
    def update(identifier: str, resources: Mapping[str, Any]) -> None:
        raise error

    node.views = {"s": [("s-1", "c")]}
    CpuManager(STATIC, node.folder, update, CPUS, clock=lambda: 0.0).look(["s"], node, whole=True)


def test_a_file_of_another_policy_or_machine_keeps_the_agent_from_starting(node: Node) -> None:
    none = Config()
    assert node.manager(none).cpus("a", "c") == ""
    assert node.saved() == {"policyName": "none", "defaultCpuSet": "", "checksum": 1353318690}
    differs = 'configured policy "static" differs from state checkpoint policy "none"'
    with pytest.raises(ConfigError, match=differs):
        node.manager()
    (node.folder / "cpu_manager_state").unlink()
    node.manager()
    with pytest.raises(ConfigError, match=r'set of available CPUs "0-1" .*CPUs in state "0-3"'):
        CpuManager(STATIC, node.folder, node.update, {cpu: Place(0, cpu) for cpu in range(2)})


THREADS = {cpu: Place(0, cpu % 4) for cpu in range(8)}  # 0 and 4 are one core, and so on
FULL = {"full-pcpus-only": "true"}


def test_whole_cores_only(node: Node) -> None:
    config = checked(
        Config(cpu_manager_policy="static", cpu_manager_policy_options=FULL, reserved_system_cpus="0")
    )
    manager = CpuManager(config, node.folder, node.update, THREADS)
    odd = manager.admit(pod("odd", container("c", "3")))
    text = "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"
    assert odd == Waiting("SMTAlignmentError", text)
    assert manager.admit(pod("a", container("c", "4"))) is None
    assert manager.cpus("a", "c") == "1-2,5-6", "4 is the reserved one's sibling"
    again = container("again", "2")
    assert manager.admit(pod("b", container("c", "2"), init=[again])) is None
    assert manager.cpus("b", "c") == manager.cpus("b", "again") == "3,7"
    full = manager.admit(pod("late", container("c", "2")))
    assert full is not None and full.message == (
        "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 0, "
        "requested CPUs = 2, CPUs per core = 2"
    )
    plain = CpuManager(STATIC, node.folder, node.update, THREADS)
    assert plain.admit(pod("late", container("c", "1"))) is None and plain.cpus("late", "c") == "4"


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"reserved_system_cpus": "2-3"}, {2, 3}),
        ({"kube_reserved": {"cpu": "500m"}, "system_reserved": {"cpu": "600m"}}, {0, 1}),
    ],
)
def test_how_many_are_reserved(settings: dict[str, Any], wanted: set[int]) -> None:
    config = checked(Config(cpu_manager_policy="static", **settings))
    assert reserved(config, frozenset(CPUS), CPUS) == wanted


@pytest.mark.parametrize(
    "settings",
    [
        {"cpu_manager_policy": "dynamic"},
        {"cpu_manager_policy": "static"},
        {"cpu_manager_reconcile_period": 0},
        {"cpu_manager_policy_options": FULL},
        {"cpu_manager_policy_options": {"align-by-socket": "true"}, **RESERVING},
        {"cpu_manager_policy_options": {"full-pcpus-only": "maybe"}, **RESERVING},
        {"cpu_manager_policy_options": {"full-pcpus-only": True}, **RESERVING},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cpuManager"):
        checked(Config(**settings))


def test_processors_that_the_machine_has_not(node: Node) -> None:
    config = checked(Config(cpu_manager_policy="static", reserved_system_cpus="7"))
    with pytest.raises(ConfigError, match=r"reservedSystemCPUs '7': this machine has 0-3"):
        node.manager(config)
