"""nf_tables' messages as bytes, without a kernel."""

from __future__ import annotations

import pytest

from proxy.nfattributes import LONGEST, as_dict, as_text, attribute, attributes, nested, text, u32
from proxy.nfexpressions import Base, Code, Meta, meta, payload
from proxy.nfobjects import (
    Element,
    Family,
    Flag,
    Set,
    Table,
    Type,
    Verdict,
    add_elements,
    add_rule,
    add_set,
    element_at,
    encode,
    encode_data,
    encode_key,
    encode_verdict,
    encoded_elements,
    interval_elements,
    read_element,
    read_rule,
)

TABLE = Table(Family.IP, "t")


@pytest.mark.parametrize(
    "element",
    [
        Element(b"\x0a\0\0\1"),
        Element(b"\x0a\0\0\1", data=b"\x0a\1\0\1\x1f\x90\0\0"),
        Element(b"\x0a\0\0\1", verdict=Verdict(Code.GOTO, "cluster-2")),
        Element(b"\x0a\0\0\1", verdict=Verdict(Code.DROP)),
        Element(b"\x0a\0\0\1\0\x50\0\0", key_end=b"\x0a\0\0\1\0\x60\0\0"),
        Element(b"\x0a\0\0\1", end=True),
        Element(b"\x0a\0\0\1", timeout_ms=10_800_000),
    ],
)
def test_an_element_is_read_as_it_was_written(element: Element) -> None:
    raw = encode(element)
    assert len(raw) % 4 == 0
    assert read_element(raw, 4, len(raw)) == element


def test_the_fast_way_to_encode_gives_the_same_bytes() -> None:
    key, data, verdict = b"\x0a\0\0\1\0\x50\0\0", bytes(8), Verdict(Code.GOTO, "cluster-2")
    assert encode_key(key) == encode(Element(key))
    assert encode_key(key, encode_data(data)) == encode(Element(key, data))
    assert encode_key(key, encode_verdict(verdict)) == encode(Element(key, verdict=verdict))


def test_values_are_padded_but_keep_their_length() -> None:
    both = attribute(1, b"abcde") + u32(2, 7)
    assert len(both) == 12 + 8
    assert as_dict(both) == {1: b"abcde", 2: b"\0\0\0\7"}
    assert as_text(as_dict(text(3, "name"))[3]) == "name"


def test_attributes_that_lie_about_their_length_are_not_read() -> None:
    assert list(attributes(b"\x40\0\1\0" + b"\0" * 8)) == []
    assert list(attributes(b"\x02\0\1\0" + b"\0" * 8)) == []


def test_many_elements_are_split_below_what_an_attribute_can_hold() -> None:
    elements = [Element(n.to_bytes(4, "big"), data=bytes(8)) for n in range(5000)]
    messages = add_elements(TABLE, "m", elements)
    assert len(messages) > 1
    back = [raw for m in messages for raw in encoded_elements(m.body)]
    assert back == [encode(e) for e in elements]
    for message in messages:
        assert all(end - begin + 4 <= LONGEST for _kind, begin, end in attributes(message.body))


def test_no_elements_are_no_message() -> None:
    assert add_elements(TABLE, "m", []) == []


def test_an_offset_in_a_request_names_its_element() -> None:
    elements = [Element(n.to_bytes(4, "big")) for n in range(10)]
    (message,) = add_elements(TABLE, "s", elements)
    size = len(encode(elements[0]))
    start = message.elements_at + 4
    for n, element in enumerate(elements):
        assert element_at(message, start + n * size) == element
        assert element_at(message, start + n * size + size - 1) == element
    assert element_at(message, 0) is None
    assert element_at(message, start + 10 * size) is None


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (b"\x0a\0\0\0", b"\x0a\xff\xff\xff", b"\x0b\0\0\0"),
        (b"\xff\0\0\0", b"\xff\xff\xff\xff", None),
    ],
)
def test_a_range_ends_before_the_next_key(low: bytes, high: bytes, ends: bytes | None) -> None:
    expected = [Element(low)] + ([Element(ends, end=True)] if ends else [])
    assert interval_elements(low, high) == expected


def test_a_set_of_ranges_over_several_fields_tells_their_lengths() -> None:
    made = Set("s", (Type.IPV6, Type.PORT), flags=Flag.INTERVAL)
    parts = as_dict(add_set(TABLE, made).body)
    assert parts[3] == (Flag.INTERVAL | Flag.CONCATENATION).to_bytes(4, "big")
    assert parts[5] == (20).to_bytes(4, "big")
    fields = [parts[9][b:e] for _k, b, e in attributes(parts[9], 4)]
    assert [f[-1] for f in fields] == [16, 4]


def test_a_verdict_map_is_a_map_without_length() -> None:
    parts = as_dict(add_set(TABLE, Set("m", (Type.IPV4,), verdicts=True)).body)
    assert parts[3] == Flag.MAP.to_bytes(4, "big")
    assert parts[6] == b"\xff\xff\xff\x00" and 7 not in parts


def test_a_rule_keeps_its_comment_and_expressions() -> None:
    expressions = [meta(0, Meta.MARK), payload(1, Base.NETWORK, 16, 4)]
    request = add_rule(TABLE, "c", *expressions, comment="ä" * 100)
    # What a dump shows has a handle besides.
    rule = read_rule(request.body + attribute(3, (9).to_bytes(8, "big")))
    assert (rule.chain, rule.handle, rule.expressions) == ("c", 9, b"".join(expressions))
    assert rule.comment == ("ä" * 60).encode()


def test_a_register_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="register word 16"):
        meta(16, Meta.MARK)


def test_nested_attributes_are_flagged_and_read_without_the_flag() -> None:
    raw = nested(5, u32(1, 2))
    assert raw[3] & 0x80
    assert as_dict(raw) == {5: u32(1, 2)}
