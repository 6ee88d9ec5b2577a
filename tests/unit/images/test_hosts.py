"""hosts.toml as containerd's users write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.images.hosts import ALL, Endpoint, InvalidHosts, endpoints, parse

FILE = Path("/etc/kubelet-py/registries/docker.io/hosts.toml")


def test_mirrors_come_first_in_the_order_of_the_file_and_the_registry_last() -> None:
    text = """
        server = "https://registry-1.docker.io"
        ca = ["a.pem", "/b.pem"]
        [host."http://mirror.lan:5000"]
          capabilities = ["pull", "resolve"]
          dial_timeout = "1500ms"
          [host."http://mirror.lan:5000".header]
            x-token = ["one", "two"]
        [host."cache.lan/proxy/v2"]
          override_path = true
          skip_verify = true
          client = [["cert.pem", "key.pem"], ["other.pem", ""]]
    """
    first, second, last = parse(text, "docker.io", FILE)
    assert first == Endpoint(
        "http://mirror.lan:5000/v2",
        frozenset({"pull", "resolve"}),
        headers=(("x-token", "one, two"),),
        mirror_of="docker.io",
        connect_seconds=1.5,
    )
    assert second.base == "https://cache.lan/proxy/v2" and second.skip_verify
    assert second.client == (str(FILE.parent / "cert.pem"), str(FILE.parent / "key.pem"))
    assert last == Endpoint("https://registry-1.docker.io/v2", ca=(str(FILE.parent / "a.pem"), "/b.pem"))


def test_without_a_server_the_registry_itself_is_the_last_resort() -> None:
    assert parse('[host."https://m"]', "r.io:5000", FILE)[-1] == Endpoint()


def test_the_registry_as_a_host_of_its_own_is_no_mirror_and_keeps_its_credentials() -> None:
    assert parse('[host."http://r.io:5000"]', "r.io:5000", FILE)[0].mirror_of == ""


@pytest.mark.parametrize(
    "client", ['"one.pem"', '["one.pem", "other.pem"]', '[["one.pem"]]', '[["one.pem", ""]]']
)
def test_a_client_may_be_one_file(client: str) -> None:
    [server] = parse(f"client = {client}", "r.io", FILE)
    assert server.client == (str(FILE.parent / "one.pem"),) * 2


def test_each_registry_has_its_folder_with_port_and_default_as_containerd_names_them(tmp_path: Path) -> None:
    for name, server in [("r.io_5000_", "https://a"), ("r.io:5000", "https://b"), ("_default", "https://c")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(f'server = "{server}"')
    found = [endpoints(tmp_path, domain)[0].base for domain in ("r.io:5000", "r.io")]
    assert found == ["https://a/v2", "https://c/v2"]
    (tmp_path / "r.io_5000_/hosts.toml").unlink()
    assert endpoints(tmp_path, "r.io:5000")[0].base == "https://b/v2"
    assert endpoints(tmp_path / "nowhere", "r.io") == endpoints(None, "r.io") == [Endpoint()]
    assert Endpoint().capabilities == ALL


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("server = ", "parse"),
        ('[host."https://m"]\ncapabilites = []', "unknown keys capabilites"),
        ('[host."ftp://m"]', "not a http"),
        ('[host."https://u:p@m"]', "headers carry credentials"),
        ('[host."https://m"]\ncapabilities = ["fetch"]', "pull, resolve and push"),
        ('[host."https://m"]\nskip_verify = "yes"', "true or false"),
        ("ca = 7", "text or a list"),
        ('dial_timeout = "soon"', "duration"),
        ("header = 1", "table"),
        ("client = [[]]\nserver = 1", "server is a text"),
    ],
)
def test_what_cannot_be_used_is_refused_naming_the_file(text: str, why: str) -> None:
    with pytest.raises(InvalidHosts, match=why) as caught:
        parse(text, "docker.io", FILE)
    assert str(FILE) in str(caught.value)
