"""D-Bus messages, compared byte by byte with what the specification says they are."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import SystemdError
from runtime.systemd import messages
from runtime.systemd.messages import Message, Variant, decode, encode, length_of, types

HELLO = bytes.fromhex(
    "6c010001" "00000000" "01000000" "6d000000"  # little-endian, call, version 1; 109 bytes of fields
    "01016f00" "15000000" + b"/org/freedesktop/DBus".hex() + "00" "0000"  # path, then padding to 8
    "02017300" "14000000" + b"org.freedesktop.DBus".hex() + "00" "000000"
    "03017300" "05000000" + b"Hello".hex() + "00" "0000"
    "06017300" "14000000" + b"org.freedesktop.DBus".hex() + "00" "000000"
)  # fmt: skip
FIELDS = {
    messages.PATH: "/org/freedesktop/DBus", messages.INTERFACE: "org.freedesktop.DBus",
    messages.MEMBER: "Hello", messages.DESTINATION: "org.freedesktop.DBus",
}  # fmt: skip


def body(signature: str, *values: Any) -> str:
    """A message's body, in hexadecimal digits."""
    raw = encode(Message(messages.CALL, 1, {}, values), signature)
    length = int.from_bytes(raw[4:8], "little")
    return raw[len(raw) - length :].hex(" ")


def test_a_call_without_a_body() -> None:
    call = Message(messages.CALL, 1, FIELDS)
    assert encode(call) == HELLO
    assert len(HELLO) == 128 == length_of(HELLO[:16])
    assert decode(HELLO) == call


@pytest.mark.parametrize(
    ("signature", "values", "expected"),
    [
        ("y", (5,), "05"),
        ("b", (True,), "01 00 00 00"),
        ("yu", (1, 2), "01 00 00 00 02 00 00 00"),
        ("yt", (1, 2), "01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00"),
        ("n", (-2,), "fe ff"),
        ("s", ("foo",), "03 00 00 00 66 6f 6f 00"),
        ("g", ("a(sv)",), "05 61 28 73 76 29 00"),
        ("ay", (b"\x07\x01",), "02 00 00 00 07 01"),
        ("au", ([258],), "04 00 00 00 02 01 00 00"),
        ("as", (["a", "b"],), "0e 00 00 00 01 00 00 00 61 00 00 00 01 00 00 00 62 00"),
        ("v", (Variant("u", 1),), "01 75 00 00 01 00 00 00"),
        ("at", ([],), "00 00 00 00 00 00 00 00"),  # padding for an element that is not there
        ("a{sv}", ([("k", Variant("b", False))],),
         "10 00 00 00 00 00 00 00 01 00 00 00 6b 00 01 62 00 00 00 00 00 00 00 00"),
        ("a(sv)", ([("A", Variant("t", 5)), ("B", Variant("ay", b"\x07"))],),
         "29 00 00 00 00 00 00 00 "  # 41 bytes, counted from the first struct
         "01 00 00 00 41 00 01 74 00 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00 "
         "01 00 00 00 42 00 02 61 79 00 00 00 01 00 00 00 07"),
    ],
)  # fmt: skip
def test_bodies(signature: str, values: tuple[Any, ...], expected: str) -> None:
    assert body(signature, *values) == expected
    raw = encode(Message(messages.CALL, 1, {}, values), signature)
    again = decode(raw).body
    plain = tuple(list(v) if isinstance(v, bytes) else v for v in values)
    if "v" not in signature:
        assert again == plain


def test_variants_come_back() -> None:
    values = ([("A", Variant("t", 5)), ("B", Variant("as", ["x"]))],)
    assert decode(encode(Message(messages.SIGNAL, 3, {}, values), "a(sv)")).body == values


def test_the_other_byte_order_is_read() -> None:
    raw = bytes.fromhex(
        "42030001" "00000008" "00000009" "0000000f"  # big-endian, error, 8 bytes of body, 15 of fields
        "05017500" "00000004" "08016700" "017300" "00"  # an answer to 4, whose body is a string
        "00000003" "666f6f00"
    )  # fmt: skip
    assert length_of(raw[:16]) == len(raw)
    found = decode(raw)
    assert (found.kind, found.serial, found.body) == (messages.ERROR, 9, ("foo",))
    assert found.fields[messages.REPLY_SERIAL] == 4


@pytest.mark.parametrize(
    ("signature", "found"),
    [("", []), ("sa(sv)u", ["s", "a(sv)", "u"]), ("a(sa(sv))", ["a(sa(sv))"]), ("aab", ["aab"])],
)
def test_signatures(signature: str, found: list[str]) -> None:
    assert types(signature) == found


@pytest.mark.parametrize("signature", ["z", "a", "(s", "a(sv"])
def test_signatures_that_are_none(signature: str) -> None:
    with pytest.raises(SystemdError, match="signature"):
        types(signature)


@pytest.mark.parametrize(
    "raw",
    [
        HELLO[:60],  # ends early
        HELLO[:18] + b"z" + HELLO[19:],  # a type that is none
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_is_no_message_is_an_error(raw: bytes) -> None:
    with pytest.raises(SystemdError):
        length_of(raw[:16])
        decode(raw)


def test_a_length_beyond_the_specifications_is_refused() -> None:
    with pytest.raises(SystemdError, match="more than D-Bus allows"):
        length_of(HELLO[:4] + b"\xff\xff\xff\xff" + HELLO[8:16])
