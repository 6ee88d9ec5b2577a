"""Keys and certificate requests for tests, as a kubelet or a person with openssl makes them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key, pem


def make_request(
    common_name: str,
    organizations: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    addresses: Sequence[str] = (),
    emails: Sequence[str] = (),
    key: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """A PEM request."""
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    subject = x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    others: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    others += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    others += [x509.RFC822Name(email) for email in emails]
    if others:
        builder = builder.add_extension(x509.SubjectAlternativeName(others), critical=False)
    signed = builder.sign(key or make_key()[0], hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)
