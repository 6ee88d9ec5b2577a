"""Pulls: nobody waits for one, the pod is woken, and whoever wants the same image finds it."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pods_in_words import NOW, pod

from kubelet_py.errors import ImageError, ImagePulling
from kubelet_py.pods.image_puller import ImagePuller
from runtime.images.errors import RegistryUnavailable

LONG = 5.0


class Store:
    def __init__(self) -> None:
        self.images: dict[str, Any] = {}

    def lookup(self, name: str) -> Any:
        return self.images.get(name)


class Registry:
    """Every fetch waits until the test says what becomes of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.outcomes: queue.Queue[Exception | None] = queue.Queue()
        self.fetches: list[str] = []

    def fetch(self, store: Any, pod: Any, name: str, secrets: Any) -> Any:
        self.fetches.append(name)
        outcome = self.outcomes.get(timeout=LONG)
        if outcome is not None:
            raise outcome
        self.store.images[name] = SimpleNamespace(name=name, size=5)
        return self.store.images[name]


class Bench:
    def __init__(self, at_once: int = 0) -> None:
        self.store = Store()
        self.registry = Registry(self.store)
        self.now = NOW
        self.woken: queue.Queue[str] = queue.Queue()
        self.events: list[str] = []
        self.said: list[str] = []
        self.puller = ImagePuller(
            self.store,  # type: ignore[arg-type]
            self.woken.put,
            clock=lambda: self.now,
            fetch=self.registry.fetch,
            at_once=at_once,
        )

    def ensure(
        self,
        name: str = "c",
        policy: str = "IfNotPresent",
        uid: str = "u",
        image: str = "big",
        secrets: Any = (),
    ) -> Any:
        body = pod(name)
        body["metadata"]["uid"] = uid
        body["spec"]["imagePullSecrets"] = secrets
        container = {"name": name, "image": image, "imagePullPolicy": policy}
        return self.puller.ensure(body, container, self.tell, {"here": {"data": {}}}.get)

    def tell(self, kind: str, reason: str, text: str) -> None:
        self.events.append(reason)
        self.said.append(text)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench()


def test_a_pull_holds_nobody_and_wakes_its_pod(bench: Bench) -> None:
    for _ in range(3):
        with pytest.raises(ImagePulling):
            bench.ensure()
    bench.registry.outcomes.put(None)
    assert bench.woken.get(timeout=LONG) == "u"
    assert bench.ensure().name == "big" and bench.registry.fetches == ["big"]
    assert bench.events == ["Pulling", "Pulled"]


def test_a_missing_pull_secret_is_told_and_the_pull_tried_without_it(bench: Bench) -> None:
    names = [{"name": name} for name in ("gone", "here", "lost")]
    with pytest.raises(ImagePulling):
        bench.ensure(secrets=[*names, {}])
    bench.registry.outcomes.put(None)
    bench.woken.get(timeout=LONG)
    assert bench.ensure(secrets=names).name == "big"
    assert bench.events == ["Pulling", "FailedToRetrieveImagePullSecret", "Pulled"]
    assert bench.said[1] == (
        "Unable to retrieve some image pull secrets (gone, lost); "
        "attempting to pull the image may not succeed."
    )


def test_always_pulls_once_for_every_start(bench: Bench) -> None:
    for count in (1, 2):
        with pytest.raises(ImagePulling):
            bench.ensure(policy="Always")
        bench.registry.outcomes.put(None)
        bench.woken.get(timeout=LONG)
        assert bench.ensure(policy="Always").name == "big"
        assert len(bench.registry.fetches) == count


def test_two_containers_share_one_pull(bench: Bench) -> None:
    for name in ("a", "b"):
        with pytest.raises(ImagePulling):
            bench.ensure(name)
    bench.registry.outcomes.put(None)
    assert {bench.woken.get(timeout=LONG), bench.woken.get(timeout=LONG)} == {"u"}
    assert bench.ensure("a").name == bench.ensure("b").name == "big"
    assert bench.registry.fetches == ["big"]


def test_a_failure_is_told_once_and_then_held_back(bench: Bench) -> None:
    with pytest.raises(ImagePulling):
        bench.ensure()
    bench.registry.outcomes.put(RegistryUnavailable("refused"))
    bench.woken.get(timeout=LONG)
    with pytest.raises(ImageError) as first:
        bench.ensure()
    with pytest.raises(ImageError) as second:
        bench.ensure()
    assert (first.value.reason, second.value.reason) == ("ErrImagePull", "ImagePullBackOff")
    bench.now += 11
    with pytest.raises(ImagePulling):
        bench.ensure()
    bench.registry.outcomes.put(None)


def test_a_defect_is_a_failed_pull_and_not_a_pod_that_waits_for_ever(bench: Bench) -> None:
    with pytest.raises(ImagePulling):
        bench.ensure()
    bench.registry.outcomes.put(ZeroDivisionError("a mistake"))
    bench.woken.get(timeout=LONG)
    with pytest.raises(ImageError, match="a mistake"):
        bench.ensure()


def test_nothing_is_kept_of_a_pod_that_went_during_its_pull(bench: Bench) -> None:
    with pytest.raises(ImagePulling):
        bench.ensure()
    bench.puller.forget("u")
    bench.registry.outcomes.put(RegistryUnavailable("refused"))
    assert bench.woken.get(timeout=LONG) == "u"
    assert bench.puller.retry_at(pod(), "big") is None
    with pytest.raises(ImagePulling):
        bench.ensure()
    bench.registry.outcomes.put(None)
    assert threading.active_count() < 50


@pytest.mark.parametrize(("at_once", "begun"), [(1, 1), (2, 2), (0, 3)])
def test_so_many_images_are_fetched_at_the_same_time(at_once: int, begun: int) -> None:
    bench = Bench(at_once)
    names = ("a", "b", "c")
    for name in names:
        with pytest.raises(ImagePulling):
            bench.ensure(name, image=name)
    settled = threading.Event()
    for _ in range(500):
        if len(bench.registry.fetches) >= begun:
            break
        settled.wait(0.01)
    settled.wait(0.05)  # one more would come now
    assert len(bench.registry.fetches) == begun
    for _ in names:
        bench.registry.outcomes.put(None)
    for _ in names:
        bench.woken.get(timeout=LONG)
    assert sorted(bench.registry.fetches) == [*names]
