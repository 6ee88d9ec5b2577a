"""Ways to a registry: tokens that docker-registry itself checks, TLS, and proxies from the environment."""

from __future__ import annotations

import base64
import datetime
import http.server
import io
import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from kubelet_py.cli.main import main
from kubelet_py.pods.image_puller import fetch_with_credentials
from runtime.images import push, registry
from runtime.images.credentials import Credentials
from runtime.images.errors import PullNotFound, PullUnauthorized, RegistryUnavailable
from runtime.images.store import ImageStore
from tests.privileged.images import registry_server
from tests.privileged.images.test_registry import PASSWORDS
from tests.unit.images.build import docker_archive, layer, tar_file

pytestmark = registry_server.needed


class Certificate:
    """A key and a certificate that signs itself, for `name`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.key = rsa.generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.file, self.key_file = folder / f"{name}.pem", folder / f"{name}.key"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self.key_file.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def token(self, access: list[dict[str, Any]]) -> str:
        """A token as the distribution project specifies it (spec/auth/jwt.md)."""
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        now = int(datetime.datetime.now().timestamp())
        claims = {"iss": "lab", "sub": "ann", "aud": "registry", "access": access}
        times = {"exp": now + 300, "nbf": now - 10, "iat": now}
        parts = (head, {**claims, **times})
        signed = b".".join(_unpadded(json.dumps(part).encode()) for part in parts)
        signature = self.key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return (signed + b"." + _unpadded(signature)).decode()


def _unpadded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class TokenService(http.server.BaseHTTPRequestHandler):
    """Gives ann, who knows her password or her refresh token, what she asks for; others may do nothing."""

    signer: Certificate
    asked: list[str]

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        known = self.headers.get("Authorization") == Credentials("ann", "secret").basic()
        self.answer(query["scope"][0], known)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.answer(form["scope"][0], form["refresh_token"] == ["r3fresh"])

    def answer(self, scope: str, known: bool) -> None:
        type(self).asked.append(scope)
        kind, name, actions = scope.split(":")
        access = [{"type": kind, "name": name, "actions": actions.split(",")}] if known else []
        body = json.dumps({"token": type(self).signer.token(access)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


@pytest.fixture
def server_of_text() -> Iterator[str]:
    """Speaks HTTP and no TLS."""

    class Server(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

    with serving(Server) as where:
        yield where


@pytest.fixture
def archive() -> io.BytesIO:
    return io.BytesIO(tar_file(docker_archive([layer([("file", b"content")])], ["app:v1"])))


def test_docker_registry_accepts_the_tokens_that_we_fetch(tmp_path: Path, archive: io.BytesIO) -> None:
    class Service(TokenService):
        signer = Certificate(tmp_path, "tokens.example")
        asked: list[str] = []

    origin = ImageStore(tmp_path / "origin")
    [image] = origin.import_archive(archive)
    with serving(Service) as tokens:
        extra = (
            f"auth: {{token: {{realm: 'http://{tokens}/token', service: registry, issuer: lab,"
            f" rootcertbundle: {Service.signer.file}}}}}\n"
        )
        with registry_server.registry(tmp_path / "registry", extra=extra) as where:
            name, ann = f"{where}/team/app:v1", Credentials("ann", "secret")
            push.push(origin, image.id, target=name, credentials=ann)
            assert "repository:team/app:pull,push" in {
                ":".join([*scope.split(":")[:2], ",".join(sorted(scope.split(":")[2].split(",")))])
                for scope in Service.asked
            }
            Service.asked.clear()
            pulled = registry.pull(ImageStore(tmp_path / "one"), name, credentials=ann)
            assert pulled.id == image.id and set(Service.asked) == {"repository:team/app:pull"}
            refresh = Credentials(identity_token="r3fresh")
            assert registry.pull(ImageStore(tmp_path / "two"), name, credentials=refresh).id == image.id
            for wrong in (None, Credentials("ann", "wrong"), Credentials(identity_token="no")):
                with pytest.raises(PullUnauthorized, match="401"):
                    registry.pull(ImageStore(tmp_path / "three"), name, credentials=wrong)


def test_a_busy_token_service_is_asked_again_after_growing_pauses(tmp_path: Path) -> None:
    answers = [503, 429, 500, 200]
    dates = {502: "Fri, 31 Dec 2100 23:59:59 GMT", 504: "Fri, 31 Dec 1999 23:59:59 GMT"}
    strange = {429: "-3", 500: "nan", **dates}

    class Service(http.server.BaseHTTPRequestHandler):
        where = ""

        def do_GET(self) -> None:
            if self.path.startswith("/token"):
                status, body = answers.pop(0), b'{"token": "right"}'
            elif self.headers.get("Authorization") == "Bearer right":
                status, body = 404, b"{}"
            else:
                status, body = 401, b"{}"
            self.send_response(status)
            self.send_header("WWW-Authenticate", f'Bearer realm="http://{self.where}/token",service="lab"')
            if status in strange:
                self.send_header("Retry-After", strange[status])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    pauses: list[float] = []
    with serving(Service) as where:
        Service.where = where
        with pytest.raises(PullNotFound, match="404"):  # so it was let in
            registry.pull(ImageStore(tmp_path), f"{where}/app:v1", sleep=pauses.append)
        assert pauses == [0.5, 0.0, 0.0], "what no clock knows is no time at all"
        answers.extend([502, 504, 200])
        pauses.clear()
        with pytest.raises(PullNotFound, match="404"):
            registry.pull(ImageStore(tmp_path), f"{where}/app:v1", sleep=pauses.append)
        assert pauses == [10.0, 0.0], "the longest wait, and none for a date that is over"
        answers.extend([503] * 4)
        with pytest.raises(RegistryUnavailable, match="token: 503"):
            registry.pull(ImageStore(tmp_path), f"{where}/app:v1", sleep=pauses.append)
    assert answers == [], "four times, and not four times for each try of the manifest"


def test_a_registry_without_tls_is_named_as_such(tmp_path: Path, server_of_text: str) -> None:
    folder = tmp_path / "hosts/plain.example"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(f'server = "https://{server_of_text}"\n')
    with pytest.raises(RegistryUnavailable, match="it does not speak TLS: name it as http:// in its hosts"):
        registry.pull(ImageStore(tmp_path / "store"), "plain.example/app:v1", hosts_dir=tmp_path / "hosts")


def test_who_asked_for_no_look_at_certificates_is_not_warned_of_it(
    tmp_path: Path, archive: io.BytesIO, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Certificate(tmp_path, "registry.lab.example")
    ImageStore(tmp_path / "var/lib/kubelet-py/images").import_archive(archive)
    with registry_server.registry(tmp_path / "registry", tls=(own.file, own.key_file)) as where:
        flags = ("--root", str(tmp_path), "--insecure", "--quiet")
        assert main(["image", "push", *flags, "app:v1", f"{where}/app:v1"]) == 0
        assert main(["image", "pull", *flags, f"{where}/app:v1"]) == 0
    assert capsys.readouterr().err == ""


def test_a_pods_secrets_are_tried_before_the_nodes_own_file(tmp_path: Path, archive: io.BytesIO) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(PASSWORDS)
    origin = ImageStore(tmp_path / "origin")
    [image] = origin.import_archive(archive)
    extra = f"auth: {{htpasswd: {{realm: x, path: {passwords}}}}}\n"
    with registry_server.registry(tmp_path / "registry", extra=extra) as where:
        name = f"{where}/app:v1"
        push.push(origin, image.id, target=name, credentials=Credentials("ann", "secret"))

        def docker_config(password: str) -> str:
            pair = base64.b64encode(f"ann:{password}".encode()).decode()
            return json.dumps({"auths": {where: {"auth": pair}}})

        def fetch(number: int, secret: str | None) -> str:
            pod = {"spec": {"imagePullSecrets": [{"name": "mine"}] if secret else []}}
            found = {"data": {".dockerconfigjson": docker_config(secret or "")}}
            store = ImageStore(tmp_path / f"store{number}")
            return fetch_with_credentials(store, pod, name, lambda _: found, node_file=node_file).id

        node_file = tmp_path / "config.json"
        with pytest.raises(PullUnauthorized):
            fetch(1, None)
        assert fetch(2, "secret") == image.id
        node_file.write_text(docker_config("secret"))
        assert fetch(3, None) == image.id
        assert fetch(4, "wrong") == image.id, "the next credentials are tried"
        node_file.write_text(docker_config("wrong"))
        assert fetch(5, "secret") == image.id


class Tunnel(http.server.BaseHTTPRequestHandler):
    """A proxy for CONNECT: whatever host is asked for, the tunnel ends at `behind`."""

    behind: str
    asked: list[str]

    def do_CONNECT(self) -> None:
        type(self).asked.append(self.path)
        host, _, port = type(self).behind.partition(":")
        with socket.create_connection((host, int(port)), 10) as far:
            self.send_response(200)
            self.end_headers()
            pair = {self.connection: far, far: self.connection}
            while ready := select.select(list(pair), [], [], 10)[0]:
                for one in ready:
                    data = one.recv(65536)
                    if not data:
                        self.close_connection = True
                        return
                    pair[one].sendall(data)

    def log_message(self, *_: object) -> None:
        return


def test_https_goes_through_the_environments_proxy_unless_no_proxy_names_the_host(
    tmp_path: Path, archive: io.BytesIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Certificate(tmp_path, "registry.lab.example")
    origin = ImageStore(tmp_path / "origin")
    [image] = origin.import_archive(archive)
    with registry_server.registry(tmp_path / "registry", tls=(own.file, own.key_file)) as where:

        class Proxy(Tunnel):
            behind = where
            asked: list[str] = []

        with serving(Proxy) as proxy:
            for name in ("https_proxy", "http_proxy", "no_proxy", "HTTP_PROXY", "NO_PROXY"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
            name, trusted = "registry.lab.example/team/app:v1", str(own.file)
            push.push(origin, image.id, target=name, ca_file=trusted)
            assert registry.pull(ImageStore(tmp_path / "one"), name, ca_file=trusted).id == image.id
            assert set(Proxy.asked) == {"registry.lab.example:443"}
            with pytest.raises(RegistryUnavailable, match=r"certificate.* \(trust it by `ca` in its hosts"):
                registry.pull(ImageStore(tmp_path / "two"), name)
            Proxy.asked.clear()
            monkeypatch.setenv("NO_PROXY", ".lab.example")
            with pytest.raises(RegistryUnavailable):  # nobody here knows that name
                registry.pull(ImageStore(tmp_path / "three"), name, ca_file=trusted)
            assert Proxy.asked == []
