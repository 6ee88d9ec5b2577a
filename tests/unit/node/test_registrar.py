"""The Node and its Lease, against an API that decides which of the two comes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from kubeclient.errors import AlreadyExists, NotFound
from kubeclient.resources import LEASES, NODES, Resource
from kubelet_py.config import Config
from kubelet_py.errors import AddressTaken
from kubelet_py.instruments import Number
from kubelet_py.node.registrar import RENEW_SHARE, Registrar
from kubelet_py.node.startup import StartupTimes
from kubelet_py.node.status import images, same_report

LONG = 5.0


class Api:
    """Takes the Node only when there is a Lease."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.changed = threading.Condition()
        self.owned = threading.Event()

    def get(self, resource: Resource, name: str, *place: str) -> dict[str, Any]:
        raise NotFound({"reason": "NotFound", "code": 404})

    def create(self, resource: Resource, body: dict[str, Any], *place: str) -> dict[str, Any]:
        if resource == LEASES:
            return self.update(resource, body)
        with self.changed:
            assert self.changed.wait_for(lambda: self.lease is not None, LONG)
        return {**body, "metadata": {**body["metadata"], "uid": "u1"}}

    def update(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        with self.changed:
            self.lease = body
            self.changed.notify_all()
        if body["metadata"].get("ownerReferences"):
            self.owned.set()
        return body

    def patch(self, resource: Resource, name: str, body: dict[str, Any], **how: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "uid": "u1"}, "spec": {}, **body}


def test_a_lease_that_is_older_than_its_node_gets_it_as_owner_when_it_is_renewed() -> None:
    api, moments = Api(), count(1.0)
    startup = StartupTimes(lambda: next(moments))
    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=replace(Config(), node_lease_duration_seconds=1),
        report=lambda now, node: {"conditions": [{"type": "Ready", "status": "True"}]},
        on_node=lambda node: None,
        startup=startup,
    )
    registrar.start()
    assert api.owned.wait(LONG)
    registrar.stop()
    shown = [each.rows()[0][1] for each in startup.instruments if isinstance(each, Number)]
    assert len(shown) == 5 and min(shown) > 0, "its start is told"
    assert api.lease is not None and api.lease["spec"]["holderIdentity"] == "n1"
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1"}
    assert api.lease["metadata"]["ownerReferences"] == [owner]


class Counting(Api):
    """Has a Lease, keeps what is sent and when."""

    def __init__(self) -> None:
        super().__init__()
        self.lease = {}
        self.renewed: list[float] = []
        self.reports: list[tuple[float, Any]] = []

    def update(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        with self.changed:
            self.renewed.append(time.monotonic())
        return super().update(resource, body)

    def patch(self, resource: Resource, name: str, body: dict[str, Any], **how: str) -> dict[str, Any]:
        with self.changed:
            self.reports.append((time.monotonic(), body["status"]["capacity"]))
            self.changed.notify_all()
        return super().patch(resource, name, body, **how)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 30.0)


def test_the_lease_is_the_heartbeat_and_the_status_is_sent_when_it_changes_or_is_old() -> None:
    default = Config()
    assert RENEW_SHARE * default.node_lease_duration_seconds == 10
    assert default.node_status_report_frequency == 300
    quick = replace(
        default,
        node_lease_duration_seconds=1,  # renewed every 0.25 s
        node_status_update_frequency=0.02,
        node_status_report_frequency=0.6,
    )
    api, capacity = Counting(), ["small"]
    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=quick,
        report=lambda now, node: {"conditions": [], "capacity": capacity[0]},
        on_node=lambda node: None,
    )
    begun = time.monotonic()
    registrar.start()
    api.wait(lambda: len(api.renewed) >= 6 and len(api.reports) >= 3)
    with api.changed:
        reports, renewed = [*api.reports], [*api.renewed]
    assert _shortest(renewed[1:]) > 0.2, "the first two are its making and its owner"
    early = [number for number, (at, _) in enumerate(reports) if at < begun + 0.6 * number]
    assert not early, "nothing changed: only when it is old"
    capacity[0] = "large"
    registrar.refresh()
    api.wait(lambda: api.reports[-1][1] == "large")
    registrar.stop()


def test_the_status_is_sent_when_the_clock_was_set_back() -> None:
    api, now = Counting(), [1e9]
    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=Config(),
        report=lambda now, node: {"conditions": [], "capacity": "small"},
        on_node=lambda node: None,
        clock=lambda: now[0],
    )
    registrar.start()
    api.wait(lambda: len(api.reports) == 1)
    now[0] -= 86400
    registrar.refresh()
    api.wait(lambda: len(api.reports) == 2)
    registrar.stop()


def _shortest(moments: list[float]) -> float:
    return min(later - sooner for sooner, later in pairwise(moments))


