"""A certificate with its key on disk, exchanged as a whole: upstream's layout, whatever moment it is cut off.

`kubelet-client-2026-11-27-01-02-03.pem` holds certificate and key in one file, `kubelet-client-current.pem`
is a link to the newest. A new pair is written under a temporary name, synced, renamed, and only then the link
is exchanged (rename is atomic), so at each moment the link leads to a whole pair or is missing. What is found
broken all the same (a full disk, a restored backup, a hand) is passed over for the newest pair that is good.
Source: upstream's client-go/util/certificate/certificate_store.go.
"""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kubelet_py.errors import CertificateError
from kubelet_py.node import x509
from kubelet_py.node.x509 import Certificate

KEPT = 2  # pairs that stay: the present one and its predecessor, which open connections may still use


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate that matches the key in the same file."""

    file: Path
    certificate: Certificate


class CertificateStore:
    """The pairs of one use: `name` is kubelet-client or kubelet-server."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name

    @property
    def current(self) -> Path:
        return self._folder / f"{self._name}-current.pem"

    @property
    def _pending(self) -> Path:
        return self._folder / f"{self._name}.key.tmp"

    def load(self) -> Pair | None:
        """The present pair; None where there is no good one. Repairs the link where it leads nowhere."""
        for file in (self.current, *self._dated()):
            pair = read_pair(file)
            if pair is not None:
                if file != self.current:
                    self._link(file)
                return pair
        return None

    def save(self, certificate: bytes, key: bytes, now: float) -> Pair:
        """Make the pair the present one. Raises CertificateError; then the old one still is."""
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d-%H-%M-%S")
        file = self._folder / f"{self._name}-{stamp}.pem"
        number = 0
        while file.exists():  # two in one second
            number += 1
            file = self._folder / f"{self._name}-{stamp}-{number}.pem"
        try:
            temporary = self._write(file.name, certificate.rstrip() + b"\n" + key)
            pair = read_pair(temporary)
            if pair is None:
                temporary.unlink()
                raise CertificateError(
                    f"Could not use the new certificate {file.name}: it does not fit its key"
                )
            os.replace(temporary, file)
            self._link(file)
            for old in self._dated()[KEPT:]:
                old.unlink(missing_ok=True)
            self.forget_key()
        except OSError as error:
            raise CertificateError(f"Could not write {file}: {error.strerror} (is there room?)") from error
        return Pair(file, pair.certificate)

    def pending_key(self) -> bytes:
        """The key of a request that was not answered yet, or b""."""
        try:
            return self._pending.read_bytes()
        except FileNotFoundError:
            return b""

    def keep_key(self, key: bytes) -> None:
        """Remember a request's key, so that a restart waits for the same one. Raises CertificateError."""
        try:
            os.replace(self._write(self._pending.name, key), self._pending)
        except OSError as error:
            raise CertificateError(f"Could not write {self._pending}: {error.strerror}") from error

    def forget_key(self) -> None:
        self._pending.unlink(missing_ok=True)

    def _dated(self) -> list[Path]:
        """The pairs, newest first."""
        pattern = re.compile(rf"{re.escape(self._name)}-\d{{4}}(-\d\d){{5}}(-\d+)?\.pem")
        if not self._folder.is_dir():
            return []
        found = [entry for entry in self._folder.iterdir() if pattern.fullmatch(entry.name)]
        return sorted(found, key=lambda entry: (entry.stat().st_mtime_ns, entry.name), reverse=True)

    def _write(self, name: str, data: bytes) -> Path:
        """A file that is whole on the disk, under a temporary name."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._folder / f".{name}.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def _link(self, file: Path) -> None:
        updated = self._folder / f"{self._name}-updated.pem"
        updated.unlink(missing_ok=True)
        updated.symlink_to(file.name)
        os.replace(updated, self.current)


def read_pair(file: Path, key: Path | None = None) -> Pair | None:
    """The pair in a file (or in two); None where it is missing, cut off, or the key is another's."""
    try:
        certificate = x509.read(file.read_bytes())
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(file, key)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        return None
    return Pair(file, certificate)
