"""`python -m kubelet_py.node.key_maker`: makes a key and what goes with it, in a process of its own.

Keys are made once in a node's life and then once for each rotation; the cryptography package would stay in
the agent's memory for ever. The order comes as JSON on stdin and the answer goes to stdout, both pipes: a key
is on no command line and in no file until its owner writes it.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kubelet_py.errors import CertificateError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

SECONDS = 60.0
SELF_SIGNED_DAYS = 365


@dataclass(frozen=True, slots=True)
class Subject:
    """Who a certificate is for."""

    common_name: str
    organizations: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """PEM texts: the private key, and the request (or the self-signed certificate) for it."""

    key: bytes
    document: bytes


def make(subject: Subject, *, key: bytes = b"", self_signed: bool = False) -> Made:
    """Run the process. With `key` no new one is made. Raises CertificateError."""
    order = {"subject": asdict(subject), "key": key.decode("ascii"), "self_signed": self_signed}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kubelet_py.node.key_maker"],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CertificateError(f"Could not make a key for {subject.common_name}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CertificateError(f"Could not make a key for {subject.common_name}: {lines[-1]}")
    answer = json.loads(done.stdout)
    return Made(answer["key"].encode(), answer["document"].encode())


def main() -> int:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    order = json.load(sys.stdin)
    parts = order["subject"]
    subject = Subject(
        parts["common_name"],
        tuple(parts["organizations"]),
        tuple(parts["names"]),
        tuple(parts["addresses"]),
    )
    if order["key"]:
        loaded = serialization.load_pem_private_key(order["key"].encode(), None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            print("the key is not an elliptic-curve key", file=sys.stderr)
            return 1
        key = loaded
    else:
        key = ec.generate_private_key(ec.SECP256R1())
    document = _certificate(subject, key) if order["self_signed"] else _request(subject, key)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,  # "EC PRIVATE KEY", as upstream's kubelet writes it
        serialization.NoEncryption(),
    )
    json.dump({"key": pem.decode(), "document": document.decode()}, sys.stdout)
    return 0


def _request(subject: Subject, key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(subject))
    others = _others(subject)
    if others is not None:
        builder = builder.add_extension(others, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _certificate(subject: Subject, key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    others = _others(subject)
    if others is not None:
        builder = builder.add_extension(others, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(subject: Subject) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in subject.organizations]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, subject.common_name)])


def _others(subject: Subject) -> x509.SubjectAlternativeName | None:
    from cryptography import x509

    listed: list[x509.GeneralName] = [x509.DNSName(name) for name in subject.names]
    listed += [x509.IPAddress(ipaddress.ip_address(address)) for address in subject.addresses]
    return x509.SubjectAlternativeName(listed) if listed else None


if __name__ == "__main__":
    sys.exit(main())
