"""Which key a token says it was signed with."""

from __future__ import annotations

import base64
from pathlib import Path

import orjson

from controlplane import authority
from controlplane.apiserver.tokens import TokenSigner


def key_id(signer: TokenSigner) -> str:
    token, _ = signer.sign(namespace="d", name="default", uid="u", audiences=["a"], seconds=600)
    header = token.partition(".")[0]
    found: str = orjson.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"]
    return found


def test_the_id_is_that_of_the_key_in_use_whatever_lies_in_the_file_now(tmp_path: Path) -> None:
    cluster = authority.Cluster(tmp_path, "127.0.0.1", "n1", 6443)
    authority.ensure(cluster)
    files = cluster.pki / "sa.key", cluster.pki / "sa.pub"
    signer = TokenSigner(*files, lambda: 0.0)
    used = key_id(signer)
    for file in files:
        file.unlink()
    authority.ensure(cluster)
    assert key_id(signer) == used != key_id(TokenSigner(*files, lambda: 0.0))
