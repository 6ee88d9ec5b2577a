"""Who is let in on port 10250, what is remembered of it, and how it is configured."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from kubelet_py.config import from_document
from kubelet_py.errors import ConfigError
from kubelet_py.server import access_settings
from kubelet_py.server.access import ANONYMOUS, Access, Identity, ReviewError, subresources
from kubelet_py.server.access_settings import AccessSettings
from kubelet_py.server.errors import HttpError

ROBOT = Identity("system:serviceaccount:d:robot", ("system:serviceaccounts", "system:authenticated"), "u1")
END = ssl.cert_time_to_seconds("Nov 27 00:00:00 2030 GMT")
PEER = {
    "subject": ((("organizationName", "team"),), (("commonName", "jane"),)),
    "notAfter": "Nov 27 00:00:00 2030 GMT",
}


class Api:
    """Answers by two tables, counts the questions; `down` answers none."""

    def __init__(self) -> None:
        self.tokens = {"good": ROBOT}
        self.allowed = {
            ("jane", "get", "metrics"),
            (ROBOT.name, "get", "pods"),
            (ROBOT.name, "create", "proxy"),
        }
        self.questions: list[tuple[str, ...]] = []
        self.down = False

    def whose_token(self, token: str) -> Identity | None:
        self._count("token", token)
        return self.tokens.get(token)

    def may(self, who: Identity, verb: str, subresource: str) -> bool:
        self._count(who.name, verb, subresource)
        return (who.name, verb, subresource) in self.allowed

    def _count(self, *question: str) -> None:
        self.questions.append(question)
        if self.down:
            raise ReviewError("connection refused")


class Door:
    def __init__(self, **settings: Any) -> None:
        self.api, self.now = Api(), 1000.0
        clock = lambda: self.now  # noqa: E731
        self.control = Access(AccessSettings(**settings), self.api, clock=clock, ticks=clock)

    def enter(self, authorization: str = "", peer: Any = None) -> Identity | int:
        try:
            return self.control.authenticate(peer, authorization)
        except HttpError as error:
            return error.code

    def code(self, who: Identity, verb: str, path: str) -> int:
        try:
            self.control.authorize(who, verb, path)
        except HttpError as error:
            return error.code
        return 200


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/stats/summary", ("stats",)),
        ("/metrics", ("metrics",)),
        ("/metrics/cadvisor", ("metrics",)),
        ("/logs/", ("log",)),
        ("/spec", ("spec",)),
        ("/checkpoint/a/b/c", ("checkpoint",)),
        ("/pods", ("pods", "proxy")),
        ("/runningpods/", ("pods", "proxy")),
        ("/healthz/ping", ("healthz", "proxy")),
        ("/configz", ("configz", "proxy")),
        ("/exec/a/b/c", ("proxy",)),
        ("/containerLogs/a/b/c", ("proxy",)),
        ("/podsandmore", ("proxy",)),
        ("/", ("proxy",)),
    ],
)
def test_each_path_is_a_subresource_of_the_node(path: str, names: tuple[str, ...]) -> None:
    assert subresources(path) == names


def test_a_certificate_names_its_user_until_its_end() -> None:
    door = Door()
    assert door.enter(peer=PEER) == Identity("jane", ("team", "system:authenticated"))
    assert door.enter("Bearer bad", PEER) == Identity("jane", ("team", "system:authenticated"))
    door.now = END
    assert door.enter(peer=PEER) == 401, "the connection outlived it"
    nameless = {"subject": ((("organizationName", "x"),),), "notAfter": PEER["notAfter"]}
    door.now = 0.0
    assert door.enter(peer=nameless) == 401
    assert door.api.questions == []


def test_tokens_are_asked_about_once_in_two_minutes() -> None:
    door = Door()
    assert door.enter("Bearer good") == ROBOT and door.enter("Bearer good") == ROBOT
    assert door.enter("Bearer bad") == 401 and door.enter("Bearer bad") == 401
    assert door.api.questions == [("token", "good"), ("token", "bad")]
    door.api.tokens["bad"] = ROBOT
    door.now += 5
    assert door.enter("Bearer bad") == ROBOT, "it was too young a moment ago"
    door.now += 114
    assert door.enter("Bearer good") == ROBOT and len(door.api.questions) == 3
    del door.api.tokens["good"]
    door.now += 1
    assert door.enter("Bearer good") == 401


def test_strangers_and_other_schemes_get_in_only_where_that_is_wanted() -> None:
    assert Door().enter() == 401 and Door().enter("Basic x") == 401
    assert Door(webhook=False).enter("Bearer good") == 401
    assert Door(anonymous=True).enter() == ANONYMOUS
    assert Door(anonymous=True).enter("Bearer bad") == 401, "who shows bad credentials is not a stranger"


def test_one_allowed_subresource_is_enough() -> None:
    door = Door()
    assert door.code(ROBOT, "get", "/pods") == 200
    assert door.api.questions == [(ROBOT.name, "get", "pods")]
    assert door.code(ROBOT, "get", "/configz") == 403
    assert door.api.questions[1:] == [(ROBOT.name, "get", "configz"), (ROBOT.name, "get", "proxy")]
    assert door.code(ROBOT, "create", "/exec/a/b/c") == 200
    assert door.code(ROBOT, "get", "/exec/a/b/c") == 403


def test_a_yes_is_remembered_longer_than_a_no() -> None:
    door, jane = Door(), Identity("jane")
    assert door.code(jane, "get", "/metrics") == 200 and door.code(jane, "get", "/stats") == 403
    door.api.allowed = {("jane", "get", "stats")}
    door.now += 29
    assert door.code(jane, "get", "/stats") == 403
    door.now += 1
    assert door.code(jane, "get", "/stats") == 200, "asked again after 30 s"
    assert door.code(jane, "get", "/metrics") == 200
    door.now += 270
    assert door.code(jane, "get", "/metrics") == 403, "asked again after 5 min"


def test_groups_are_part_of_what_is_remembered() -> None:
    door = Door()
    assert door.code(Identity("jane"), "get", "/metrics") == 200
    door.api.allowed = set()
    assert door.code(Identity("jane", ("other",)), "get", "/metrics") == 403


def test_silence_of_the_api_server_is_no_yes_and_is_not_remembered() -> None:
    door, jane = Door(), Identity("jane")
    door.api.down = True
    assert door.enter("Bearer good") == 401
    assert door.code(jane, "get", "/metrics") == 500
    door.api.down = False
    assert door.enter("Bearer good") == ROBOT
    assert door.code(jane, "get", "/metrics") == 200


def test_masters_and_always_allow_are_not_asked_about() -> None:
    door = Door()
    assert door.code(Identity("admin", ("system:masters",)), "delete", "/pods") == 200
    assert Door(always_allow=True).code(Identity("jane"), "get", "/pods") == 200
    assert door.api.questions == []


def test_settings_are_read_with_upstreams_defaults() -> None:
    assert access_settings.read({}, {}) == AccessSettings()
    assert access_settings.read({"webhook": {"cacheTTL": "0s"}}, {}) == AccessSettings(), "that is not set"
    document = {
        "authentication": {
            "x509": {"clientCAFile": "/ca"},
            "webhook": {"enabled": False, "cacheTTL": "1m"},
            "anonymous": {"enabled": True},
        },
        "authorization": {
            "mode": "AlwaysAllow",
            "webhook": {"cacheAuthorizedTTL": "1s", "cacheUnauthorizedTTL": "5s"},
        },
    }
    config = from_document(document)
    found = access_settings.read(config.authentication, config.authorization)
    assert found == AccessSettings("/ca", False, True, True, 60.0, 1.0, 5.0)


@pytest.mark.parametrize(
    ("section", "value", "says"),
    [
        ("authentication", {"x509": {"clientCA": "/ca"}}, "unknown keys authentication.x509.clientCA"),
        ("authentication", {"tokens": {}}, "unknown keys authentication.tokens"),
        (
            "authentication",
            {"webhook": {"enabled": "yes"}},
            "authentication.webhook.enabled must be of type bool",
        ),
        ("authentication", {"webhook": []}, ""),
        ("authentication", {"webhook": ["x"]}, "authentication.webhook must be of type dict"),
        ("authentication", {"webhook": {"cacheTTL": "soon"}}, "Could not read duration"),
        ("authorization", {"mode": "RBAC"}, "authorization.mode 'RBAC'"),
        ("authorization", "Webhook", "authorization must be of type dict"),
    ],
)
def test_settings_that_mean_nothing_are_refused(section: str, value: Any, says: str) -> None:
    if not says:
        from_document({section: value})
        return
    with pytest.raises(ConfigError, match=says):
        from_document({section: value})
