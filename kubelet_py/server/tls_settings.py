"""What the port's TLS is made of: versions, suites, and files that somebody may exchange while it runs.

tlsMinVersion and tlsCipherSuites have Go's names here, and OpenSSL's behind them.

The suites are those of TLS 1.2; those of 1.3 cannot be chosen in Go, so naming them changes nothing. Versions
before 1.2 and suites that OpenSSL leaves out (RC4, 3DES) are refused by name.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

from kubelet_py.errors import ConfigError

VERSIONS = {"VersionTLS12": ssl.TLSVersion.TLSv1_2, "VersionTLS13": ssl.TLSVersion.TLSv1_3}
_ALWAYS = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
_CIPHERS = {
    "AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "AES_128_CBC_SHA": "AES128-SHA",
    "AES_128_CBC_SHA256": "AES128-SHA256",
    "AES_256_CBC_SHA": "AES256-SHA",
}
_POLY = {"CHACHA20_POLY1305": "CHACHA20-POLY1305", "CHACHA20_POLY1305_SHA256": "CHACHA20-POLY1305"}
SUITES = {
    **{f"TLS_RSA_WITH_{name}": cipher for name, cipher in _CIPHERS.items()},
    **{
        f"TLS_ECDHE_{key}_WITH_{name}": f"ECDHE-{key}-{cipher}"
        for key in ("RSA", "ECDSA")
        for name, cipher in {**_CIPHERS, **_POLY}.items()
    },
}


class Files:
    """Certificate, key and CA: whoever renews them writes over the files, or renames others to their places.
    `changed` says so once for each change; of two files the second may come a moment later."""

    def __init__(self, *paths: str) -> None:
        self._paths = [path for path in paths if path]
        self._seen = self._look()

    def changed(self) -> bool:
        before, self._seen = self._seen, self._look()
        return before != self._seen

    def _look(self) -> list[tuple[int, int, int]]:
        found = []
        for path in self._paths:
            try:
                status = os.stat(path)
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return found


def check(version: str, suites: Sequence[str]) -> None:
    """Raises ConfigError, which names what is not known."""
    if version and version not in VERSIONS:
        text = f"tlsMinVersion {version!r}: it must be {' or '.join(VERSIONS)}"
        raise ConfigError(f"Could not use configuration: {text}")
    unknown = [name for name in suites if name not in SUITES and name not in _ALWAYS]
    if unknown:
        text = f"tlsCipherSuites: unknown {', '.join(unknown)} (known: {', '.join(sorted(SUITES))})"
        raise ConfigError(f"Could not use configuration: {text}")


def limit(context: ssl.SSLContext, version: str, suites: Sequence[str]) -> None:
    """Let the server speak no less than that version, and of 1.2 none but these suites (all where none is
    named)."""
    context.minimum_version = VERSIONS[version or "VersionTLS12"]
    if suites:
        chosen = [SUITES[name] for name in suites if name in SUITES]
        if chosen:
            context.set_ciphers(":".join(chosen))
        else:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
