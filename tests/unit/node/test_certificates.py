"""When a certificate ends, against certificates of the cryptography package."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kubelet_py.node.certificates import not_after


def certificate(year: int) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a name that is long enough " * 2)])
    end = datetime.datetime(year, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(datetime.datetime(1995, 1, 1, tzinfo=datetime.UTC)).not_valid_after(end)
    names = [x509.DNSName(f"host-{number}.example.org") for number in range(200)]  # lengths of several bytes
    built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("year", [1999, 2026, 2049, 2050, 2124])
def test_the_end_is_read_in_both_forms_of_time(year: int) -> None:
    wanted = datetime.datetime(year, 3, 4, 5, 6, 7, tzinfo=datetime.UTC).timestamp()
    assert not_after(b"a remark\n" + certificate(year) + certificate(2030)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no certificate",
        b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_no_certificate_is_said_so(text: bytes) -> None:
    with pytest.raises(ValueError):
        not_after(text)
