"""Which certificate each signer vouches for, and for how long (pure)."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from controlplane import authority, signers
from controlplane.controllers.csr_approving import CLIENT, SELF_CLIENT, SELF_SERVER, recognize
from controlplane.controllers.csr_signing import certificate_expired, ends
from controlplane.controllers.stamps import seconds
from controlplane.errors import AuthorityError
from controlplane.issuing import Issuer, validity
from controlplane.signers import KUBELET_CLIENT, KUBELET_SERVING, Wanted
from tests.csr_maker import make_request

NODE = "system:node:n1"
GROUP = ("system:nodes",)
CLIENT_USAGES = ["digital signature", "client auth"]
SERVING_USAGES = ["digital signature", "server auth"]
PLAIN = Wanted(NODE, GROUP)
SERVING = Wanted(NODE, GROUP, ("n1",), ("192.0.2.1",))


@pytest.mark.parametrize(
    ("signer", "wanted", "usages", "problem"),
    [
        (KUBELET_CLIENT, PLAIN, CLIENT_USAGES, ""),
        (KUBELET_CLIENT, PLAIN, [*CLIENT_USAGES, "key encipherment"], ""),
        (KUBELET_CLIENT, PLAIN, ["client auth"], "usages must be"),
        (KUBELET_CLIENT, PLAIN, [*CLIENT_USAGES, "server auth"], "usages must be"),
        (KUBELET_CLIENT, Wanted(NODE), CLIENT_USAGES, "organization is not system:nodes"),
        (KUBELET_CLIENT, Wanted(NODE, (*GROUP, "system:masters")), CLIENT_USAGES, "organization is not"),
        (KUBELET_CLIENT, Wanted("n1", GROUP), CLIENT_USAGES, "common name does not begin"),
        (KUBELET_CLIENT, Wanted("system:node:", GROUP), CLIENT_USAGES, "common name does not begin"),
        (KUBELET_CLIENT, SERVING, CLIENT_USAGES, "DNS subjectAltNames are not allowed"),
        (KUBELET_CLIENT, Wanted(NODE, GROUP, (), ("192.0.2.1",)), CLIENT_USAGES, "IP subjectAltNames"),
        (KUBELET_SERVING, SERVING, SERVING_USAGES, ""),
        (KUBELET_SERVING, PLAIN, SERVING_USAGES, "DNS or IP subjectAltName is required"),
        (KUBELET_SERVING, SERVING, CLIENT_USAGES, "usages must be"),
        (KUBELET_SERVING, Wanted(NODE, GROUP, ("n1",), (), ("a@b.c",)), SERVING_USAGES, "email"),
        (KUBELET_SERVING, Wanted(NODE, GROUP, ("n1",), (), (), ("spiffe://x",)), SERVING_USAGES, "URI"),
        (KUBELET_SERVING, Wanted(NODE, GROUP, ("n1",), other_names=True), SERVING_USAGES, "other"),
        (signers.CLIENT, Wanted("jane", ("devs",)), ["client auth"], ""),
        (signers.CLIENT, Wanted("jane"), [*CLIENT_USAGES, "key encipherment"], ""),
        (signers.CLIENT, Wanted("jane"), ["digital signature"], "usages must include"),
        (signers.CLIENT, Wanted("jane"), ["client auth", "server auth"], "usages must include"),
        ("example.com/mine", PLAIN, CLIENT_USAGES, "no signer example.com/mine"),
    ],
)
def test_each_signer_has_its_rules(signer: str, wanted: Wanted, usages: list[str], problem: str) -> None:
    found = signers.problem(signer, wanted, usages)
    assert problem in found and bool(problem) == bool(found)


def test_a_request_is_read_with_all_its_names() -> None:
    pem = make_request(NODE, GROUP, names=["n1"], addresses=["192.0.2.1", "2001:db8::1"], emails=["a@b.c"])
    assert signers.read(pem) == Wanted(NODE, GROUP, ("n1",), ("192.0.2.1", "2001:db8::1"), ("a@b.c",))
    assert signers.read(make_request("jane")) == Wanted("jane")


@pytest.mark.parametrize(
    "pem", [b"", b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN CERTIFICATE REQUEST-----\nx"]
)
def test_what_is_no_request_is_refused(pem: bytes) -> None:
    with pytest.raises(signers.BadRequestError):
        signers.read(pem)


def test_a_request_that_was_tampered_with_is_refused() -> None:
    lines = make_request("jane").splitlines()
    raw = bytearray(base64.b64decode(b"".join(lines[1:-1])))
    position = raw.index(b"jane")
    raw[position : position + 4] = b"root"
    pem = b"\n".join([lines[0], base64.b64encode(bytes(raw)), lines[-1]])
    with pytest.raises(signers.BadRequestError, match="signature is wrong"):
        signers.read(pem)


@pytest.mark.parametrize(
    ("signer", "user", "wanted", "usages", "expected"),
    [
        (KUBELET_CLIENT, "system:bootstrap:abcdef", PLAIN, CLIENT_USAGES, (CLIENT,)),
        (KUBELET_CLIENT, NODE, PLAIN, CLIENT_USAGES, (SELF_CLIENT, CLIENT)),
        (KUBELET_CLIENT, "system:node:n2", PLAIN, CLIENT_USAGES, (CLIENT,)),
        (KUBELET_CLIENT, NODE, Wanted(NODE, ("system:masters",)), CLIENT_USAGES, ()),
        (KUBELET_SERVING, NODE, SERVING, SERVING_USAGES, (SELF_SERVER,)),
        (KUBELET_SERVING, "system:node:n2", SERVING, SERVING_USAGES, ()),
        (KUBELET_SERVING, "system:bootstrap:abcdef", SERVING, SERVING_USAGES, ()),
        (signers.CLIENT, NODE, PLAIN, CLIENT_USAGES, ()),
    ],
)
def test_what_may_be_approved_without_a_person(
    signer: str, user: str, wanted: Wanted, usages: list[str], expected: tuple[Any, ...]
) -> None:
    assert recognize({"signerName": signer, "username": user, "usages": usages}, wanted) == expected


def node(name: str, *addresses: str) -> dict[str, Any]:
    listed = [{"type": "InternalIP", "address": address} for address in addresses]
    return {"metadata": {"name": name}, "status": {"addresses": listed}}


def test_a_serving_request_may_name_only_what_its_node_announces_alone() -> None:
    assert signers.foreign_names(SERVING, node("n1", "192.0.2.1")) == []
    assert signers.foreign_names(SERVING, node("n1", "192.0.2.2")) == ["192.0.2.1"]
    assert signers.foreign_names(Wanted(NODE, GROUP, ("kubernetes",)), node("n1")) == ["kubernetes"]
    nodes = [node("n1", "192.0.2.1"), node("n2", "192.0.2.1", "192.0.2.3")]
    assert signers.announced_by_others(["192.0.2.1", "192.0.2.2"], "n1", nodes) == ["192.0.2.1"]


DAY = 86400.0


@pytest.mark.parametrize(
    ("asked", "longest", "ca_ends", "expected"),
    [
        (None, 365 * DAY, 9e9, 365 * DAY - 300),
        (DAY, 365 * DAY, 9e9, DAY - 300),
        (999 * DAY, 365 * DAY, 9e9, 365 * DAY - 300),
        (None, 3600.0, 9e9, 3600),  # a short one is not cut by the back-dating
        (None, 365 * DAY, 1e9 + DAY, DAY),  # the CA ends first
    ],
)
def test_how_long_a_certificate_lives(
    asked: float | None, longest: float, ca_ends: float, expected: float
) -> None:
    assert validity(1e9, asked, longest, ca_ends) == (1e9 - 300, 1e9 + expected)


def test_nobody_gets_less_than_ten_minutes_by_asking() -> None:
    assert validity(1e9, 1.0, DAY, 9e9) == (1e9 - 60, 1e9 + 600)


def test_a_certificate_of_minutes_is_not_old_when_it_is_made() -> None:
    assert validity(1e9, None, 20.0, 9e9) == (1e9 - 2, 1e9 + 20)


def test_a_certificate_says_what_its_request_asked_for_and_no_more(tmp_path: Path) -> None:
    authority.ensure(authority.Cluster(tmp_path, "192.0.2.1", "n1"))
    now = 1.8e9
    issuer = Issuer(tmp_path / "pki/ca.crt", tmp_path / "pki/ca.key", DAY)
    pem = issuer.sign(make_request(NODE, GROUP, addresses=["192.0.2.1"]), SERVING_USAGES, None, now)
    found = x509.load_pem_x509_certificate(pem)
    found.verify_directly_issued_by(x509.load_pem_x509_certificate((tmp_path / "pki/ca.crt").read_bytes()))
    assert found.not_valid_after_utc.timestamp() == now + DAY - 300
    uses = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.SERVER_AUTH]
    constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca is False
    assert found.subject.rfc4514_string() == "CN=system:node:n1,O=system:nodes"


def test_an_expired_ca_signs_nothing(tmp_path: Path) -> None:
    authority.ensure(authority.Cluster(tmp_path, "192.0.2.1", "n1"))
    issuer = Issuer(tmp_path / "pki/ca.crt", tmp_path / "pki/ca.key", DAY)
    with pytest.raises(AuthorityError, match="has expired"):
        issuer.sign(make_request(NODE, GROUP), CLIENT_USAGES, None, 9e9)


MADE = "2026-01-01T00:00:00Z"


def request(certificate: bytes = b"", **conditions: str) -> dict[str, Any]:
    listed = [{"type": kind, "status": "True", "lastUpdateTime": when} for kind, when in conditions.items()]
    status: dict[str, Any] = {"conditions": listed}
    if certificate:
        status["certificate"] = base64.b64encode(certificate).decode()
    return {"metadata": {"creationTimestamp": MADE}, "status": status}


def test_requests_are_kept_an_hour_after_a_decision_and_a_day_without() -> None:
    made, later = seconds(MADE), "2026-01-01T02:00:00Z"
    assert ends(request()) == made + DAY
    assert ends(request(Approved=later)) == made + DAY, "approved, but its signer has not answered"
    assert ends(request(b"x", Approved=later)) == made + 3 * 3600
    assert ends(request(Denied=later)) == made + 3 * 3600
    assert ends(request(Approved=later, Failed=later)) == made + 3 * 3600


def test_a_request_whose_certificate_is_over_goes_at_once(tmp_path: Path) -> None:
    authority.ensure(authority.Cluster(tmp_path, "192.0.2.1", "n1"))
    issuer = Issuer(tmp_path / "pki/ca.crt", tmp_path / "pki/ca.key", 3600.0)
    pem = issuer.sign(make_request(NODE, GROUP), CLIENT_USAGES, None, 1.8e9)
    assert not certificate_expired(request(pem), 1.8e9 + 3599)
    assert certificate_expired(request(pem), 1.8e9 + 3600)
    assert not certificate_expired(request(), 9e9) and not certificate_expired(request(b"no PEM"), 9e9)