class Overwriting(Api):
    """A Node whose conditions somebody else changes; tells of reports."""

    def __init__(self) -> None:
        super().__init__()
        self.lease = {}
        self.node: dict[str, Any] = {}
        self.reports = 0
        self.gone = False

    def get(self, resource: Resource, name: str, *place: str) -> dict[str, Any]:
        with self.changed:
            if resource == LEASES or not self.node or self.gone:
                return super().get(resource, name, *place)
            return self.node

    def create(self, resource: Resource, body: dict[str, Any], *place: str) -> dict[str, Any]:
        made = super().create(resource, body, *place)
        if resource != LEASES:
            self._take(made)
        return made

    def patch(self, resource: Resource, name: str, body: dict[str, Any], **how: str) -> dict[str, Any]:
        self._take(super().patch(resource, name, body, **how))
        return self.node

    def _take(self, node: dict[str, Any]) -> None:
        with self.changed:
            self.node, self.gone = node, False
            self.reports += 1
            self.changed.notify_all()

    def overwrite(self, status: str) -> dict[str, Any]:
        with self.changed:
            self.node = {**self.node, "status": ready(status)}
            return self.node

    def wait(self, reports: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.reports >= reports, LONG)


def ready(status: str) -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": status}]}


def test_a_node_that_was_called_unknown_says_at_once_how_it_is() -> None:
    api = Overwriting()
    told: list[str] = []
    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=Config(),  # it looks every 10 s, and reports the same again after 300 s
        report=lambda now, node: ready("True"),
        on_node=lambda node: None,
        tell=lambda kind, reason, message: told.append(reason),
    )
    registrar.start()
    api.wait(2)  # it registers, and reports
    registrar.seen(api.node)  # nothing new
    registrar.seen(api.overwrite("Unknown"))
    api.wait(3)
    assert api.node["status"] == ready("True")
    with api.changed:
        api.gone = True
        shown = {**api.node, "status": ready("Unknown")}
    registrar.seen(shown)
    api.wait(4)
    assert api.reports == 4
    registrar.stop()
    assert told.count("NodeReady") == 3, "registered, heard of again, registered again"


def test_a_node_that_was_deleted_is_registered_again_though_nothing_of_it_changed() -> None:
    api = Overwriting()
    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=Config(),  # it reports the same again after 300 s
        report=lambda now, node: ready("True"),
        on_node=lambda node: None,
    )
    registrar.start()
    api.wait(2)  # it registers, and reports
    with api.changed:
        api.gone = True
    registrar.deleted()
    api.wait(3)
    registrar.stop()


def test_a_node_whose_address_is_taken_registers_once_it_is_free(caplog: pytest.LogCaptureFixture) -> None:
    api, asked = Overwriting(), threading.Semaphore(0)
    taken = ["192.0.2.5 is announced by node b"]

    def admit() -> None:
        asked.release()
        if taken:
            raise AddressTaken(taken[0])

    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=Config(),
        report=lambda now, node: ready("True"),
        on_node=lambda node: None,
        admit=admit,
    )
    registrar.start()
    for _ in range(2):
        assert asked.acquire(timeout=LONG)
        registrar.refresh()
    assert asked.acquire(timeout=LONG) and api.node == {}
    taken.clear()
    registrar.refresh()
    api.wait(1)
    registrar.stop()
    said = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said == ["Refused to register node=n1 reason=192.0.2.5 is announced by node b"]


def test_a_cordon_and_its_end_are_told_once_each() -> None:
    told: list[tuple[str, str, str]] = []
    registrar = Registrar(
        Api(),  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=Config(),
        report=lambda now, node: ready("True"),
        on_node=lambda node: None,
        tell=lambda *event: told.append(event),
    )
    for spec in ({}, {"unschedulable": True}, {"unschedulable": True, "podCIDR": "10.0.0.0/24"}, {}, {}):
        registrar.seen({"metadata": {"name": "n1"}, "spec": spec})
    assert told == [
        ("Normal", "NodeNotSchedulable", "Node n1 status is now: NodeNotSchedulable"),
        ("Normal", "NodeSchedulable", "Node n1 status is now: NodeSchedulable"),
    ]


def test_a_nodes_addresses_are_replaced_as_a_whole() -> None:
    """A strategic merge would join two of one type, and leave the node with one address twice."""
    api, sent = Counting(), threading.Event()
    bodies: list[dict[str, Any]] = []
    addresses = [{"type": "InternalIP", "address": ip} for ip in ("192.0.2.1", "2001:db8::1")]

    def patch(resource: Resource, name: str, body: dict[str, Any], **how: str) -> dict[str, Any]:
        bodies.append(body)
        sent.set()
        return {"metadata": {"name": name, "uid": "u1"}, "spec": {}, **body}

    api.patch = patch  # type: ignore[method-assign]
    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=replace(Config(), node_status_update_frequency=0.02),
        report=lambda now, node: {"conditions": [], "addresses": addresses},
        on_node=lambda node: None,
    )
    registrar.start()
    assert sent.wait(LONG)
    registrar.stop()
    assert bodies[0]["status"]["addresses"] == [*addresses, {"$patch": "replace"}]


