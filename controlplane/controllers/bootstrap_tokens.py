"""Keeps cluster-info signed with every bootstrap token that is good, and deletes tokens whose time is over.

A joining machine knows the API server's address and a token. cluster-info, which anybody may read, carries
the CA and for each token a signature made with its secret part: who holds the token can tell that the CA is
the one meant, and an impostor who does not know it cannot forge that. Source: upstream's bootstrapsigner and
tokencleaner controllers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from controlplane import bootstrap_tokens
from controlplane.bootstrap_tokens import BootstrapToken
from controlplane.controllers.base import Controller, Object, SharedInformers, key_of, split_key
from kubeclient.errors import NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import CONFIG_MAPS, SECRETS
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

_INFO_KEY = f"{bootstrap_tokens.CLUSTER_INFO_NAMESPACE}/{bootstrap_tokens.CLUSTER_INFO}"


def is_token(secret: Object) -> bool:
    namespace = secret["metadata"].get("namespace")
    return secret.get("type") == bootstrap_tokens.SECRET_TYPE and namespace == bootstrap_tokens.NAMESPACE


def signed(data: Mapping[str, str], tokens: list[BootstrapToken], now: float) -> dict[str, str]:
    """PURE. cluster-info's data with the signatures it should have."""
    kept = {name: text for name, text in data.items() if not name.startswith(bootstrap_tokens.JWS_PREFIX)}
    if "kubeconfig" not in kept:
        return kept
    return {**kept, **bootstrap_tokens.signatures(kept["kubeconfig"], tokens, now)}


class BootstrapTokens(Controller):
    name = "bootstrap-tokens"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._clock = clock
        self._secrets = informers.of(
            SECRETS,
            self._on_secret,
            namespace=bootstrap_tokens.NAMESPACE,
            fields=f"type={bootstrap_tokens.SECRET_TYPE}",
        )
        self._config_maps = informers.of(CONFIG_MAPS, self._on_config_map)

    def _on_secret(self, kind: str, new: Object, old: Object | None) -> None:
        if is_token(new) or (old is not None and is_token(old)):
            self.queue.add(key_of(new))
            self.queue.add(_INFO_KEY)

    def _on_config_map(self, kind: str, new: Object, old: Object | None) -> None:
        if kind != "DELETED" and key_of(new) == _INFO_KEY:
            self.queue.add(_INFO_KEY)

    def sync(self, key: str) -> None:
        if key == _INFO_KEY:
            self._sign()
        else:
            self._clean(key)

    def _sign(self) -> None:
        present = self._config_maps.get(
            bootstrap_tokens.CLUSTER_INFO, bootstrap_tokens.CLUSTER_INFO_NAMESPACE
        )
        if present is None:
            return
        tokens = [token for token in map(self._read, self._secrets.list()) if token is not None]
        data = present.get("data") or {}
        wanted = signed(data, tokens, self._clock())
        if wanted != data:
            self.client.update(CONFIG_MAPS, {**present, "data": wanted})
            log.info("Signed cluster-info tokens=%d", len(wanted) - 1)

    def _clean(self, key: str) -> None:
        namespace, name = split_key(key)
        secret = self._secrets.get(name, namespace)
        token = self._read(secret) if secret is not None else None
        if secret is None or token is None or token.expires is None:
            return
        if not token.expired(self._clock()):
            self.queue.add_after(key, token.expires - self._clock())
            return
        metadata = secret["metadata"]
        try:
            self.client.delete(SECRETS, name, namespace, uid=metadata["uid"])
        except NotFound:
            return
        log.info("Removed expired bootstrap token id=%s", token.id)

    @staticmethod
    def _read(secret: Object) -> BootstrapToken | None:
        if not is_token(secret) or secret["metadata"].get("deletionTimestamp"):
            return None
        try:
            return bootstrap_tokens.of_secret(secret)
        except bootstrap_tokens.BadBootstrapToken as error:
            log.warning("Ignored bootstrap token reason=%s", error)
            return None
