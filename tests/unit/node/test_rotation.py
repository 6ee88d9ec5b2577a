"""When a certificate is asked for (pure), and reading what there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509 as library

from controlplane import authority
from kubelet_py.node import key_maker, x509
from kubelet_py.node.certificate_manager import client_subject, serving_subject
from kubelet_py.node.key_maker import Subject
from kubelet_py.node.rotation import decide, fits, retry_delay, rotation_time
from kubelet_py.node.x509 import Certificate

NODE = client_subject("n1")
GOOD = Certificate("system:node:n1", ("system:nodes",), (), (), 1000.0, 2000.0, b"")


@pytest.mark.parametrize(
    ("now", "share", "expected"),
    [
        (1000, 0.0, (False, "it is good", 600.0)),  # a look every ten minutes, should the clock jump
        (1699, 0.0, (False, "it is good", 1.0)),
        (1700, 0.0, (True, "70% of its life is over", 0.0)),
        (1899, 1.0, (False, "it is good", 1.0)),
        (1900, 1.0, (True, "90% of its life is over", 0.0)),
        (2000, 1.0, (True, "it has expired", 0.0)),
        (900, 0.0, (False, "it is good", 600.0)),  # the clock stands before its beginning
    ],
)
def test_a_certificate_is_renewed_between_70_and_90_percent(now: float, share: float, expected: Any) -> None:
    found = decide(GOOD, NODE, share=share, now=now, rotate=True)
    assert (found.ask, found.reason, found.seconds) == expected


def test_without_rotation_a_certificate_is_kept_to_its_end() -> None:
    assert not decide(GOOD, NODE, share=0.0, now=1999, rotate=False).ask
    assert decide(GOOD, NODE, share=0.0, now=2000, rotate=False).ask
    assert decide(None, NODE, share=0.0, now=0, rotate=False).reason == "there is none"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_time_lies_in_the_last_third_of_its_life(share: float) -> None:
    assert 1700 <= rotation_time(GOOD, share) <= 1900


def test_other_names_need_another_certificate() -> None:
    serving = serving_subject("n1", ["192.0.2.2", "192.0.2.1"])
    present = replace(GOOD, names=("n1", "more"), addresses=("192.0.2.1", "192.0.2.2"))
    assert fits(present, serving)
    assert not fits(replace(present, addresses=("192.0.2.1",)), serving)
    assert not fits(replace(present, names=()), serving)
    assert not fits(replace(present, organizations=()), serving)
    asked = decide(GOOD, client_subject("n2"), share=0.0, now=1000, rotate=True)
    assert (asked.ask, asked.reason) == (True, "it was made for another subject")


def test_failures_wait_longer_and_longer_up_to_two_minutes() -> None:
    assert [retry_delay(count, 0.0) for count in (1, 2, 3, 7, 50)] == [2, 4, 8, 120, 120]
    assert retry_delay(1, 1.0) == pytest.approx(2.2)


def test_certificates_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    authority.ensure(authority.Cluster(tmp_path, "192.0.2.1", "n1"))
    from cryptography.hazmat.primitives import serialization

    for name in ("ca", "kubelet", "apiserver", "apiserver-kubelet-client"):
        pem = (tmp_path / f"pki/{name}.crt").read_bytes()
        ours, theirs = x509.read(pem), library.load_pem_x509_certificate(pem)
        assert ours.not_before == theirs.not_valid_before_utc.timestamp()
        assert ours.not_after == theirs.not_valid_after_utc.timestamp()
        encoding = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert ours.public_key == theirs.public_key().public_bytes(*encoding)
        assert f"CN={ours.common_name}" in theirs.subject.rfc4514_string()
    assert ours.organizations == ("system:masters",)
    serving = x509.read((tmp_path / "pki/kubelet.crt").read_bytes())
    assert serving.names == ("n1", "localhost") and serving.addresses == ("127.0.0.1", "192.0.2.1")


def test_what_is_cut_off_is_told_as_such(tmp_path: Path) -> None:
    authority.ensure(authority.Cluster(tmp_path, "192.0.2.1", "n1"))
    pem = (tmp_path / "pki/ca.crt").read_bytes()
    lines = pem.splitlines(keepends=True)
    for broken in (b"", b"nonsense", pem[: len(pem) // 2], b"".join([lines[0], lines[1], lines[-1]])):
        with pytest.raises(ValueError):
            x509.read(broken)


def test_a_key_is_made_outside_and_kept_when_it_is_given() -> None:
    subject = Subject("system:node:n1", ("system:nodes",), ("n1",), ("192.0.2.1",))
    first = key_maker.make(subject)
    again = key_maker.make(subject, key=first.key)
    requests = [library.load_pem_x509_csr(made.document) for made in (first, again)]
    assert first.key == again.key and requests[0].public_key() == requests[1].public_key()
    assert requests[0].subject.rfc4514_string() == "CN=system:node:n1,O=system:nodes"
    found = x509.read(key_maker.make(subject, self_signed=True).document)
    assert (found.common_name, found.names, found.addresses) == ("system:node:n1", ("n1",), ("192.0.2.1",))
