"""Whether a server is the cluster that a token was made for: every way in which it may not be."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from controlplane import authority, bootstrap_tokens
from controlplane.apiserver.bootstrap_joining import cluster_info
from controlplane.bootstrap_tokens import BootstrapToken
from kubeclient.errors import ServerUnavailable
from kubeclient.kubeconfig import ClientConfig, load
from kubelet_py.cli import join, token
from kubelet_py.cli.discovery import Answer, discover, server_url
from kubelet_py.cli.errors import CommandError

SERVER = "https://192.0.2.1:6443"
NOW = 1.8e9
TOKEN = BootstrapToken("abcdef", "0123456789abcdef")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    authority.ensure(authority.Cluster(made, "192.0.2.1", "n1"))
    return made


@pytest.fixture
def ca(folder: Path) -> bytes:
    return (folder / "pki/ca.crt").read_bytes()


@pytest.fixture
def data(ca: bytes) -> dict[str, str]:
    """cluster-info's data, signed with TOKEN."""
    text = cluster_info(SERVER, ca)["data"]["kubeconfig"]
    return {"kubeconfig": text, "jws-kubeconfig-abcdef": bootstrap_tokens.sign(text, TOKEN)}


def answer(data: Any, code: int = 200, now: float = NOW) -> Answer:
    return code, {"date": formatdate(now, usegmt=True)}, json.dumps({"data": data}).encode()


def ask(*answers: Any, pins: tuple[str, ...] = (), presented: BootstrapToken = TOKEN) -> Any:
    """Discover with these answers to the first and the second request."""
    left = list(answers)
    asked: list[ClientConfig] = []

    def fetch(config: ClientConfig) -> Answer:
        asked.append(config)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]

    cluster = discover(SERVER, presented, pins, fetch=fetch, clock=lambda: NOW)
    assert [config.insecure for config in asked] == [True, False]
    assert asked[1].ca_data == cluster.ca and all(config.token is None for config in asked)
    return cluster


def test_the_right_cluster_is_known_by_signature_pin_and_tls(data: dict[str, str], ca: bytes) -> None:
    found = ask(answer(data), answer(data), pins=(token.ca_hash(ca),))
    assert (found.server, found.ca) == (SERVER, ca)
    assert ask(answer(data), answer(data)).ca == ca


def test_a_pin_is_what_kubeadm_and_openssl_compute(folder: Path, ca: bytes) -> None:
    import hashlib

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    key = x509.load_pem_x509_certificate(ca).public_key()
    encoding = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert token.ca_hash(ca) == "sha256:" + hashlib.sha256(key.public_bytes(*encoding)).hexdigest()
    command = token.join_command(load(folder / "admin.conf"), TOKEN)
    assert command.endswith(f"--token {TOKEN.text} --discovery-token-ca-cert-hash {token.ca_hash(ca)}")


def without_signature(data: dict[str, str]) -> Answer:
    return answer({"kubeconfig": data["kubeconfig"]})


def with_another_ca(data: dict[str, str]) -> Answer:
    return answer({**data, "kubeconfig": data["kubeconfig"].replace("LS0t", "LS1t", 1)})


def signed_nonsense(data: dict[str, str]) -> Answer:
    return answer({"kubeconfig": "{}", "jws-kubeconfig-abcdef": bootstrap_tokens.sign("{}", TOKEN)})


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (without_signature, "does not know the token abcdef, or it has expired .*token create"),
        (with_another_ca, "signature .* does not fit the token abcdef"),
        (signed_nonsense, "holds no usable CA"),
        (lambda data: answer(data, 401), "it answered 401"),
        (lambda data: (200, {}, b"<html>"), "is no ConfigMap"),
        (lambda data: answer(data, now=NOW + 300), "clock is 300 s behind that of .*timedatectl"),
        (lambda data: answer(data, now=NOW - 300), "clock is 300 s ahead of that of"),
    ],
)
def test_a_wrong_first_answer(data: dict[str, str], first: Callable[[Any], Answer], says: str) -> None:
    with pytest.raises(CommandError, match=says):
        ask(first(data))


