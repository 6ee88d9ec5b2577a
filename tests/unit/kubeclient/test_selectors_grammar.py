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
        ("n>3", {"n": "1_0"}, False),
        ("n<3", {"n": "\u0661"}, False),
        ("a=b\t\r\n ", {"a": "b"}, True),
        ("in in (in)", {"in": "in"}, True),
    ],
)
def test_label_selectors_match(text: str, labels: dict[str, str], matches: bool) -> None:
    assert LabelSelector.parse(text).matches(labels) is matches


@pytest.mark.parametrize(
    "text",
    [
        *("a in (", "a in b", "a in (b", "=b", "a b", "-a", "a=-", "a,!", "_/a=b", "a=b\x0b", "a\xa0=b"),
        *("a>b", "a>", "a<1_0", "a>9223372036854775808"),
    ],
)
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unable to parse requirement"):
        LabelSelector.parse(text)


@pytest.mark.parametrize(("text", "found"), [("a=b,", ""), ("a, ", ""), ("a,,b", ","), ("a,=b", "=")])
def test_behind_a_comma_there_is_a_condition(text: str, found: str) -> None:
    with pytest.raises(ValueError, match=f"^found '{found}', expected: identifier after ','$"):
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
