from __future__ import annotations

import pytest

from cni.errors import BadEnvironment, CniError, IncompatibleVersion, InvalidConfig, NotAvailable
from cni.types import (
    IP,
    Interface,
    Result,
    Route,
    check_container_id,
    check_ifname,
    check_network_name,
    negotiate,
    parse_args,
    require_version,
)

RESULT = Result(
    interfaces=(
        Interface("kpy0", "0a:58:0a:f4:01:01"),
        Interface("eth0", "0a:58:0a:f4:01:02", "/ns", mtu=1450),
    ),
    ips=(IP("10.244.1.2/24", "10.244.1.1", 1), IP("fd00::2/64")),
    routes=(Route("0.0.0.0/0"), Route("10.0.0.0/8", "10.244.1.9", {"mtu": 1400})),
)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_older_versions_lose_only_what_they_do_not_know(version: str) -> None:
    body = RESULT.to_json(version)
    again = Result.from_json(body)
    assert again.ips == RESULT.ips
    assert again.routes[0] == RESULT.routes[0]
    assert again.interfaces[1].mtu == 0
    assert [ip.get("version") for ip in body["ips"]] == (["4", "6"] if version < "1" else [None, None])


def test_latest_version_keeps_everything() -> None:
    assert Result.from_json(RESULT.to_json("1.1.0")) == RESULT


def test_unknown_interface_fields_pass_through() -> None:
    body = {"cniVersion": "1.1.0", "interfaces": [{"name": "net1", "pciID": "0000:00:1f.6"}]}
    assert Result.from_json(body).to_json("1.1.0")["interfaces"] == [
        {"name": "net1", "pciID": "0000:00:1f.6"}
    ]


@pytest.mark.parametrize(
    "body",
    [None, [], {"cniVersion": "1.0.0", "ips": [{}]}, {"cniVersion": "1.0.0", "ips": [{"address": "x"}]}],
)
def test_broken_result_is_a_decode_failure(body: object) -> None:
    with pytest.raises(CniError) as caught:
        Result.from_json(body)
    assert caught.value.code == 6


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx", "é" * 8])
def test_names_the_kernel_refuses_are_refused(name: str) -> None:
    with pytest.raises(BadEnvironment):
        check_ifname(name)


@pytest.mark.parametrize("name", ["eth0", "fifteen-bytes-x", "net1@x"])
def test_names_the_kernel_takes_are_taken(name: str) -> None:
    assert check_ifname(name) == name


@pytest.mark.parametrize("value", ["", "-a", ".a", "a/b", "a b", "a\n"])
def test_bad_container_ids_and_network_names_are_refused(value: str) -> None:
    with pytest.raises(BadEnvironment):
        check_container_id(value)
    with pytest.raises(InvalidConfig):
        check_network_name(value)


def test_arguments_are_pairs() -> None:
    assert parse_args("A=1;B=2=3;") == {"A": "1", "B": "2=3"}
    with pytest.raises(BadEnvironment):
        parse_args("A=1;B")


def test_highest_common_version_is_chosen() -> None:
    assert negotiate(["0.3.1", "1.0.0", "9.9.9"]) == "1.0.0"
    with pytest.raises(IncompatibleVersion):
        negotiate(["0.2.0"])
    with pytest.raises(IncompatibleVersion):
        require_version({"cniVersion": "2.0.0"})


def test_errors_survive_json() -> None:
    error = CniError.from_json(NotAvailable("no", "details").to_json("1.1.0"))
    assert (type(error), error.code, error.msg, error.details) == (NotAvailable, 50, "no", "details")
    assert CniError.from_json({"code": 117, "msg": "own"}).code == 117
