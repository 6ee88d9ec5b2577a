"""A node's certificates on disk: exchanged as a whole, and found again after any interruption."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane import authority
from controlplane.issuing import Issuer
from kubeclient.errors import AlreadyExists, Forbidden, ServerUnavailable
from kubelet_py.errors import CertificateError
from kubelet_py.node.certificate_manager import CLIENT, CertificateManager, client_subject
from kubelet_py.node.certificate_requests import Refused, answer_of, ask, request_name
from kubelet_py.node.certificate_store import CertificateStore, Pair
from kubelet_py.node.key_maker import Made
from tests.csr_maker import make_key, make_request

NODE = "system:node:n1"
NOW = 1.8e9


class Ca:
    """Signs for one hour from `now`."""

    def __init__(self, folder: Path) -> None:
        authority.ensure(authority.Cluster(folder, "192.0.2.1", "n1"))
        self._issuer = Issuer(folder / "pki/ca.crt", folder / "pki/ca.key", 3600.0)

    def pair(self, now: float = NOW, name: str = NODE) -> tuple[bytes, bytes]:
        key, pem = make_key()
        return self.sign(make_request(name, ["system:nodes"], key=key), now), pem

    def sign(self, request: bytes, now: float = NOW) -> bytes:
        return self._issuer.sign(request, ["digital signature", "client auth"], None, now)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def store(tmp_path: Path) -> CertificateStore:
    return CertificateStore(tmp_path / "pki", "kubelet-client")


def test_a_pair_is_one_private_file_behind_a_link(ca: Ca, store: CertificateStore) -> None:
    assert store.load() is None
    pair = store.save(*ca.pair(), NOW)
    assert pair.file.name == "kubelet-client-2027-01-15-08-00-00.pem"
    assert os.readlink(store.current) == pair.file.name
    assert pair.file.stat().st_mode & 0o777 == 0o600 and pair.file.parent.stat().st_mode & 0o777 == 0o700
    found = store.load()
    assert found is not None and found.certificate == pair.certificate


def test_the_present_pair_and_its_predecessor_stay(ca: Ca, store: CertificateStore) -> None:
    files = [store.save(*ca.pair(), NOW + number // 2).file for number in range(4)]
    assert len(set(files)) == 4, "two in one second do not overwrite each other"
    assert [file.exists() for file in files] == [False, False, True, True]


def test_a_certificate_of_another_key_is_refused_and_the_old_pair_stays(
    ca: Ca, store: CertificateStore
) -> None:
    old = store.save(*ca.pair(), NOW)
    with pytest.raises(CertificateError, match="does not fit its key"):
        store.save(ca.pair()[0], ca.pair()[1], NOW + 1)
    found = store.load()
    assert found is not None and found.certificate == old.certificate
    assert [entry.name for entry in old.file.parent.iterdir() if entry.name.startswith(".")] == []


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def no_key(file: Path) -> None:
    file.write_bytes(file.read_bytes().split(b"-----BEGIN EC")[0].split(b"-----BEGIN PRIVATE")[0])


@pytest.mark.parametrize("damage", [cut_off, no_key, Path.unlink])
def test_a_damaged_pair_gives_way_to_the_newest_good_one(
    ca: Ca, store: CertificateStore, damage: Any
) -> None:
    old, new = store.save(*ca.pair(), NOW), store.save(*ca.pair(), NOW + 1)
    damage(new.file)
    found = store.load()
    assert found is not None and found.certificate == old.certificate
    assert os.readlink(store.current) == old.file.name, "the link is mended"
    damage(old.file)
    assert store.load() is None


def test_a_link_that_was_being_exchanged_is_made_again(ca: Ca, store: CertificateStore) -> None:
    pair = store.save(*ca.pair(), NOW)
    store.current.rename(store.current.with_name("kubelet-client-updated.pem"))
    (store.current.parent / ".kubelet-client-2027-01-15-08-00-09.pem.new").write_bytes(b"half")
    found = store.load()
    assert found is not None and found.certificate == pair.certificate
    assert store.current.is_symlink()
    assert store.save(*ca.pair(), NOW + 9).file.exists()


class Api:
    """What the API server answers to create and get, one after another; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.made: list[dict[str, Any]] = []

    def create(self, resource: Any, body: dict[str, Any]) -> dict[str, Any]:
        self.made.append(body)
        return dict(self._next())

    def get(self, resource: Any, name: str) -> dict[str, Any]:
        return dict(self._next())

    def _next(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer(self.made[-1]) if callable(answer) else answer


def status(kind: str = "", message: str = "", **more: str) -> dict[str, Any]:
    conditions = [{"type": kind, "reason": "Because", "message": message}] if kind else []
    return {"metadata": {"name": "r"}, "status": {"conditions": conditions, **more}}


def test_an_answer_is_a_certificate_a_refusal_or_none_yet() -> None:
    assert answer_of(status()) is None and answer_of(status("Approved")) is None
    assert answer_of(status("Approved", certificate="b25l")) == b"one"
    with pytest.raises(Refused, match="r was denied: Because: not you"):
        answer_of(status("Denied", "not you"))
    with pytest.raises(Refused, match="r was not signed"):
        answer_of({"metadata": {"name": "r"}, "status": {"conditions": [{"type": "Failed"}]}})


def test_asking_goes_on_where_an_earlier_try_was_cut_off() -> None:
    failures = (AlreadyExists({"code": 409}), ServerUnavailable({"code": 503}), status())
    api = Api(*failures, status("Approved", certificate="b25l"))
    assert ask(api, "r", b"pem", signer="s", usages=["u"], stopping=Never()) == b"one"  # type: ignore[arg-type]


def test_nobody_who_answers_is_told_with_what_to_do() -> None:
    clock = iter([0.0, 1.0, 901.0])
    api = Api(status(), status())
    with pytest.raises(CertificateError, match="kubectl certificate approve r"):
        ask(api, "r", b"", signer="s", usages=[], stopping=Never(), clock=lambda: next(clock))  # type: ignore[arg-type]


def test_a_requests_name_follows_from_key_subject_and_signer() -> None:
    first = request_name(b"key", "system:node:n1", "s")
    assert first == request_name(b"key", "system:node:n1", "s") and first.startswith("node-csr-")
    others = {request_name(b"kez", "system:node:n1", "s"), request_name(b"key", "system:node:n2", "s"),
              request_name(b"key", "system:node:n1", "t")}  # fmt: skip
    assert len(others | {first}) == 4


class Never(threading.Event):
    """Does not wait and is never set."""

    def wait(self, timeout: float | None = None) -> bool:
        return False


@pytest.fixture
def manager(
    ca: Ca, store: CertificateStore
) -> Iterator[tuple[CertificateManager, Api, list[float], list[Pair]]]:
    now, api, changed = [NOW], Api(), list[Pair]()

    def make(subject: Any, key: bytes = b"") -> Made:
        loaded, pem = make_key()
        return Made(pem, make_request(subject.common_name, subject.organizations, key=loaded))

    yield (
        CertificateManager(
            CLIENT, store, present=None, subject=lambda: client_subject("n1"), client=lambda _: api,  # type: ignore[arg-type,return-value]
            rotate=True, changed=changed.append, clock=lambda: now[0], chance=lambda: 0.0, make=make,
        ),
        api, now, changed,
    )  # fmt: skip


def signed(ca: Ca, now: float) -> Any:
    import base64

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        pem = ca.sign(base64.b64decode(body["spec"]["request"]), now)
        return status("Approved", certificate=base64.b64encode(pem).decode())

    return answer


def test_a_certificate_is_got_kept_and_renewed_in_time(manager: Any, ca: Ca, store: CertificateStore) -> None:
    keeper, api, now, changed = manager
    api.answers = [status(), signed(ca, NOW)]
    assert keeper.step() == 0.0 and len(changed) == 1
    assert store.pending_key() == b""
    assert keeper.step() == 600.0 and len(changed) == 1
    begin, end = changed[0].certificate.not_before, changed[0].certificate.not_after
    now[0] = begin + 0.7 * (end - begin)
    api.answers = [status(), signed(ca, now[0])]
    assert keeper.step() == 0.0 and len(changed) == 2
    assert changed[1].certificate.not_after > end
    spec = api.made[-1]["spec"]
    assert spec["signerName"] == "kubernetes.io/kube-apiserver-client-kubelet"
    assert spec["usages"] == ["digital signature", "client auth"]


def test_failures_keep_the_key_and_a_refusal_takes_another(manager: Any, store: CertificateStore) -> None:
    keeper, api, _, changed = manager
    api.answers = [ServerUnavailable({"code": 503})]
    assert keeper.step() == 2.0
    assert store.pending_key() != b"", "the same request is asked for again"
    api.answers = [Forbidden({"code": 403, "message": "no"})]
    assert keeper.step() == 4.0
    api.answers = [status(), status("Denied", "no")]
    assert keeper.step() == 8.0
    assert store.pending_key() == b"" and changed == []
