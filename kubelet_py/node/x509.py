"""Reads what the agent has to know of a certificate: whose it is, its names, and from when till when.

The agent looks at certificates for as long as it lives, but at few of their fields; the cryptography package
would cost each node 5 MB of private memory for that, and the standard library reads only certificates that
it has verified. A certificate is DER: a tree of (tag, length, value), and its fields stand at fixed places
(RFC 5280, section 4.1). Nothing is verified here: who relies on a certificate lets OpenSSL do that.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_COMMON_NAME, _ORGANIZATION = bytes.fromhex("550403"), bytes.fromhex("55040a")
_ALTERNATIVE_NAMES = bytes.fromhex("551d11")
_VERSION, _EXTENSIONS, _DNS, _ADDRESS = 0xA0, 0xA3, 0x82, 0x87
_UTC_TIME = 0x17


@dataclass(frozen=True, slots=True)
class Certificate:
    """Times are seconds since 1970; `public_key` is the SubjectPublicKeyInfo in DER, which kubeadm hashes."""

    common_name: str
    organizations: tuple[str, ...]
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    not_before: float
    not_after: float
    public_key: bytes


def read(pem: bytes) -> Certificate:
    """The first certificate of a PEM text. Raises ValueError."""
    found = _BLOCK.search(pem)
    if found is None:
        raise ValueError("there is no certificate in it")
    try:
        return _certificate(base64.b64decode(found[1]))
    except (binascii.Error, IndexError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError(f"it cannot be read: {error or type(error).__name__}") from error


def _certificate(der: bytes) -> Certificate:
    _, whole, _ = next(_parts(der))
    _, body, _ = next(_parts(whole))
    fields = list(_parts(body))
    if fields[0][0] == _VERSION:
        del fields[0]
    _serial, _algorithm, _issuer, validity, subject, public_key, *rest = fields
    begin, end = _parts(validity[1])
    names, addresses = _alternative_names(rest)
    return Certificate(
        "".join(_attributes(subject[1], _COMMON_NAME)),
        tuple(_attributes(subject[1], _ORGANIZATION)),
        names,
        addresses,
        _time(*begin[:2]),
        _time(*end[:2]),
        public_key[2],
    )


def _parts(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(tag, value, the whole element) of each element of a DER sequence's contents."""
    position = 0
    while position < len(data):
        tag, size, start = data[position], data[position + 1], position + 2
        if size & 0x80:
            count = size & 0x7F
            size, start = int.from_bytes(data[start : start + count]), start + count
        if start + size > len(data):
            raise ValueError("it is cut off")
        yield tag, data[start : start + size], data[position : start + size]
        position = start + size


def _attributes(subject: bytes, wanted: bytes) -> Iterator[str]:
    for _, relative, _ in _parts(subject):
        for _, pair, _ in _parts(relative):
            (_, kind, _), (_, value, _) = _parts(pair)
            if kind == wanted:
                yield value.decode()


def _alternative_names(fields: list[tuple[int, bytes, bytes]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names: list[str] = []
    addresses: list[str] = []
    for tag, value, _ in fields:
        for _, listed, _ in _parts(value) if tag == _EXTENSIONS else ():
            for _, extension, _ in _parts(listed):
                (_, kind, _), *_, (_, content, _) = _parts(extension)
                if kind != _ALTERNATIVE_NAMES:
                    continue
                for name_tag, name, _ in _parts(next(_parts(content))[1]):
                    if name_tag == _DNS:
                        names.append(name.decode())
                    elif name_tag == _ADDRESS:
                        addresses.append(str(ipaddress.ip_address(name)))
    return tuple(names), tuple(addresses)


def _time(tag: int, value: bytes) -> float:
    text = value.decode()
    if tag == _UTC_TIME:  # two digits of the year, of which 50 to 99 are the last century's
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
