"""When a certificate ends, read without a cryptography library: importing one costs the agent more memory
than its pods' records.

Facts relied on (RFC 5280): a certificate is DER, nested (tag, length, content); its first part holds an
optional version [0], serial number, algorithm, issuer, and then the validity: two times, written as UTCTime
(two digits of the year, before 2050) or GeneralizedTime.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

VERSION, UTC_TIME = 0xA0, 0x17
BEGIN, END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


def not_after(pem: bytes) -> float:
    """The epoch second at which the first certificate in this text ends. Raises ValueError."""
    start, end = pem.find(BEGIN), pem.find(END)
    if start < 0 or end < start:
        raise ValueError("there is no certificate in it")
    der = ssl.PEM_cert_to_DER_cert(pem[start : end + len(END)].decode("ascii"))
    try:
        return _end_of(der)
    except IndexError as error:
        raise ValueError("the certificate is cut off") from error


def _end_of(der: bytes) -> float:
    _, certificate, _ = _element(der)
    _, body, _ = _element(certificate)
    tag, _, rest = _element(body)
    skipped = 3 if tag == VERSION else 2  # serial number (where a version stood first), algorithm, issuer
    for _ in range(skipped):
        _, _, rest = _element(rest)
    _, validity, _ = _element(rest)
    _, _, end = _element(validity)
    tag, text, _ = _element(end)
    if tag == UTC_TIME:  # RFC 5280: 50 and more are years of the last century
        text = (b"19" if text[:2] >= b"50" else b"20") + text
    return datetime.strptime(text.decode("ascii"), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """(tag, content, what follows)."""
    length, start = data[1], 2
    if length >= 0x80:
        size = length & 0x7F
        start += size
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise ValueError("the certificate is cut off")
    return data[0], data[start : start + length], data[start + length :]
