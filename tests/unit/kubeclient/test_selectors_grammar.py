"""The language of label and field selectors."""

from __future__ import annotations

import pytest

from kubeclient.selectors import FieldSelector, LabelSelector


@pytest.mark.parametrize(
    ("text", "labels", "matches"),
    [
        ("", {}, True),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("a=b", {"a": "b"}, True),
        ("a==b", {"a": "c"}, False),
        ("a!=b", {}, True),
        ("a=", {"a": ""}, True),
        ("a in (b, c),d", {"a": "c", "d": ""}, True),
        ("a in (b,c)", {}, False),
        ("a notin (b)", {}, True),
        ("a notin (b)", {"a": "b"}, False),
        ("x.io/a=b , c != d", {"x.io/a": "b"}, True),
        ("n>3", {"n": "4"}, True),
        ("n<3", {"n": "4"}, False),
        ("in in (in)", {"in": "in"}, True),
    ],
)
def test_label_selectors_match(text: str, labels: dict[str, str], matches: bool) -> None:
    assert LabelSelector.parse(text).matches(labels) is matches


@pytest.mark.parametrize("text", ["a in (", "a in b", "a in (b", "=b", "a b", "-a", "a=-", "a,,b", "_/a=b"])
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unable to parse requirement"):
        LabelSelector.parse(text)


def test_the_object_form_means_the_same() -> None:
    expressions = [
        {"key": "b", "operator": "In", "values": ["1", "2"]},
        {"key": "c", "operator": "DoesNotExist"},
    ]
    selector = LabelSelector.from_object({"matchLabels": {"a": "x"}, "matchExpressions": expressions})
    assert selector.matches({"a": "x", "b": "2"})
    assert not selector.matches({"a": "x", "b": "3"})
    assert not selector.matches({"a": "x", "b": "2", "c": ""})
    with pytest.raises(ValueError, match="not a valid label selector operator"):
        LabelSelector.from_object({"matchExpressions": [{"key": "a", "operator": "Near"}]})


def test_field_selectors() -> None:
    fields = {"status.phase": "Running", "spec.nodeName": "a,b"}
    assert FieldSelector.parse("status.phase=Running,spec.nodeName!=c").matches(lambda name: fields[name])
    assert FieldSelector.parse(r"spec.nodeName==a\,b").matches(lambda name: fields[name])
    assert not FieldSelector.parse("status.phase!=Running").matches(lambda name: fields[name])
    with pytest.raises(ValueError, match="can't understand"):
        FieldSelector.parse("phase")