class Notes(Counting):
    """A Node that is there, whose annotations are what was patched."""

    def __init__(self, notes: dict[str, str]) -> None:
        super().__init__()
        self.notes = notes
        self.asked: list[Any] = []

    def get(self, resource: Resource, name: str, *place: str) -> dict[str, Any]:
        if resource == LEASES:
            return super().get(resource, name, *place)
        metadata = {"name": name, "uid": "u1", "annotations": dict(self.notes)}
        return {"metadata": metadata, "spec": {}, "status": {}}

    def create(self, resource: Resource, body: dict[str, Any], *place: str) -> dict[str, Any]:
        if resource == LEASES:
            return super().create(resource, body, *place)
        raise AlreadyExists({"reason": "AlreadyExists", "code": 409})

    def patch(self, resource: Resource, name: str, body: dict[str, Any], **how: str) -> dict[str, Any]:
        with self.changed:
            self.changed.notify_all()
            if "metadata" not in body:
                return {**self.get(resource, name), **body}
            self.asked.append(body["metadata"]["annotations"])
            for key, value in body["metadata"]["annotations"].items():
                self.notes.pop(key, None) if value is None else self.notes.update({key: value})
        return self.get(resource, name)


def test_annotations_are_kept_as_they_are_given_and_others_left_alone() -> None:
    api = Notes({"other": "theirs", "gone": "x", "key": "old"})
    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=Config(),
        report=lambda now, node: {"capacity": {}},
        on_node=lambda node: None,
        annotations={"key": "new", "gone": None},
    )
    registrar.start()
    wanted = {"other": "theirs", "key": "new"}
    with api.changed:
        assert api.changed.wait_for(lambda: api.notes == wanted, LONG)
    assert api.asked == [{"key": "new", "gone": None}]
    deadline = time.monotonic() + LONG
    while registrar.node() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    api.notes["key"] = "forged"
    registrar.seen(api.get(NODES, "n1"))
    with api.changed:
        assert api.changed.wait_for(lambda: api.notes == wanted, LONG)
    registrar.stop()


def test_a_new_node_has_the_provider_id_that_is_configured_and_the_largest_images() -> None:
    api = Counting()
    made: list[dict[str, Any]] = []
    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=replace(Config(), provider_id="lab://n1"),
        report=lambda now, node: {"conditions": [], "capacity": "small"},
        on_node=made.append,
    )
    registrar.start()
    api.wait(lambda: bool(api.reports) or bool(made))
    registrar.stop()
    assert made[0]["spec"] == {"providerID": "lab://n1"}
    known = [SimpleNamespace(repo_digests=(), repo_tags=(f"i{size}",), size=size) for size in (1, 3, 2)]
    sizes = {most: [image["sizeBytes"] for image in images(known, most)] for most in (2, 0, -1)}
    assert sizes == {2: [3, 2], 0: [], -1: [3, 2, 1]}


class Sorting(Counting):
    """Keeps conditions in an order of its own, with somebody else's; knows no features."""

    def patch(self, resource: Resource, name: str, body: dict[str, Any], **how: str) -> dict[str, Any]:
        answer = super().patch(resource, name, body, **how)
        status = {key: value for key, value in answer["status"].items() if key != "features"}
        foreign = {"type": "KernelDeadlock", "status": "False"}
        status["conditions"] = [foreign, *reversed(status["conditions"])]
        return {**answer, "status": status}


def test_a_status_that_the_api_keeps_in_another_form_is_not_sent_again_and_again() -> None:
    api, looks = Sorting(), count(1)
    seen: list[int] = []

    def report(now: float, node: dict[str, Any]) -> dict[str, Any]:
        with api.changed:
            seen.append(next(looks))
            api.changed.notify_all()
        conditions = [{"type": kind, "status": "False"} for kind in ("MemoryPressure", "Ready")]
        return {"conditions": conditions, "capacity": "small", "features": {"a": True}}

    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=replace(Config(), node_status_update_frequency=0.005),
        report=report,
        on_node=lambda node: None,
    )
    registrar.start()
    api.wait(lambda: len(seen) >= 20)
    registrar.stop()
    assert len(api.reports) == 1


def test_a_report_is_the_same_whatever_the_order_of_conditions_and_whoever_else_has_one() -> None:
    def status(*kinds: str, at: str = "t1", **more: Any) -> dict[str, Any]:
        return {"conditions": [{"type": k, "status": "True", "lastHeartbeatTime": at} for k in kinds], **more}

    ours = status("Ready", "DiskPressure", at="t2", images=[])
    assert same_report(status("DiskPressure", "Ready", "Foreign", images=[], extra=1), ours)
    assert same_report(status("DiskPressure", "Ready"), ours), "an empty list is left out by the API"
    assert not same_report(status("Ready", images=[]), ours)
    assert not same_report(status("DiskPressure", "Ready", images=["i"]), ours)
