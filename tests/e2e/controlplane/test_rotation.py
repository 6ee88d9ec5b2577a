"""A node's certificate over several lives, against a real control plane that signs for seconds only."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_plane import Cluster, Process

from controlplane import bootstrap_tokens
from controlplane.bootstrap_tokens import BootstrapToken
from kubeclient.kubeconfig import load
from kubeclient.resources import NODES, SECRETS, Resource
from kubeclient.rest import RestClient
from kubelet_py.node import x509
from kubelet_py.node.bootstrap import Bootstrap, client_renewal
from kubelet_py.node.certificate_store import read_pair
from kubelet_py.node.serving import ServingCertificate

pytestmark = pytest.mark.e2e

WHO = Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", False)
SECONDS = 12


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane whose certificates live twelve seconds."""
    flags = (f"--cluster-signing-duration={SECONDS}s",)
    process = Process(tmp_path_factory.mktemp("short"), controllers="all", flags=flags)
    process.start()
    cluster = Cluster(process)
    yield cluster
    process.kill()
    cluster.client.close()


@pytest.fixture
def joining(short: Cluster, tmp_path: Path) -> Bootstrap:
    """What the agent has on a machine that is to become node n9: a kubeconfig with a bootstrap token."""
    token = BootstrapToken("joins0", "0123456789abcdef")
    short.client.create(SECRETS, bootstrap_tokens.to_secret(token))
    admin = load(short.process.folder / "admin.conf")
    assert admin.ca_data is not None
    cluster = {"server": admin.server, "certificate-authority-data": base64.b64encode(admin.ca_data).decode()}
    document = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token.text}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file = tmp_path / "bootstrap.conf"
    file.write_text(json.dumps(document))
    return Bootstrap(tmp_path / "kubelet.conf", file, tmp_path / "pki", "n9", rotate=True)


def test_a_node_joins_and_renews_without_a_pause(short: Cluster, joining: Bootstrap, tmp_path: Path) -> None:
    login = joining.login(threading.Event())
    assert login is not None and login.certificate is not None
    assert login.certificate.common_name == "system:node:n9"
    assert str(joining.store.current) in (tmp_path / "kubelet.conf").read_text()
    short.client.delete(SECRETS, "bootstrap-token-joins0", "kube-system")  # renewing needs no token
    client = RestClient(login.config)
    client.create(NODES, {"metadata": {"name": "n9"}})
    heard: list[str] = []
    watch = client.watch(NODES, resource_version=client.get(NODES, "n9")["metadata"]["resourceVersion"],
                         field_selector="metadata.name=n9")  # fmt: skip
    listener = threading.Thread(target=lambda: heard.extend(event.type for event in watch))
    listener.start()
    renewal = client_renewal(joining, login, client, "n9", chance=lambda: 0.0)  # at 70 %
    renewal.start()
    serials = set()

    def renewed() -> bool:
        assert client.create(WHO, {})["status"]["userInfo"]["username"] == "system:node:n9"
        serials.add(x509.read(joining.store.current.read_bytes()).not_after)
        return len(serials) == 2

    try:
        short.until("a renewal", renewed, seconds=60)
        assert listener.is_alive(), "a watch goes on over renewals"
        short.client.patch(NODES, "n9", {"metadata": {"labels": {"seen": "yes"}}})
        short.until("the old watch heard of it", lambda: "MODIFIED" in heard)
    finally:
        renewal.stop()
        watch.close()
        listener.join()
        client.close()
    _comes_back(joining, tmp_path)


def _comes_back(joining: Bootstrap, tmp_path: Path) -> None:
    """Also when the last start ended before the kubeconfig was written, or in the middle of an exchange."""
    (tmp_path / "kubelet.conf").unlink()
    joining.store.current.unlink()
    login = joining.login(threading.Event())
    assert login is not None and login.certificate is not None
    pair = joining.store.load()
    assert pair is not None and login.certificate == pair.certificate
    assert load(tmp_path / "kubelet.conf").cert_file == str(joining.store.current)


def test_a_serving_certificate_is_signed_upon_request_and_renewed(short: Cluster, tmp_path: Path) -> None:
    """As node n1, whose client certificate the authority has made."""
    client = RestClient(load(short.process.folder / "kubelet.conf"))
    addresses = [{"type": "InternalIP", "address": "192.0.2.1"}]
    client.create(NODES, {"metadata": {"name": "n1"}, "status": {"addresses": addresses}})
    shown: list[Path] = []
    serving = ServingCertificate(
        given=None,
        ours=(tmp_path / "none", tmp_path / "none"),
        cert_dir=tmp_path / "pki",
        node_name="n1",
        addresses=("192.0.2.1",),
        chance=lambda: 0.0,
    )
    serving.start_by_request(lambda certificate, key: shown.append(certificate), client, lambda: True)
    try:
        short.until("a renewal", lambda: len(shown) > 1, seconds=60)
    finally:
        serving.stop()
        client.close()
    pair = read_pair(tmp_path / "pki/kubelet-server-current.pem")
    assert pair is not None
    assert (pair.certificate.names, pair.certificate.addresses) == (("n1",), ("192.0.2.1",))


def test_without_a_cluster_to_ask_a_node_signs_for_itself(tmp_path: Path) -> None:
    shown: list[tuple[Path, Path]] = []
    for _ in range(2):
        serving = ServingCertificate(
            given=None,
            ours=(tmp_path / "none", tmp_path / "none"),
            cert_dir=tmp_path / "pki",
            node_name="n1",
            addresses=("192.0.2.1",),
        )
        serving.start(lambda certificate, key: shown.append((certificate, key)))
    assert shown[0] == shown[1] == (tmp_path / "pki/kubelet.crt", tmp_path / "pki/kubelet.key")
    pair = read_pair(*shown[0])
    assert pair is not None and "192.0.2.1" in pair.certificate.addresses
    assert shown[0][1].stat().st_mode & 0o777 == 0o600
