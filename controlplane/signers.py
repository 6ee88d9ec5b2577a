"""What each signer of certificates.k8s.io vouches for, and what a request to it may say.

A CertificateSigningRequest names its signer, and the signer's name decides what the certificate is good for:
a client of the API server, a kubelet as a client, a kubelet as a server. The rules (subject, alternative
names, usages) are the same for whoever stores, approves or signs a request, so they stand here once, as
functions over plain values. Source: upstream's pkg/apis/certificates/helpers.go and
pkg/controller/certificates/signer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

CLIENT = "kubernetes.io/kube-apiserver-client"
KUBELET_CLIENT = "kubernetes.io/kube-apiserver-client-kubelet"
KUBELET_SERVING = "kubernetes.io/kubelet-serving"
OURS = (CLIENT, KUBELET_CLIENT, KUBELET_SERVING)

NODES_GROUP, NODE_PREFIX = "system:nodes", "system:node:"

USAGES = (
    "signing",
    "digital signature",
    "content commitment",
    "key encipherment",
    "key agreement",
    "data encipherment",
    "cert sign",
    "crl sign",
    "encipher only",
    "decipher only",
    "any",
    "server auth",
    "client auth",
    "code signing",
    "email protection",
    "s/mime",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "timestamping",
    "ocsp signing",
    "microsoft sgc",
    "netscape sgc",
)
_KEY_USAGES = {"digital signature", "key encipherment"}


class BadRequestError(Exception):
    """The bytes are no PEM certificate request, or its signature is wrong; the text says which."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a PKCS#10 request asks to have certified. `addresses` are written as `ipaddress` writes them."""

    common_name: str
    organizations: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    other_names: bool = False


def read(pem: bytes) -> Wanted:
    """Parse and check one PEM block. Raises BadRequestError."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    if not pem.lstrip().startswith(b"-----BEGIN CERTIFICATE REQUEST-----"):
        raise BadRequestError("PEM block type must be CERTIFICATE REQUEST")
    try:
        request = x509.load_pem_x509_csr(pem)
        if not request.is_signature_valid:
            raise BadRequestError("the request's signature is wrong")
        subject = request.subject
        common = [str(part.value) for part in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        groups = [str(part.value) for part in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        try:
            extension = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return Wanted("".join(common[-1:]), tuple(groups))
    except (ValueError, TypeError) as error:
        raise BadRequestError(str(error)) from error
    kinds = (x509.DNSName, x509.IPAddress, x509.RFC822Name, x509.UniformResourceIdentifier)
    return Wanted(
        "".join(common[-1:]),
        tuple(groups),
        tuple(extension.get_values_for_type(x509.DNSName)),
        tuple(str(address) for address in extension.get_values_for_type(x509.IPAddress)),
        tuple(extension.get_values_for_type(x509.RFC822Name)),
        tuple(extension.get_values_for_type(x509.UniformResourceIdentifier)),
        any(not isinstance(name, kinds) for name in extension),
    )


def problem(signer: str, wanted: Wanted, usages: Iterable[str]) -> str:
    """PURE. Why this signer does not sign that; "" when it does."""
    asked = set(usages)
    if signer == CLIENT:
        if "client auth" not in asked or not asked <= _KEY_USAGES | {"client auth"}:
            return 'usages must include "client auth" and none but "digital signature" and "key encipherment"'
        return ""
    if signer == KUBELET_CLIENT:
        return _kubelet_problem(wanted, asked, "client auth") or _client_names(wanted)
    if signer == KUBELET_SERVING:
        return _kubelet_problem(wanted, asked, "server auth") or _serving_names(wanted)
    return f"no signer {signer} is here"


def _kubelet_problem(wanted: Wanted, asked: set[str], main: str) -> str:
    if wanted.organizations != (NODES_GROUP,):
        return "subject organization is not system:nodes"
    name = wanted.common_name
    if not name.startswith(NODE_PREFIX) or name == NODE_PREFIX:
        return "subject common name does not begin with system:node:"
    if asked not in ({main, "digital signature"}, {main, *_KEY_USAGES}):
        return f'usages must be "digital signature", "{main}" and perhaps "key encipherment"'
    if wanted.emails:
        return "email subjectAltNames are not allowed"
    if wanted.uris:
        return "URI subjectAltNames are not allowed"
    return "other subjectAltNames are not allowed" if wanted.other_names else ""


def _client_names(wanted: Wanted) -> str:
    if wanted.names:
        return "DNS subjectAltNames are not allowed"
    return "IP subjectAltNames are not allowed" if wanted.addresses else ""


def _serving_names(wanted: Wanted) -> str:
    if wanted.names or wanted.addresses:
        return ""
    return "DNS or IP subjectAltName is required"


def foreign_names(wanted: Wanted, node: Object) -> list[str]:
    """PURE. The alternative names in a serving request that its own Node does not announce."""
    status, own = node.get("status") or {}, node["metadata"]["name"]
    known = {own} | {entry["address"] for entry in status.get("addresses") or ()}
    return [name for name in (*wanted.names, *wanted.addresses) if name not in known]


def announced_by_others(addresses: Sequence[str], node: str, nodes: Iterable[Object]) -> list[str]:
    """PURE. Those of `addresses` that another Node announces too: a name must lead to one node only."""
    others = {
        entry["address"]
        for other in nodes
        if other["metadata"]["name"] != node
        for entry in (other.get("status") or {}).get("addresses") or ()
    }
    return [address for address in addresses if address in others]


def condition(request: Object, kind: str) -> Object | None:
    """One of the request's conditions: Approved, Denied or Failed."""
    found = (request.get("status") or {}).get("conditions") or ()
    return next((item for item in found if item.get("type") == kind), None)


def pending(request: Object) -> bool:
    """Neither decided upon nor signed."""
    return not (request.get("status") or {}).get("conditions") and not certificate(request)


def certificate(request: Object) -> str:
    """The signed certificate in base64, or ""."""
    return str((request.get("status") or {}).get("certificate") or "")
