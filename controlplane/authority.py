"""The cluster's own certificate authority: every key, certificate and kubeconfig of a node.

A cluster trusts nobody but its own CA: the API server knows a client by the subject of its certificate
(CN is the user, each O a group), so whoever may sign with the CA's key decides who is who. This module
makes what is missing and leaves alone what is good, so that `kubelet-py up` may call it every time: a
certificate is made again only if it nears its end, was signed by another CA, or lacks a name or address
that it needs now (a laptop that changed networks). Files appear whole or not at all (rename), and keys
are never readable by others, not even for a moment.

Subjects and file names are upstream's (kubeadm's `pki` folder and `*.conf` files).
"""

from __future__ import annotations

import argparse
import base64
import datetime
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.errors import AuthorityError
from kubeclient.ranges import read_ranges

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

LIFETIME = datetime.timedelta(days=3650)
RENEW_BEFORE = datetime.timedelta(days=30)
BACKDATED = datetime.timedelta(hours=1)  # a VM's clock may jump back when it resumes


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the certificates have to say about the cluster.

    `config_dir` is where `pki/` and the kubeconfigs go; the service range's first address is the
    API server's own ClusterIP and so must be in its certificate.
    """

    config_dir: Path
    advertise_address: str
    node_name: str
    secure_port: int = 6443
    service_cluster_ip_range: str = "10.96.0.0/12"

    @property
    def pki(self) -> Path:
        return self.config_dir / "pki"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One certificate to be: its file name, its subject, and what it is for."""

    file: str
    common_name: str
    organizations: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    server: bool = False


