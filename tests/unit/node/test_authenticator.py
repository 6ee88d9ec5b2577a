"""Bearer tokens: asked about once, remembered for a while, refused without an answer."""

from __future__ import annotations

from typing import Any

from kubeclient.errors import ServerUnavailable
from kubeclient.resources import TOKEN_REVIEWS, Resource
from kubelet_py.node.authenticator import KNOWN_SECONDS, MOST, REFUSED_SECONDS, TokenAuthenticator
from kubelet_py.server.access import Identity

MONITOR = {"username": "system:serviceaccount:m:prom", "groups": ["system:serviceaccounts"], "uid": "u"}


class Api:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.known: dict[str, Any] = {"good": MONITOR}
        self.up = True

    def create(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        assert resource == TOKEN_REVIEWS
        if not self.up:
            raise ServerUnavailable.unreachable("down")
        token = body["spec"]["token"]
        self.asked.append(token)
        user = self.known.get(token)
        return {"status": {"authenticated": True, "user": user} if user else {"error": "unknown"}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_counts_for_a_while_and_a_refusal_shortly() -> None:
    api, clock = Api(), Clock()
    whose = TokenAuthenticator(api, clock=clock)  # type: ignore[arg-type]
    wanted = Identity("system:serviceaccount:m:prom", ("system:serviceaccounts",))
    assert [whose("good"), whose("good"), whose("bad"), whose("bad")] == [wanted, wanted, None, None]
    assert api.asked == ["good", "bad"]
    clock.now = REFUSED_SECONDS
    api.known["bad"] = MONITOR
    assert whose("bad") == wanted, "the token was younger than the first answer"
    clock.now = KNOWN_SECONDS
    del api.known["good"]
    assert whose("good") is None, "it was taken back"
    assert api.asked == ["good", "bad", "bad", "good"]


def test_without_an_answer_nobody_is_known_and_it_is_asked_again() -> None:
    api = Api()
    whose = TokenAuthenticator(api, clock=Clock())  # type: ignore[arg-type]
    api.up = False
    assert whose("good") is None
    api.up = True
    assert whose("good") is not None
    assert TokenAuthenticator(None)("good") is None


def test_strangers_cannot_fill_the_memory() -> None:
    api = Api()
    whose = TokenAuthenticator(api, clock=Clock())  # type: ignore[arg-type]
    for number in range(MOST + 5):
        whose(f"guess-{number}")
    assert len(whose._answers) == MOST
    api.asked.clear()
    whose(f"guess-{MOST + 4}")
    whose("guess-0")
    assert api.asked == ["guess-0"], "the oldest were forgotten"
