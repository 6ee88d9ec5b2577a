"""What `kubelet-py token` refuses before it talks to a cluster, and the form of its list."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.bootstrap_tokens import BootstrapToken
from kubelet_py.cli.main import main
from kubelet_py.cli.token import _object


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["create", "--ttl", "100000000h"], "--ttl 100000000h: at most 2562047h; 0 is for ever"),
        (["create", "--ttl=-5s"], "Could not read duration '-5s'"),
        (["create", "--ttl", "24"], "write it like 10s or 1m30s"),
        (["create", "--usages", "nothing"], "use signing, authentication, or both"),
        (["create", "--groups", "system:masters"], "does not match system:bootstrappers:"),
        (["create", "nonsense"], "has the form abcdef.0123456789abcdef"),
        (["delete", "nonsense"], "'nonsense' is no token: give its id, abcdef, or all of it"),
        (["delete", "abcdef."], "'abcdef.' is no token"),
        (["delete", "abcdef", "../x"], "'../x' is no token"),
        (["delete", ""], "'' is no token"),
    ],
)
def test_what_is_mistyped_is_refused_in_one_line(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", *argv, "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("kubelet-py token: ")


def test_a_token_is_listed_as_kubeadm_writes_it() -> None:
    token = BootstrapToken(
        "abcdef", "0123456789abcdef", 1_800_000_000.9, ("signing", "authentication"), ("system:x",), "mine"
    )
    assert _object(token) == {
        "kind": "BootstrapToken",
        "apiVersion": "output.kubeadm.k8s.io/v1alpha3",
        "token": "abcdef.0123456789abcdef",
        "description": "mine",
        "expires": "2027-01-15T08:00:00Z",
        "usages": ["authentication", "signing"],
        "groups": ["system:x"],
    }
    lasting = BootstrapToken("abcdef", "0123456789abcdef", None, (), (), "")
    assert set(_object(lasting)) == {"kind", "apiVersion", "token"}
