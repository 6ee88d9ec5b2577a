"""Who signs service account tokens, and with which key: what others need to verify them without asking us.

A service that gets a pod's token (a cloud's, a Vault) finds the issuer in it, and below the issuer's address
these two documents (OpenID Connect Discovery 1.0; upstream: pkg/serviceaccount/openidmetadata.go). The group
system:serviceaccounts may read them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web

from controlplane.apiserver.tokens import ALGORITHM, ISSUER, TokenSigner

CONFIGURATION, KEYS = "/.well-known/openid-configuration", "/openid/v1/jwks"
PATHS = (CONFIGURATION, KEYS)
_HEADERS = {"Cache-Control": "public, max-age=3600"}


class IssuerDiscovery:
    """Answers PATHS. `server` gives this server's own address, as others reach it."""

    def __init__(self, tokens: TokenSigner, server: Callable[[], str]) -> None:
        self._tokens = tokens
        self._server = server

    def answer(self, path: str) -> web.Response:
        """Raises AuthorityError when the key cannot be read."""
        document: dict[str, Any] = {
            "issuer": ISSUER,
            "jwks_uri": self._server() + KEYS,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        }
        kind = "application/json"
        if path == KEYS:
            document, kind = {"keys": [self._tokens.public_jwk()]}, "application/jwk-set+json"
        return web.Response(body=orjson.dumps(document), content_type=kind, headers=_HEADERS)
