from __future__ import annotations

import base64
import ssl
from pathlib import Path

import orjson
import pytest

from kubeclient.errors import ConfigError
from kubeclient.kubeconfig import ClientConfig, load
from kubeclient.transport import tls_context

TEXT = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: c, user: u, namespace: ns}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443/", certificate-authority: ca.crt}}]
users: [{name: u, user: {token: secret, client-certificate-data: %s}}]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "config"
    path.write_text(text)
    (folder / "ca.crt").write_bytes(b"CA")
    return path


def test_files_count_from_the_kubeconfigs_folder_and_inline_data_is_decoded(tmp_path) -> None:
    config = load(written(tmp_path, TEXT % base64.b64encode(b"PEM").decode()))
    assert (config.server, config.namespace, config.token) == ("https://127.0.0.1:6443", "ns", "secret")
    assert (config.ca_data, config.cert) == (b"CA", b"PEM")


def test_a_json_kubeconfig_is_read_too(tmp_path) -> None:
    document = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://a", "insecure-skip-tls-verify": True}}],
    }
    config = load(written(tmp_path, orjson.dumps(document).decode()))
    assert (config.server, config.insecure) == ("http://a", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "not a mapping"),
        ("a: [", "Could not parse"),
        ("{}", "no current-context"),
        ("current-context: x", "contexts has no entry named 'x'"),
        (TEXT % "'!'", "client-certificate-data"),
        (TEXT.replace("ca.crt", "missing.crt") % "''", "missing.crt"),
        (TEXT.replace("token: secret", "exec: {}") % "''", "logs in by exec"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, text))


def test_a_missing_kubeconfig_is_said(tmp_path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "nothing")


def test_certificates_that_are_none_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="https://a"):
        tls_context(ClientConfig(server="https://a", insecure=True, cert=b"x", key=b"y"))


def test_insecure_means_that_nothing_is_checked_and_only_then() -> None:
    assert tls_context(ClientConfig(server="https://a", insecure=True)).verify_mode is ssl.CERT_NONE
    assert tls_context(ClientConfig(server="https://a")).verify_mode is ssl.CERT_REQUIRED
