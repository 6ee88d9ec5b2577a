"""A kubelet server over a backend whose containers are plain processes of the test machine.

The processes are real, so that pipes, exit codes and half-closes behave as they do; only the shim is
replaced, by a thread at the other end of a socket pair that speaks the shim's frames.
"""

from __future__ import annotations

import datetime
import json
import math
import socket
import struct
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kubelet_py.instruments import Instrument
from kubelet_py.node.usage import NodeUsage
from kubelet_py.pods.durations import Distribution, Durations
from runtime import streams
from runtime.errors import RuntimeFailure
from tests.unit.server import usage_sample

_KEY_USES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
_KEY_USES += ("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
    "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "x"}], "securityContext": {}},
    "status": {"phase": "Running", "containerStatuses": [{"name": "main", "state": {"running": {}}}]},
}


class Backend:
    """Serves pod default/web with the one container main."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "0.log"
        self.running = True
        self.ports: dict[int, tuple[str, int]] = {}
        self.sizes: list[dict[str, int]] = []

    def pods(self) -> list[dict[str, Any]]:
        return [POD]

    def running_pods(self) -> list[dict[str, Any]]:
        return [{"metadata": POD["metadata"]}]

    def timeline(self, namespace: str, pod: str) -> dict[str, Any]:
        self.container_id(namespace, pod, "main")
        return {"steps": []}

    def starts(self) -> Distribution:
        return Durations((1.0,)).read()

    def operations(self) -> dict[str, Distribution]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {"maxPods": 110}

    def measure(self, *, disks: bool, network: bool, detail: bool) -> NodeUsage:
        return usage_sample.node(disks=disks, network=network, detail=detail)

    def probe_results(self) -> list[tuple[dict[str, str], dict[str, int], Distribution]]:
        return [({"probe_type": "Liveness"}, {"successful": 2}, Durations((1.0,)).read())]

    def instruments(self) -> list[Instrument]:
        return []

    def expiries(self) -> dict[str, float]:
        return {"server": math.inf}

    def volume_counts(self) -> dict[tuple[str, str], int]:
        return {}

    def container_id(self, namespace: str, pod: str, container: str, uid: str | None = None) -> str:
        if (namespace, pod) != ("default", "web"):
            raise LookupError("pod does not exist")
        if container != "main":
            raise LookupError(f'container not found ("{container}")')
        return "c1"

    def log_path(self, namespace: str, pod: str, container: str, *, previous: bool) -> Path:
        if (namespace, pod) != ("default", "web"):
            raise LookupError(f'pod "{pod}" does not exist')
        if previous:
            raise LookupError('previous terminated container "main" in pod "web" not found')
        return self.log

    def container_running(self, namespace: str, pod: str, container: str) -> bool:
        return self.running

    def exec(
        self, container_id: str, argv: Sequence[str], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> streams.Stream:
        if argv[0] == "broken":
            raise RuntimeFailure("the shim is gone")
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._shim, args=(theirs, list(argv), stdin), daemon=True).start()
        return streams.Stream(ours)

    def attach(
        self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> streams.Stream:
        return self.exec(
            container_id, ["sh", "-c", "cat; exit 5"], tty=tty, stdin=stdin, stdout=stdout, stderr=stderr
        )

    def port_forward(self, namespace: str, pod: str, port: int) -> socket.socket:
        if port not in self.ports:
            raise OSError(f"dial tcp4 127.0.0.1:{port}: connect: connection refused")
        return socket.create_connection(self.ports[port])

    def _shim(self, connection: socket.socket, argv: list[str], stdin: bool) -> None:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError:
            text = f'exec: "{argv[0]}": executable file not found in $PATH'
            connection.sendall(streams.pack(streams.EXIT, json.dumps({"error": text}).encode()))
            connection.close()
            return
        lock = threading.Lock()

        def pump(channel: int, source: Any) -> None:
            while data := source.read1(65536):
                with lock:
                    connection.sendall(streams.pack(channel, data))
            source.close()

        pumps = [
            threading.Thread(target=pump, args=(streams.STDOUT, process.stdout)),
            threading.Thread(target=pump, args=(streams.STDERR, process.stderr)),
        ]
        for thread in pumps:
            thread.start()
        threading.Thread(target=self._stdin, args=(connection, process), daemon=True).start()
        for thread in pumps:
            thread.join()
        code = process.wait()
        try:
            connection.sendall(streams.pack(streams.EXIT, json.dumps({"exitCode": code}).encode()))
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server has hung up

    def _stdin(self, connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
        reader = streams.FrameReader()
        with connection:
            while data := connection.recv(65536):
                for channel, payload in reader.feed(data):
                    if channel == streams.RESIZE:
                        self.sizes.append(json.loads(payload))
                    elif process.stdin is not None:
                        self._feed(process.stdin, channel, payload)
        if process.stdin is not None:
            self._feed(process.stdin, streams.CLOSE, b"")

    def _feed(self, stdin: Any, channel: int, payload: bytes) -> None:
        try:
            if channel == streams.CLOSE:
                stdin.close()
            elif channel == streams.STDIN and not stdin.closed:
                stdin.write(payload)
                stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended


class Pki:
    """A CA with a serving certificate and client certificates, all valid for a day."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._ca = self._sign("ca", self._key, self._key, [], ca=True)
        self.ca = str(folder / "ca.crt")
        Path(self.ca).write_bytes(self._ca.public_bytes(serialization.Encoding.PEM))

    def issue(self, user: str, *groups: str) -> tuple[str, str]:
        """Paths of a certificate and key for `user`, valid for localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(user, key, self._key, list(groups))
        paths = (str(self.folder / f"{user}.crt"), str(self.folder / f"{user}.key"))
        Path(paths[0]).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        Path(paths[1]).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths

    def _sign(
        self, user: str, key: Any, signer: Any, groups: list[str], *, ca: bool = False
    ) -> x509.Certificate:
        import ipaddress

        now = datetime.datetime.now(datetime.UTC)
        names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test ca")])
        subject = issuer if ca else x509.Name([*names, x509.NameAttribute(NameOID.COMMON_NAME, user)])
        alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        signers = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        use = dict.fromkeys(_KEY_USES, False) | {"digital_signature": True, "key_cert_sign": ca}
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**use), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(signers, critical=False)  # Python 3.13 demands it
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(signer, hashes.SHA256())
        )


def echo_server(greeting: bytes = b"") -> socket.socket:
    """Listens on loopback and echoes each connection until its half-close; close it to end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.sendall(greeting)
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def port_bytes(port: int) -> bytes:
    return struct.pack("<H", port)
