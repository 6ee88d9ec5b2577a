from __future__ import annotations

import pytest

from controlplane.controllers.rollout import (
    SetView,
    bounds,
    proportional,
    recreate,
    rolling_update,
    same_template,
    template_hash,
)


def view(name: str, wanted: int, available: int | None = None, created: str = "") -> SetView:
    available = wanted if available is None else available
    return SetView(name, wanted, available, available, wanted, created)


def rolling(replicas: int, surge: int | str, unavailable: int | str) -> dict:
    return {
        "replicas": replicas,
        "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
    }


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (rolling(10, "25%", "25%"), (3, 2)),  # surge rounds up, unavailable down
        (rolling(3, "25%", "25%"), (1, 0)),
        (rolling(1, 0, "25%"), (0, 1)),  # both zero would stand still
        (rolling(4, 2, 9), (2, 4)),
        ({"replicas": 4}, (1, 1)),
    ],
)
def test_percentages_round_away_from_risk(spec, expected) -> None:
    assert bounds(spec) == expected


@pytest.mark.parametrize(
    ("spec", "new", "old", "expected"),
    [
        (rolling(3, 1, 0), view("n", 0), [view("o", 3)], {"n": 1}),
        (rolling(3, 1, 0), view("n", 1, 0), [view("o", 3)], {}),  # waits for the new one
        (rolling(3, 1, 0), view("n", 1), [view("o", 3)], {"o": 2}),
        (rolling(3, 1, 0), view("n", 3), [view("o", 1)], {"o": 0}),
        (rolling(4, 0, "50%"), view("n", 0), [view("o", 4)], {"o": 2}),
        (rolling(2, 1, 0), view("n", 3), [], {"n": 2}),  # scaled down meanwhile
        (rolling(3, 1, 0), view("n", 1, 0), [view("o", 3, 1)], {}),
        (rolling(4, 1, 1), view("n", 1, 1), [view("o", 4, 2)], {"o": 2}),  # sick old ones go first
    ],
)
def test_one_step_of_a_rolling_update(spec, new, old, expected) -> None:
    assert rolling_update(spec, new, old) == expected


@pytest.mark.parametrize(
    "spec", [rolling(5, 1, 0), rolling(5, 0, 1), rolling(10, "25%", "25%"), rolling(1, 1, 0)]
)
def test_a_rollout_ends_and_never_breaks_its_bounds(spec) -> None:
    replicas, (surge, unavailable) = spec["replicas"], bounds(spec)
    sizes = {"n": 0, "o": replicas}
    for _ in range(100):
        changes = rolling_update(spec, view("n", sizes["n"]), [view("o", sizes["o"])])
        if not changes:
            break
        sizes |= changes
        assert replicas - unavailable <= sum(sizes.values()) <= replicas + surge
    assert sizes == {"n": replicas, "o": 0}


def test_recreate_waits_for_the_last_old_pod() -> None:
    spec = {"replicas": 2}
    assert recreate(spec, view("n", 0), [view("o", 2)], 2) == {"o": 0}
    assert recreate(spec, view("n", 0), [view("o", 0)], 1) == {}
    assert recreate(spec, view("n", 0), [view("o", 0)], 0) == {"n": 2}


@pytest.mark.parametrize(
    ("replicas", "surge", "sets", "total"),
    [
        (10, 3, [view("a", 5), view("b", 8)], 13),
        (20, 5, [view("a", 6), view("b", 5)], 25),
        (4, 1, [view("a", 9)], 4),
    ],
)
def test_scaling_in_the_middle_of_a_rollout_keeps_the_shares(replicas, surge, sets, total) -> None:
    sizes = {v.name: v.wanted for v in sets} | proportional(replicas, surge, sets)
    assert sum(sizes.values()) == total


def test_half_a_pod_is_rounded_up_and_the_largest_set_makes_up_for_it() -> None:
    sets = [view("a", 5, created="1"), view("b", 5, created="2"), view("c", 10, created="3")]
    assert proportional(18, 0, sets) == {"c": 8}  # 9 + 4.5 + 4.5: both halves up, one too many


def test_of_equal_sets_the_newer_one_grows_first_and_the_older_one_shrinks_first() -> None:
    sets = [view("a", 5, created="1"), view("b", 5, created="2")]
    assert proportional(25, 0, sets) == {"b": 13, "a": 12}
    assert proportional(9, 0, sets) == {"a": 4}


def test_the_hash_ignores_key_order_and_counts_collisions() -> None:
    assert template_hash({"a": 1, "b": 2}) == template_hash({"b": 2, "a": 1})
    assert template_hash({"a": 1}) != template_hash({"a": 1}, 1)


def test_templates_are_compared_without_their_hash_label() -> None:
    plain = {"metadata": {"labels": {"app": "a"}}, "spec": {}}
    hashed = {"metadata": {"labels": {"app": "a", "pod-template-hash": "x"}}, "spec": {}}
    assert same_template(plain, hashed)
    assert not same_template(plain, {"metadata": {"labels": {"app": "b"}}, "spec": {}})


def test_a_step_made_again_after_half_of_it_was_written_changes_only_the_other_half() -> None:
    sized = SetView("a", 14, 8, 8, 8, "1", maximum=23)
    not_yet = SetView("b", 5, 5, 5, 5, "2", maximum=13)
    assert proportional(20, 3, [sized, not_yet]) == {"b": 9}
