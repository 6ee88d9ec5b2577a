"""Signs what a certificate request asks for with the cluster's CA: the one place that does.

The times are upstream's (pkg/controller/certificates/authority/policies.go): a certificate begins five
minutes in the past, for clocks that are slow, and never outlives the CA that signed it. Ours begins no
earlier than a tenth of its life, else one that lives minutes would be old when it is made.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.errors import AuthorityError

if TYPE_CHECKING:
    from cryptography import x509

BACKDATE = 300.0
SHORT = 8 * 3600.0  # of a certificate this short the five minutes are added, not taken away
LEAST = 600.0

_EXTENDED = {"server auth": "SERVER_AUTH", "client auth": "CLIENT_AUTH"}


def validity(now: float, asked: float | None, longest: float, ca_ends: float) -> tuple[float, float]:
    """PURE. (begin, end) in seconds since 1970. `asked` is spec.expirationSeconds, or None."""
    seconds = longest if asked is None else min(longest, max(asked, LEAST))
    end = now + seconds - (0.0 if seconds < SHORT else BACKDATE)
    return now - min(BACKDATE, seconds / 10), min(end, ca_ends)


class Issuer:
    """The CA's certificate and key, read anew for each signature (they may be exchanged on disk)."""

    def __init__(self, certificate_file: Path, key_file: Path, longest: float) -> None:
        """`longest`: seconds that a certificate may live (--cluster-signing-duration)."""
        self._files = (certificate_file, key_file)
        self._longest = longest

    def sign(self, request: bytes, usages: Iterable[str], asked: float | None, now: float) -> bytes:
        """The certificate for a PEM request whose contents were checked before. Raises AuthorityError."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, rsa
        from cryptography.x509.oid import ExtendedKeyUsageOID

        try:
            ca = x509.load_pem_x509_certificate(self._files[0].read_bytes())
            key = serialization.load_pem_private_key(self._files[1].read_bytes(), None)
        except (OSError, ValueError) as error:
            raise AuthorityError(f"Could not read the CA {self._files[0]}: {error} (restore it)") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise AuthorityError(f"Could not use {self._files[1]}: neither an elliptic-curve nor an RSA key")
        begin, end = validity(now, asked, self._longest, ca.not_valid_after_utc.timestamp())
        if end <= now:
            raise AuthorityError(f"Could not sign: the CA {self._files[0]} has expired (make a new one)")
        csr, uses = x509.load_pem_x509_csr(request), set(usages)
        extended = [getattr(ExtendedKeyUsageOID, _EXTENDED[use]) for use in sorted(uses & set(_EXTENDED))]
        builder = (
            x509.CertificateBuilder()
            .subject_name(csr.subject)
            .issuer_name(ca.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime.fromtimestamp(begin, datetime.UTC))
            .not_valid_after(datetime.datetime.fromtimestamp(end, datetime.UTC))
            .add_extension(_key_usage(uses), critical=True)
            .add_extension(x509.ExtendedKeyUsage(extended), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
        )
        for extension in csr.extensions:
            if isinstance(extension.value, x509.SubjectAlternativeName):
                builder = builder.add_extension(extension.value, extension.critical)
        signed = builder.sign(key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


def _key_usage(uses: set[str]) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature="digital signature" in uses,
        content_commitment=False,
        key_encipherment="key encipherment" in uses,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
