"""From the runtime's events and lists to a pod's worker that is waked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kubelet_py.pods.pleg import RELIST_SECONDS, Pleg
from runtime.service import Event


class Runtime:
    """What Pleg asks of the runtime service."""

    def __init__(self, pods: int) -> None:
        self.sandboxes = [
            SimpleNamespace(id=f"s{number}", config=SimpleNamespace(uid=f"u{number}"))
            for number in range(pods)
        ]
        self.tell: Any = None

    def list_sandboxes(self) -> list[Any]:
        return self.sandboxes

    def subscribe(self, callback: Any) -> None:
        self.tell = callback


def test_a_relist_has_every_pod_looked_at_and_not_all_at_once() -> None:
    woken: list[str] = []
    later: dict[str, float] = {}
    pleg = Pleg(Runtime(500), lambda _: (), woken.append, later.__setitem__)  # type: ignore[arg-type]
    pleg.relist()
    assert woken == [] and set(later) == {f"u{number}" for number in range(500)}
    assert all(0 <= seconds < RELIST_SECONDS for seconds in later.values()), "before the next relist"
    in_one_second = [sum(1 for at in later.values() if at // 1 == second) for second in range(30)]
    assert max(in_one_second) <= 26


def test_an_event_wakes_its_pod_at_once() -> None:
    woken: list[str] = []
    runtime = Runtime(3)
    pleg = Pleg(runtime, lambda _: (), woken.append, lambda uid, seconds: None)  # type: ignore[arg-type]
    pleg.start()
    runtime.tell(Event("s1", "c", "exited", 0, 0.0))
    runtime.tell(Event("gone", "c", "exited", 0, 0.0))
    pleg.stop()
    assert woken == ["u1"]


def attempt(number: int, created_at: float) -> Any:
    config = SimpleNamespace(name="c", attempt=number, image="", image_id="", annotations={})
    times = {"created_at": created_at, "started_at": created_at, "finished_at": None, "exit_code": None}
    return SimpleNamespace(
        id=f"c{number}", sandbox_id="s0", config=config, state="RUNNING", reason="", message="", **times
    )


def test_a_clock_that_was_set_back_makes_no_new_attempt_old() -> None:
    config = SimpleNamespace(uid="u0", attempt=0, cgroup_parent="", host_network=False)
    sandbox = SimpleNamespace(id="s0", state="NOTREADY", created_at=0.0, netns="", config=config)
    held = [attempt(0, created_at=5000.0), attempt(1, created_at=1000.0)]
    runtime = SimpleNamespace(list_sandboxes=lambda: [sandbox], list_containers=lambda: held)
    pleg = Pleg(runtime, lambda _: (), lambda _: None, lambda *_: None)  # type: ignore[arg-type]
    assert [c.attempt for c in pleg.view("u0").containers] == [1, 0]