@dataclass(frozen=True, slots=True)
class Signer:
    """The CA's certificate and key, loaded."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.public_bytes(Encoding.PEM)


def ensure(cluster: Cluster) -> list[Path]:
    """Make whatever is missing or no longer fits; return the files that were written.

    Raises AuthorityError when a file cannot be written or an existing key cannot be read.
    """
    made: list[Path] = []
    try:
        cluster.pki.mkdir(mode=0o700, parents=True, exist_ok=True)
        signer = _ensure_ca(cluster, made)
        for leaf in _serving(cluster):
            _ensure_leaf(cluster, signer, leaf, made)
        _ensure_service_account_key(cluster, made)
        for file, leaf, server in _users(cluster):
            _ensure_kubeconfig(cluster, signer, file, leaf, server, made)
    except OSError as error:
        name = error.filename or cluster.config_dir
        raise AuthorityError(
            f"Could not write {name}: {error.strerror} (is the folder writable?)"
        ) from error
    return made


def _serving(cluster: Cluster) -> list[Leaf]:
    network = read_ranges(cluster.service_cluster_ip_range)[0]
    own = ["kubernetes", "default", "svc", "cluster", "local"]
    names = [".".join(own[:count]) for count in (1, 2, 3, 5)]
    hosts = dict.fromkeys([*names, "localhost", cluster.node_name, socket.gethostname().lower()])
    addresses = dict.fromkeys(["127.0.0.1", "::1", cluster.advertise_address, str(network[1])])
    node_addresses = dict.fromkeys(["127.0.0.1", cluster.advertise_address])
    return [
        Leaf("apiserver", "kube-apiserver", (), tuple(hosts), tuple(addresses), server=True),
        Leaf("apiserver-kubelet-client", "kube-apiserver-kubelet-client", ("system:masters",)),
        Leaf(
            "kubelet",
            f"system:node:{cluster.node_name}",
            ("system:nodes",),
            (cluster.node_name, "localhost"),
            tuple(node_addresses),
            server=True,
        ),
    ]


def _users(cluster: Cluster) -> list[tuple[str, Leaf, str]]:
    """(kubeconfig, subject, server address). Processes of this node need no network to reach it."""
    local = f"https://127.0.0.1:{cluster.secure_port}"
    host = cluster.advertise_address
    public = f"https://{f'[{host}]' if ':' in host else host}:{cluster.secure_port}"
    return [
        ("admin.conf", Leaf("", "kubernetes-admin", ("system:masters",)), public),
        ("kubelet.conf", Leaf("", f"system:node:{cluster.node_name}", ("system:nodes",)), local),
        ("proxy.conf", Leaf("", "system:kube-proxy"), local),
        ("controller-manager.conf", Leaf("", "system:kube-controller-manager"), local),
        ("scheduler.conf", Leaf("", "system:kube-scheduler"), local),
    ]


def _ensure_ca(cluster: Cluster, made: list[Path]) -> Signer:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    certificate_file, key_file = cluster.pki / "ca.crt", cluster.pki / "ca.key"
    if certificate_file.exists() and key_file.exists():
        try:
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        except ValueError as error:
            raise AuthorityError(f"Could not read {key_file} or ca.crt: {error} (restore them)") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"Could not use {key_file}: not an elliptic-curve key (P-256 is needed)")
        return Signer(certificate, key)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject("kubernetes", ())
    builder = _builder(subject, subject, key).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    builder = builder.add_extension(_key_usage(sign_certificates=True), critical=True)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    certificate = builder.sign(key, _sha256())
    signer = Signer(certificate, key)
    _write(key_file, _key_pem(key), 0o600, made)
    _write(certificate_file, signer.pem(), 0o644, made)
    return signer


def _ensure_leaf(cluster: Cluster, signer: Signer, leaf: Leaf, made: list[Path]) -> None:
    certificate_file, key_file = cluster.pki / f"{leaf.file}.crt", cluster.pki / f"{leaf.file}.key"
    if key_file.exists() and certificate_file.exists() and _fits(certificate_file.read_bytes(), signer, leaf):
        return
    certificate, key = _issue(signer, leaf)
    _write(key_file, key, 0o600, made)
    _write(certificate_file, certificate, 0o644, made)


def _ensure_service_account_key(cluster: Cluster, made: list[Path]) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private, public = cluster.pki / "sa.key", cluster.pki / "sa.pub"
    if private.exists() and public.exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(private, _key_pem(key), 0o600, made)
    _write(public, pem, 0o644, made)


def _ensure_kubeconfig(
    cluster: Cluster, signer: Signer, file: str, leaf: Leaf, server: str, made: list[Path]
) -> None:
    path = cluster.config_dir / file
    authority = base64.b64encode(signer.pem()).decode()
    if path.exists():
        text = path.read_text()
        embedded = _embedded(text, "client-certificate-data")
        if f"server: {server}\n" in text and authority in text and _fits(embedded, signer, leaf):
            return
    certificate, key = _issue(signer, leaf)
    user = leaf.common_name
    text = (
        "apiVersion: v1\nkind: Config\npreferences: {}\n"
        "clusters:\n- name: kubernetes\n  cluster:\n"
        f"    certificate-authority-data: {authority}\n    server: {server}\n"
        f"contexts:\n- name: {user}@kubernetes\n  context:\n    cluster: kubernetes\n    user: {user}\n"
        f"current-context: {user}@kubernetes\n"
        f"users:\n- name: {user}\n  user:\n"
        f"    client-certificate-data: {base64.b64encode(certificate).decode()}\n"
        f"    client-key-data: {base64.b64encode(key).decode()}\n"
    )
    _write(path, text.encode(), 0o600, made)


def _embedded(text: str, field: str) -> bytes:
    for line in text.splitlines():
        name, _, value = line.strip().partition(": ")
        if name == field:
            try:
                return base64.b64decode(value, validate=True)
            except ValueError:
                return b""
    return b""


def _fits(pem: bytes, signer: Signer, leaf: Leaf) -> bool:
    """Does this certificate still do: same CA, same subject, all names, not near its end?"""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(signer.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    if certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC) + RENEW_BEFORE:
        return False
    if certificate.subject != _subject(leaf.common_name, leaf.organizations):
        return False
    if not leaf.server:
        return True
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    names = set(extension.get_values_for_type(x509.DNSName))
    addresses = {str(address) for address in extension.get_values_for_type(x509.IPAddress)}
    return names >= set(leaf.names) and addresses >= set(leaf.addresses)


def _issue(signer: Signer, leaf: Leaf) -> tuple[bytes, bytes]:
    """(certificate, key) as PEM, signed by the CA."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_subject(leaf.common_name, leaf.organizations), signer.certificate.subject, key)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] if leaf.server else [ExtendedKeyUsageOID.CLIENT_AUTH]
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(authority, critical=False)
    )
    if leaf.server:
        subjects: list[x509.GeneralName] = [x509.DNSName(name) for name in leaf.names]
        subjects += [x509.IPAddress(ipaddress.ip_address(address)) for address in leaf.addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName(subjects), critical=False)
    certificate = builder.sign(signer.key, _sha256())
    return certificate.public_bytes(Encoding.PEM), _key_pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
    )


def _subject(common_name: str, organizations: Sequence[str]) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _sha256() -> hashes.SHA256:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int, made: list[Path]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
    made.append(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m controlplane.authority`: make what is missing, print what was made."""
    parser = argparse.ArgumentParser(prog="controlplane.authority", description="Make the cluster's keys.")
    parser.add_argument("--config-dir", type=Path, required=True)
    parser.add_argument("--advertise-address", required=True)
    parser.add_argument("--node-name", default=socket.gethostname().lower())
    parser.add_argument("--secure-port", type=int, default=6443)
    parser.add_argument("--service-cluster-ip-range", default="10.96.0.0/12")
    options = parser.parse_args(arguments)
    cluster = Cluster(
        options.config_dir,
        options.advertise_address,
        options.node_name,
        options.secure_port,
        options.service_cluster_ip_range,
    )
    try:
        for path in ensure(cluster):
            print(f"Made {path}")
    except (AuthorityError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