def test_a_mistyped_token_and_a_wrong_pin(data: dict[str, str], ca: bytes) -> None:
    with pytest.raises(CommandError, match="the token is mistyped, or this is not the cluster"):
        ask(answer(data), presented=replace(TOKEN, secret="0" * 16))
    with pytest.raises(CommandError, match=f"is {token.ca_hash(ca)}, not sha256:0"):
        ask(answer(data), pins=("sha256:0",))


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (ServerUnavailable.unreachable("certificate is not yet valid"), "clocks of both machines"),
        (ServerUnavailable.unreachable("IP address mismatch"), "does not name 192.0.2.1"),
        (ServerUnavailable.unreachable("self-signed certificate"), "is not from the CA in its own"),
        (answer({"kubeconfig": "other"}), "two different things about itself"),
    ],
)
def test_a_wrong_second_answer(data: dict[str, str], second: Any, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        ask(answer(data), second)


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("192.0.2.1", "https://192.0.2.1:6443"),
        ("https://192.0.2.1:6443/", SERVER),
        ("cp.example:7443", "https://cp.example:7443"),
        ("https://[2001:db8::1]:6443", "https://[2001:db8::1]:6443"),
    ],
)
def test_an_address_is_read_as_people_type_it(typed: str, url: str) -> None:
    assert server_url(typed) == url


@pytest.mark.parametrize("typed", ["http://192.0.2.1", "https://", "https://a:b", "https://a:6443/path"])
def test_an_address_of_something_else_is_refused(typed: str) -> None:
    with pytest.raises(CommandError, match="--server"):
        server_url(typed)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"token": "nonsense"}, "--token: a bootstrap token has the form"),
        ({"pins": []}, "give --discovery-token-ca-cert-hash"),
        ({"pins": ["md5:00"]}, "must be sha256: and 64 hex digits"),
        ({"pins": ["sha256:xyz"]}, "must be sha256: and 64 hex digits"),
    ],
)
def test_what_join_is_given_is_checked_first(changes: dict[str, Any], says: str) -> None:
    given = {"token": TOKEN.text, "pins": ["sha256:" + "0" * 64], "unpinned": False} | changes
    with pytest.raises(CommandError, match=says):
        join._token(argparse.Namespace(**given))
    assert join._token(argparse.Namespace(token=TOKEN.text, pins=[], unpinned=True)) == TOKEN


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"usages": "signing,world"}, "--usages"),
        ({"usages": ""}, "--usages"),
        ({"groups": "system:masters"}, "does not match"),
        ({"ttl": "soon"}, "Could not read duration"),
        ({"token": "short"}, "has the form"),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(options: dict[str, str], says: str) -> None:
    given = {"token": None, "ttl": "24h", "usages": "signing", "groups": "", "description": ""} | options
    with pytest.raises(CommandError, match=says):
        token._wanted(argparse.Namespace(**given), NOW)


def test_a_token_for_ever_and_one_for_a_day() -> None:
    given = {
        "token": TOKEN.text,
        "ttl": "0",
        "usages": "signing,authentication",
        "groups": "",
        "description": "d",
    }
    made = token._wanted(argparse.Namespace(**given), NOW)
    assert made.expires is None and token._row(made, NOW)[1:3] == ("<forever>", "<never>")
    day = token._wanted(argparse.Namespace(**{**given, "ttl": "24h"}), NOW)
    assert day.expires == NOW + 86400 and token._row(day, NOW)[1:3] == ("24h", "2027-01-16T08:00:00Z")


def test_the_clusters_ranges_are_read_from_json_and_from_kubeadms_yaml() -> None:
    wanted = {"podSubnet": "10.1.0.0/16", "serviceSubnet": "10.2.0.0/16"}
    assert join._networking(json.dumps({"networking": wanted})) == wanted
    text = "kind: ClusterConfiguration\nnetworking:\n  podSubnet: 10.1.0.0/16\n  serviceSubnet: 10.2.0.0/16\n"
    assert join._networking(text) == wanted
    assert join._networking("") == {}
