"""Workers and the status manager: newest wins, one at a time, nothing lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from pods_in_words import pod

from kubeclient.errors import ApiError, ServerUnavailable, from_status
from kubelet_py.pods import status_manager
from kubelet_py.pods.crowd import Crowd
from kubelet_py.pods.status_manager import StatusManager, hold_back
from kubelet_py.pods.workers import PodWorkers, spawn

LONG = 5.0


def test_a_pod_woken_while_busy_is_looked_at_once_more_and_never_twice_at_once() -> None:
    entered, go, done = threading.Event(), threading.Event(), threading.Event()
    runs: list[int] = []
    busy = threading.Lock()

    def sync(uid: str) -> float | None:
        assert busy.acquire(blocking=False), "two workers on one pod"
        runs.append(len(runs))
        entered.set()
        go.wait(LONG)
        busy.release()
        if len(runs) == 2:
            done.set()
        return None

    workers = PodWorkers(sync)
    workers.start()
    workers.wake("a")
    assert entered.wait(LONG)
    for _ in range(5):
        workers.wake("a")
    go.set()
    assert done.wait(LONG) and runs == [0, 1]
    workers.stop()


def test_a_slow_pod_holds_up_no_other_and_a_mistake_ends_no_worker(caplog: Any) -> None:
    stuck, other = threading.Event(), threading.Event()

    def sync(uid: str) -> float | None:
        if uid == "slow":
            stuck.wait(LONG)
        elif uid == "broken":
            raise ValueError("a mistake")
        else:
            other.set()
        return None

    workers = PodWorkers(sync)
    workers.start()
    workers.wake("slow")
    workers.wake("broken")
    workers.wake("quick")
    assert other.wait(LONG)
    stuck.set()
    workers.stop()


def test_as_many_pods_are_worked_on_as_there_is_room_for_and_the_others_follow() -> None:
    go, all_in, done = threading.Event(), threading.Barrier(4), threading.Semaphore(0)
    lock, inside, most = threading.Lock(), [0], [0]

    def sync(uid: str) -> float | None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        if not go.is_set():
            all_in.wait(LONG)
            go.wait(LONG)
        with lock:
            inside[0] -= 1
        done.release()
        return None

    workers = PodWorkers(sync, crowd=Crowd(width=3, patience=10 * LONG))
    workers.start()
    for number in range(20):
        workers.wake(f"pod-{number}")
    all_in.wait(LONG)
    go.set()
    assert all(done.acquire(timeout=LONG) for _ in range(20)) and most[0] == 3
    workers.stop()


def test_pods_that_were_looked_at_before_take_turns_with_new_ones() -> None:
    first, blocked, go, done = (threading.Event() for _ in range(4))
    looks: list[str] = []

    def sync(uid: str) -> float | None:
        looks.append(uid)
        if uid == "blocker":
            blocked.set()
            go.wait(LONG)
        first.set()
        if len(looks) == 9:
            done.set()
        return None

    workers = PodWorkers(sync, crowd=Crowd(width=1, patience=10 * LONG))
    workers.start()
    workers.wake("old-1")
    assert first.wait(LONG)
    workers.wake("old-2")
    workers.wake("blocker")
    assert blocked.wait(LONG)
    for uid in ("new-1", "new-2", "new-3", "new-4", "old-1", "old-2"):
        workers.wake(uid)
    go.set()
    assert done.wait(LONG)
    assert looks[:3] == ["old-1", "old-2", "blocker"]
    places = [looks.index(uid, 3) for uid in ("old-1", "old-2")]
    assert places[1] - places[0] == 2 and places[1] <= 6, looks
    assert [uid for uid in looks[3:] if "new" in uid] == ["new-1", "new-2", "new-3", "new-4"]
    workers.stop()


def test_any_number_of_pods_that_wait_hold_up_no_other() -> None:
    stuck, other = threading.Event(), threading.Event()

    def sync(uid: str) -> float | None:
        stuck.wait(LONG) if uid != "quick" else other.set()
        return None

    workers = PodWorkers(sync, crowd=Crowd(width=2, patience=0.001))
    workers.start()
    for number in range(50):
        workers.wake(f"pod-{number}")
    workers.wake("quick")
    assert other.wait(LONG)
    stuck.set()
    workers.stop()


def test_a_wish_to_look_again_is_kept() -> None:
    looks: list[str] = []
    done = threading.Event()

    def sync(uid: str) -> float | None:
        looks.append(uid)
        if len(looks) == 3:
            done.set()
            return None
        return 0 if len(looks) == 1 else 0.001

    workers = PodWorkers(sync)
    workers.start()
    workers.wake("a")
    assert done.wait(LONG)
    workers.stop()


DOWN = ServerUnavailable.unreachable("down")


class Api:
    """Takes status patches; fails as often as told."""

    def __init__(self, failures: int = 0, error: ApiError = DOWN) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.failures, self.error = failures, error
        self.gate = threading.Event()
        self.gate.set()

    def patch(self, resource: object, name: str, body: dict[str, Any], namespace: str, **kind: str) -> object:
        self.gate.wait(LONG)
        if self.failures:
            self.failures -= 1
            raise self.error
        self.bodies.append(body)
        return {"metadata": {"resourceVersion": str(10 * len(self.bodies))}}


def manager(api: Api) -> StatusManager:
    made = StatusManager(api)  # type: ignore[arg-type]
    made.start()
    return made


def test_the_newest_status_is_sent_once_with_the_uid_as_precondition() -> None:
    api = Api()
    statuses = manager(api)
    statuses.set(pod(), {"phase": "Pending"}, soon=True)
    statuses.set(pod(), {"phase": "Running"})
    assert statuses.flush("u", LONG)
    statuses.set(pod(), {"phase": "Running"})
    assert statuses.flush("u", LONG)
    assert api.bodies == [{"metadata": {"uid": "u"}, "status": {"phase": "Running"}}]
    statuses.stop()


@pytest.mark.parametrize(("others", "seconds"), [(0, 0.15), (10, 0.55), (1000, 3.0)])
def test_a_status_of_a_pod_being_made_waits_longer_beside_many(others: int, seconds: float) -> None:
    assert hold_back(others) == pytest.approx(seconds)


def test_a_status_that_may_wait_does_not_put_off_the_one_before() -> None:
    now = [0.0]
    api, arrived = Api(), threading.Event()
    statuses = StatusManager(api, sent=lambda *_: arrived.set(), clock=lambda: now[0])  # type: ignore[arg-type]
    statuses.set(pod(), {"phase": "Pending"}, soon=True)
    now[0] = hold_back(0) / 2
    statuses.set(pod(), {"phase": "Pending", "hostIP": "192.0.2.1"}, soon=True)
    now[0] = hold_back(0)
    statuses.start()
    assert arrived.wait(LONG)
    assert api.bodies[0]["status"] == {"phase": "Pending", "hostIP": "192.0.2.1"}
    statuses.stop()


def test_others_that_wait_have_a_status_wait_longer() -> None:
    now = [0.0]
    api, arrived = Api(), threading.Event()
    statuses = StatusManager(api, sent=lambda *_: arrived.set(), clock=lambda: now[0])  # type: ignore[arg-type]
    for uid in ("a", "b"):
        statuses.set(
            {**pod(), "metadata": {**pod()["metadata"], "uid": uid}}, {"phase": "Pending"}, soon=True
        )
    now[0] = hold_back(0)
    statuses.set(pod(), {"phase": "Running"})
    statuses.start()
    assert arrived.wait(LONG)
    assert [body["metadata"]["uid"] for body in api.bodies] == ["u"]
    statuses.stop()


REFUSALS = [
    (503, "down", 1),
    (401, "Unauthorized", 1),
    (403, "no relationship found between node and this object", 1),
    (409, "the object has been modified; please apply your changes to the latest version", 1),
    (409, "Precondition failed: UID in precondition: u, UID in object meta: v", 0),
    (404, 'pods "p" not found', 0),
    (422, "status.phase: Invalid value", 0),
]


@pytest.mark.parametrize(("code", "message", "sent"), REFUSALS)
def test_only_what_the_api_will_never_take_is_given_up(
    code: int, message: str, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_manager, "RETRY", 0.01)
    api = Api(1, from_status({"code": code, "message": message}))
    statuses = manager(api)
    statuses.set(pod(), {"phase": "Running"})
    assert statuses.flush("u", LONG)
    assert len(api.bodies) == sent
    statuses.stop()


def test_what_the_api_did_not_take_is_sent_again() -> None:
    api = Api(failures=1)
    statuses = manager(api)
    statuses.set(pod(), {"phase": "Running"})
    assert statuses.flush("u", LONG)
    assert [body["status"] for body in api.bodies] == [{"phase": "Running"}]
    ((_, sent),) = statuses.instruments[0].rows()
    assert sent.count == 1 and sent.total >= 1.0, "from the change on, the failed try included"
    statuses.stop()


def shown(version: int, ready: str) -> dict[str, Any]:
    """The pod as the API has it, with another writer's condition."""
    conditions = [{"type": "Ready", "status": ready}, {"type": "Theirs", "status": "False"}]
    metadata = {**pod()["metadata"], "resourceVersion": str(version)}
    return {**pod(), "metadata": metadata, "status": {"conditions": conditions}}


