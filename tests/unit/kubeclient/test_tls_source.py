"""A client certificate that is exchanged on disk while its user runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane import authority
from kubeclient.kubeconfig import ClientConfig
from kubeclient.transport import TlsSource


@pytest.fixture
def pairs(tmp_path: Path) -> list[bytes]:
    """Two certificates with their keys, each as one PEM text."""
    found = []
    for name in ("a", "b"):
        authority.ensure(authority.Cluster(tmp_path / name, "192.0.2.1", "n1"))
        pki = tmp_path / name / "pki"
        found.append((pki / "kubelet.crt").read_bytes() + (pki / "kubelet.key").read_bytes())
    return found


def put(file: Path, data: bytes) -> None:
    new = file.with_name("new")
    new.write_bytes(data)
    new.rename(file)


def test_new_connections_take_the_new_certificate(tmp_path: Path, pairs: list[bytes]) -> None:
    file = tmp_path / "current.pem"
    put(file, pairs[0])
    source = TlsSource(
        ClientConfig("https://x", cert=pairs[0], key=pairs[0], cert_file=str(file), key_file=str(file))
    )
    first, number = source.current()
    assert source.current() == (first, number), "unchanged files cost no new context"
    put(file, pairs[1])
    second, next_number = source.current()
    assert second is not first and next_number != number


def test_half_of_a_change_keeps_the_old_one(tmp_path: Path, pairs: list[bytes]) -> None:
    file = tmp_path / "current.pem"
    put(file, pairs[0])
    source = TlsSource(
        ClientConfig("https://x", cert=pairs[0], key=pairs[0], cert_file=str(file), key_file=str(file))
    )
    before = source.current()
    put(file, pairs[1][:300])
    assert source.current() == before
    file.unlink()
    assert source.current() == before
    put(file, pairs[1])
    assert source.current()[1] != before[1]


def test_a_certificate_may_come_later_than_its_user(tmp_path: Path, pairs: list[bytes]) -> None:
    """The kubeconfig has one inside; the first rotation writes the file."""
    file = tmp_path / "current.pem"
    source = TlsSource(
        ClientConfig("https://x", cert=pairs[0], key=pairs[0], cert_file=str(file), key_file=str(file))
    )
    before = source.current()
    put(file, pairs[1])
    assert source.current()[1] != before[1]
