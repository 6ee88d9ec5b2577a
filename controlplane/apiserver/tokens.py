"""Service account tokens: JSON Web Tokens that the API server signs and later recognises.

A token names a service account and may be bound to a pod; it is good as long as its time has not passed and
both still exist with the same uid, so deleting the pod ends its token (apiserver pkg/serviceaccount/jwt.go,
claims.go). ES256 over the key pair `sa.key`/`sa.pub`. The cryptography package is not imported with the
server: that takes 46 ms of its start, which somebody waits for; but the first pod should not wait for it
either, so the server calls `prepare` when it has been up for a moment.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from controlplane.errors import AuthorityError

Object = dict[str, Any]

ISSUER = "https://kubernetes.default.svc.cluster.local"
PRIVATE = "kubernetes.io"
ALGORITHM = "ES256"
_REMEMBERED = 1024
_HALF = 32  # bytes of each of the two numbers of a P-256 signature


class BadTokenError(Exception):
    """Not a token of ours, or no longer good; the text says which."""


class TokenSigner:
    """Signs and verifies with one key pair. Verified signatures are remembered, checked claims are not."""

    def __init__(self, private_key: Path, public_key: Path, clock: Callable[[], float]) -> None:
        self._private_file, self._public_file, self._clock = private_key, public_key, clock
        self._private: Any = None
        self._public: Any = None
        self._id = ""
        self._known: OrderedDict[bytes, Object] = OrderedDict()

    def prepare(self) -> None:
        """Import and read what signing needs. Raises AuthorityError."""
        from cryptography.hazmat.primitives.asymmetric import ec, utils  # noqa: F401

        self._load()

    def sign(
        self,
        *,
        namespace: str,
        name: str,
        uid: str,
        audiences: Sequence[str],
        seconds: int,
        bound: Object | None = None,
    ) -> tuple[str, float]:
        """A token and when it ends (seconds since 1970). `bound` adds claims such as {"pod": {name, uid}}."""
        now = int(self._clock())
        expires = now + seconds
        private: Object = {
            "namespace": namespace,
            "serviceaccount": {"name": name, "uid": uid},
            **(bound or {}),
        }
        claims: Object = {
            "aud": list(audiences),
            "exp": expires,
            "iat": now,
            "iss": ISSUER,
            "jti": str(uuid.uuid4()),
            PRIVATE: private,
            "nbf": now,
            "sub": f"system:serviceaccount:{namespace}:{name}",
        }
        header = {"alg": ALGORITHM, "kid": self._key_id(), "typ": "JWT"}
        signed = b".".join(_encode(orjson.dumps(part)) for part in (header, claims))
        return (signed + b"." + _encode(self._signature(signed))).decode(), float(expires)

    def public_jwk(self) -> dict[str, str]:
        """The key that tokens are verified by, as a JSON Web Key (RFC 7517). Raises AuthorityError."""
        self._load()
        point = self._public.public_numbers()
        x, y = (_encode(number.to_bytes(_HALF)).decode() for number in (point.x, point.y))
        key = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
        return {"use": "sig", **key, "kid": self._key_id(), "alg": ALGORITHM}

    def claims(self, token: str, audiences: Sequence[str]) -> Object:
        """The claims of a good token. Raises BadTokenError; whether its account exists is not checked."""
        digest = hashlib.sha256(token.encode()).digest()
        claims = self._known.get(digest)
        if claims is None:
            claims = self._verify(token)
            self._known[digest] = claims
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        now = self._clock()
        if claims.get("iss") != ISSUER:
            raise BadTokenError("the token was issued by somebody else")
        if now >= claims.get("exp", 0):
            raise BadTokenError("service account token has expired")
        if now < claims.get("nbf", 0) - 60:
            raise BadTokenError("the token is not valid yet")
        if not set(audiences) & set(claims.get("aud") or ()):
            raise BadTokenError(f"the token is for other audiences: {claims.get('aud')}")
        return claims

    def _verify(self, token: str) -> Object:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

        parts = token.encode().split(b".")
        if len(parts) != 3:
            raise BadTokenError("not a JSON Web Token")
        try:
            header, claims = orjson.loads(_decode(parts[0])), orjson.loads(_decode(parts[1]))
            signature = _decode(parts[2])
            if header.get("alg") != ALGORITHM or len(signature) != 2 * _HALF:
                raise BadTokenError("the token is signed in another way than ours")
            numbers = [int.from_bytes(half) for half in (signature[:_HALF], signature[_HALF:])]
            self._load()
            self._public.verify(
                encode_dss_signature(*numbers), b".".join(parts[:2]), ec.ECDSA(hashes.SHA256())
            )
        except InvalidSignature as error:
            raise BadTokenError("the token's signature is wrong") from error
        except (ValueError, AttributeError, binascii.Error) as error:
            raise BadTokenError(f"not a JSON Web Token: {error}") from error
        verified: Object = claims
        return verified

    def _signature(self, signed: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        self._load()
        first, second = decode_dss_signature(self._private.sign(signed, ec.ECDSA(hashes.SHA256())))
        return first.to_bytes(_HALF) + second.to_bytes(_HALF)

    def _key_id(self) -> str:
        self._load()
        return self._id

    def _load(self) -> None:
        if self._public is not None:
            return
        from cryptography.hazmat.primitives import serialization

        try:
            self._private = serialization.load_pem_private_key(self._private_file.read_bytes(), None)
            public = self._public_file.read_bytes()
            self._id = _encode(hashlib.sha256(public).digest()).decode()
            self._public = serialization.load_pem_public_key(public)
        except (OSError, ValueError) as error:
            raise AuthorityError(f"Could not read {self._private_file}: {error}") from error


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