def test_what_the_control_plane_wrote_over_a_status_is_corrected() -> None:
    """As of a node that was not heard of for a while: its pods are not Ready then."""
    api = Api()
    statuses = manager(api)
    ready = {"type": "Ready", "status": "True"}
    statuses.set(pod(), {"phase": "Running", "conditions": [ready]})
    assert statuses.flush("u", LONG)
    statuses.seen(shown(9, "False"))  # how it was before we said it: a watch tells late
    statuses.seen(shown(11, "True"))
    assert len(api.bodies) == 1
    statuses.seen(shown(12, "False"))
    assert statuses.flush("u", LONG)
    assert [body["status"]["conditions"] for body in api.bodies] == [[ready], [ready]]
    statuses.stop()


def test_what_was_overwritten_while_a_patch_was_on_its_way_is_looked_at_afterwards() -> None:
    api = Api()
    statuses = manager(api)
    ready, unready = ({"type": "Ready", "status": status} for status in ("True", "False"))
    statuses.set(pod(), {"conditions": [unready]})
    assert statuses.flush("u", LONG)
    api.gate.clear()
    statuses.set(pod(), {"conditions": [ready]})
    statuses.seen(shown(21, "False"))
    api.gate.set()
    assert statuses.flush("u", LONG)
    assert [body["status"]["conditions"] for body in api.bodies] == [[unready], [ready], [ready]]
    statuses.stop()


def test_a_machine_without_room_for_a_thread_loses_no_pod() -> None:
    done, refused = threading.Event(), threading.Event()
    now = [0.0]

    def refuse_once(work: Callable[[], None], name: str) -> None:
        if not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        spawn(work, name)

    workers = PodWorkers(lambda uid: done.set(), clock=lambda: now[0], spawn=refuse_once)
    workers.start()
    workers.wake("a")
    assert refused.is_set() and not done.is_set()
    now[0] = 10.0
    workers.wake("b")
    assert done.wait(LONG)
    workers.stop()
