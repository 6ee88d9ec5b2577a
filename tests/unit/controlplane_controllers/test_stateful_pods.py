"""The order in which a StatefulSet makes, removes and replaces its pods; no identity is there twice."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.controllers.stamps import seconds
from controlplane.controllers.stateful_pods import (
    claim_owner,
    make_claims,
    make_pod,
    ordinal_of,
    plan,
    revision_for,
    status,
)

Object = dict[str, Any]
NOW = seconds("2026-01-01T01:00:00Z")


def stateful_set(replicas: int = 3, **spec: Any) -> Object:
    labels = {"app": "web"}
    body = {"replicas": replicas, "selector": {"matchLabels": labels}, "serviceName": "peers", **spec}
    metadata = {"name": "web", "namespace": "default", "uid": "u", "generation": 2}
    return {"metadata": metadata, "spec": body}


def pod(word: str = "ready", revision: str = "new") -> Object:
    """`word`: ready, unready, pending, ending, failed, or fresh (ready for ten seconds)."""
    since = "2026-01-01T00:59:50Z" if word == "fresh" else "2026-01-01T00:00:00Z"
    ready = "True" if word in ("ready", "fresh", "ending") else "False"
    phase = {"pending": "Pending", "failed": "Failed"}.get(word, "Running")
    conditions = [{"type": "Ready", "status": ready, "lastTransitionTime": since}]
    metadata: Object = {"name": word, "uid": word, "labels": {"controller-revision-hash": revision}}
    if word == "ending":
        metadata["deletionTimestamp"] = "now"
    return {"metadata": metadata, "spec": {}, "status": {"phase": phase, "conditions": conditions}}


def pods(*words: str, first: int = 0) -> dict[int, Object]:
    """`old` before a word: of another revision. "-" is no pod."""
    made = {}
    for ordinal, word in enumerate(words, first):
        if word != "-":
            revision = "old" if word.startswith("old ") else "new"
            made[ordinal] = pod(word.removeprefix("old "), revision)
            made[ordinal]["metadata"]["name"] = str(ordinal)
    return made


def steps(wanted: Object, present: dict[int, Object]) -> tuple[list[int], list[int]]:
    found = plan(wanted, present, "new", NOW)
    return list(found.create), [int(p["metadata"]["name"]) for p in found.delete]


PARALLEL = {"podManagementPolicy": "Parallel"}
PARTITION = {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}
ON_DELETE = {"updateStrategy": {"type": "OnDelete"}}


@pytest.mark.parametrize(
    ("spec", "present", "create", "delete"),
    [
        # Growing, in order.
        ({}, [], [0], []),
        ({}, ["pending"], [], []),
        ({}, ["unready"], [], []),
        ({}, ["ready"], [1], []),
        ({"minReadySeconds": 30}, ["fresh"], [], []),
        ({"minReadySeconds": 5}, ["fresh"], [1], []),
        ({}, ["ready", "-", "ready"], [1], []),
        # One that is ending still has its identity, wherever it is.
        ({}, ["ending"], [], []),
        ({}, ["ready", "ending", "ready"], [], []),
        (PARALLEL, ["ready", "ending", "ready"], [], []),
        # One that finished is replaced.
        ({}, ["failed", "ready", "ready"], [], [0]),
        (PARALLEL, ["failed", "-", "ready"], [1], [0]),
        # All at once.
        (PARALLEL, [], [0, 1, 2], []),
        (PARALLEL, ["unready"], [1, 2], []),
        # Shrinking: the highest first, one after the other, and only while the others are well.
        ({"replicas": 1}, ["ready", "ready", "ready"], [], [2]),
        ({"replicas": 1}, ["ready", "ready", "ending"], [], []),
        ({"replicas": 1}, ["unready", "ready", "ready"], [], []),
        ({"replicas": 1}, ["ready", "ready", "unready"], [], [2]),
        ({"replicas": 1}, ["ready", "unready", "unready"], [], []),
        ({"replicas": 1, **PARALLEL}, ["unready", "ready", "ready"], [], [2, 1]),
        ({"replicas": 0}, ["ready"], [], [0]),
        # Rolling: from the top, each when those above are well.
        ({}, ["old ready", "old ready", "old ready"], [], [2]),
        ({}, ["old ready", "old ready", "unready"], [], []),
        ({}, ["old ready", "old ready", "ready"], [], [1]),
        (PARALLEL, ["old ready", "old ready", "unready"], [], []),
        (PARTITION, ["old ready", "old ready", "old ready"], [], [2]),
        (PARTITION, ["old ready", "old ready", "ready"], [], []),
        (ON_DELETE, ["old ready", "old ready", "old ready"], [], []),
        ({}, ["ready", "ready", "ready"], [], []),
    ],
)
def test_the_next_step(spec: Object, present: list[str], create: list[int], delete: list[int]) -> None:
    assert steps(stateful_set(**spec), pods(*present)) == (create, delete)


def test_ordinals_may_start_elsewhere() -> None:
    moved = stateful_set(2, ordinals={"start": 5})
    assert steps(moved, {}) == ([5], [])
    assert steps(moved, pods("ready", "ready", first=5)) == ([], [])
    assert steps(moved, {**pods("ready"), **pods("ready", "ready", first=5)}) == ([], [0])


@pytest.mark.parametrize(
    ("name", "ordinal"),
    [("web-0", 0), ("web-12", 12), ("web-01", None), ("web-x", None), ("web", None), ("a-web-1", None)],
)
def test_which_names_are_identities(name: str, ordinal: int | None) -> None:
    assert ordinal_of("web", name) == ordinal


def test_those_below_the_partition_keep_the_current_revision() -> None:
    chosen = [revision_for(stateful_set(**PARTITION), n, "old", "new") for n in range(3)]
    assert chosen == ["old", "old", "new"]
    assert revision_for(stateful_set(), 0, "old", "new") == "new"
    assert revision_for(stateful_set(**ON_DELETE), 0, "old", "new") == "new"


def test_a_pod_has_its_names_and_its_own_claims() -> None:
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [], "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp"}]},
    }
    claims = [{"metadata": {"name": "data"}, "spec": {"storageClassName": "s"}}]
    made = make_pod(stateful_set(volumeClaimTemplates=claims), template, 1, "r")
    metadata, spec = made["metadata"], made["spec"]
    assert metadata["name"] == spec["hostname"] == "web-1" and "generateName" not in metadata
    assert metadata["labels"] == {
        "app": "web",
        "statefulset.kubernetes.io/pod-name": "web-1",
        "apps.kubernetes.io/pod-index": "1",
        "controller-revision-hash": "r",
    }
    assert metadata["ownerReferences"][0]["kind"] == "StatefulSet" and spec["subdomain"] == "peers"
    assert spec["volumes"] == [
        {"name": "tmp"},
        {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-1"}},
    ]
    (claim,) = make_claims(stateful_set(volumeClaimTemplates=claims), 1)
    assert claim["metadata"] == {"name": "data-web-1", "labels": {"app": "web"}}
    assert claims[0]["metadata"] == {"name": "data"}, "the template is as before"


@pytest.mark.parametrize(
    ("scaled", "deleted", "kinds"),
    [
        ("Retain", "Retain", [None, None]),
        ("Retain", "Delete", ["StatefulSet", "StatefulSet"]),
        ("Delete", "Retain", [None, "Pod"]),
        ("Delete", "Delete", ["StatefulSet", "Pod"]),
    ],
)
def test_who_takes_the_claims_along(scaled: str, deleted: str, kinds: list[str | None]) -> None:
    """Of a pod that stays (0) and of one that is over the number (1)."""
    policy = {"whenScaled": scaled, "whenDeleted": deleted}
    wanted = stateful_set(1, persistentVolumeClaimRetentionPolicy=policy)
    owners = [claim_owner(wanted, n, p) for n, p in pods("ready", "ready").items()]
    assert [owner and owner["kind"] for owner in owners] == kinds


def test_the_status_counts_revisions_and_ends_an_update() -> None:
    during = status(stateful_set(), [*pods("old ready", "unready", "fresh").values()], "old", "new", NOW)
    assert during == {
        "observedGeneration": 2,
        "collisionCount": 0,
        "currentRevision": "old",
        "updateRevision": "new",
        "replicas": 3,
        "readyReplicas": 2,
        "availableReplicas": 2,
        "currentReplicas": 1,
        "updatedReplicas": 2,
    }
    over = status(stateful_set(), [*pods("ready", "ready", "ready").values()], "old", "new", NOW)
    assert (over["currentRevision"], over["currentReplicas"]) == ("new", 3)
    assert status(stateful_set(0), [], "old", "new", NOW)["replicas"] == 0
