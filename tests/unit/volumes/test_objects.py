"""What pods name, what watches tell of it, and how long tokens are kept."""

from __future__ import annotations

from typing import Any

import pytest

from kubeclient.errors import ServerUnavailable
from kubelet_py.errors import VolumeError
from kubelet_py.pods.context import ObjectSource, TokenSource
from kubelet_py.pods.model import timestamp
from kubelet_py.pods.object_watches import Handler, ObjectWatches
from kubelet_py.pods.references import Key, changes, references

Object = dict[str, Any]
MAP: Key = ("configmap", "ns", "m")
SECRET: Key = ("secret", "ns", "s")


def pod(**spec: Any) -> Object:
    return {"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": [], **spec}}


def test_every_place_where_a_pod_names_an_object() -> None:
    body = pod(
        volumes=[
            {"name": "a", "configMap": {"name": "one"}},
            {"name": "b", "secret": {"secretName": "two"}},
            {"name": "c", "projected": {"sources": [{"configMap": {"name": "three"}},
                                                    {"secret": {"name": "four"}},
                                                    {"serviceAccountToken": {"path": "t"}}]}},
            {"name": "d", "emptyDir": {}},
        ],
        containers=[{"envFrom": [{"configMapRef": {"name": "five"}}, {"secretRef": {"name": "six"}}]}],
        initContainers=[
            {
                "name": "i",
                "env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "seven", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "eight", "key": "k"}}},
                    {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
            }
        ],
    )  # fmt: skip
    maps = {("configmap", "ns", name) for name in ("one", "three", "five", "seven")}
    assert references(body) == maps | {("secret", "ns", name) for name in ("two", "four", "six", "eight")}
    assert changes(body)
    assert not changes(pod(volumes=[{"name": "d", "emptyDir": {}}]))


class Followed:
    """Stands for an informer of one object."""

    def __init__(self, handler: Handler) -> None:
        self.handler, self.state = handler, "new"

    def start(self) -> None:
        self.state = "started"

    def stop(self) -> None:
        self.state = "stopped"


class Lab:
    """ObjectWatches over a real ObjectSource and no API."""

    def __init__(self, client: Any = None) -> None:
        self.followed: dict[Key, Followed] = {}
        self.changed: list[Key] = []
        self.now = 0.0
        self.source = ObjectSource(client, clock=lambda: self.now)
        self.watches = ObjectWatches(self.source, self.follow, self.changed.append)

    def follow(self, key: Key, handler: Handler) -> Followed:
        self.followed[key] = Followed(handler)
        return self.followed[key]

    def tell(self, key: Key, kind: str, version: str, **more: Any) -> None:
        obj = {"metadata": {"name": key[2], "uid": "1", "resourceVersion": version}, **more}
        self.followed[key].handler(kind, obj, None)


def test_what_is_wanted_is_watched_and_nothing_else() -> None:
    lab = Lab()
    lab.watches.keep({MAP, SECRET})
    assert {f.state for f in lab.followed.values()} == {"started"}
    lab.watches.keep({MAP})
    assert [lab.followed[key].state for key in (MAP, SECRET)] == ["started", "stopped"]
    lab.tell(SECRET, "MODIFIED", "5")
    assert lab.changed == [], "what is told after that does not count"


def test_a_change_is_told_once_and_read_from_then_on() -> None:
    lab = Lab()
    lab.watches.keep({MAP})
    lab.tell(MAP, "ADDED", "1", data={"k": "old"})
    lab.tell(MAP, "MODIFIED", "1", data={"k": "old"})
    lab.tell(MAP, "MODIFIED", "2", data={"k": "new"})
    assert lab.changed == [MAP, MAP]
    lab.now += 1000
    assert (lab.source.get(*MAP) or {})["data"] == {"k": "new"}
    lab.tell(MAP, "DELETED", "3")
    assert lab.source.get(*MAP) is None and len(lab.changed) == 3


def test_secrets_are_told_decoded() -> None:
    lab = Lab()
    lab.watches.keep({SECRET})
    lab.tell(SECRET, "ADDED", "1", data={"k": "aHVudGVyMg=="})
    assert (lab.source.get(*SECRET) or {})["data"] == {"k": "hunter2"}


def test_what_is_immutable_is_not_watched() -> None:
    lab = Lab()
    lab.watches.keep({MAP})
    first = lab.followed[MAP]
    lab.tell(MAP, "ADDED", "1", immutable=True, data={"k": "v"})
    assert first.state == "stopped" and lab.watches.followed() == set()
    lab.watches.keep({MAP})
    assert lab.followed[MAP] is first, "not while a pod names it"
    lab.watches.keep(set())
    lab.watches.keep({MAP})
    assert lab.followed[MAP] is not first, "a new pod may mean a new object of that name"


class Api:
    """Gives tokens of a life of its own choice, or none while it is down."""

    def __init__(self, life: int) -> None:
        self.life, self.now, self.down, self.given = life, 1000.0, False, 0

    def create(self, resource: Any, body: Object, namespace: str, **_: Any) -> Object:
        if self.down:
            raise ServerUnavailable.unreachable("no answer")
        self.given += 1
        ends = timestamp(self.now + self.life)
        return {"spec": {"expirationSeconds": self.life},
                "status": {"token": f"token-{self.given}", "expirationTimestamp": ends}}  # fmt: skip


@pytest.mark.parametrize(("life", "renewed"), [(3600, 2880), (600, 480), (1_000_000, 86_400)])
def test_a_token_is_renewed_at_four_fifths_of_its_life_or_after_a_day(life: int, renewed: int) -> None:
    api = Api(life)
    tokens = TokenSource(api, clock=lambda: api.now)  # type: ignore[arg-type]
    assert tokens.token(pod(), "", 3600) == "token-1"
    api.now += renewed - 1
    assert not tokens.due() and tokens.token(pod(), "", 3600) == "token-1"
    api.now += 1
    assert tokens.due() == {"u"} and tokens.token(pod(), "", 3600) == "token-2"
    assert tokens.token(pod(), "vault", 3600) == "token-3", "another audience, another token"
    api.now += renewed
    tokens.forget("u")
    assert not tokens.due()


def test_a_token_that_cannot_be_renewed_is_kept_while_it_is_valid() -> None:
    api = Api(600)
    tokens = TokenSource(api, clock=lambda: api.now)  # type: ignore[arg-type]
    tokens.token(pod(), "", 600)
    api.down = True
    api.now += 599
    assert tokens.token(pod(), "", 600) == "token-1"
    api.now += 1
    with pytest.raises(VolumeError, match="failed to fetch token"):
        tokens.token(pod(), "", 600)
