"""Names of the Kubernetes DNS specification, one by one; questions are labels below the domain."""

from __future__ import annotations

import pytest
from dns_cluster import entry, service, slice_of, small

from proxy.dns.records import Answer, Names, Record, dashed


def answers(names: Names, name: str) -> list[str]:
    """ "A 10.96.0.20"-like lines; SRV targets written as names."""
    found = names.lookup(tuple(name.split(".")) if name else ())
    assert found.exists, name
    return sorted(f"{record.type} {shown(record)}" for record in found.records)


def shown(record: Record) -> str:
    if record.type != "SRV":
        return str(record.value)
    port, labels = record.value
    return f"{port} {'.'.join(labels)}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dns-version", ["TXT 1.1.0"]),
        (
            "web.default.svc",
            ["A 10.96.0.20", "AAAA fd00::14", "SRV 53 web.default.svc", "SRV 80 web.default.svc"],
        ),
        ("_http._tcp.web.default.svc", ["SRV 80 web.default.svc"]),
        ("_dns._udp.web.default.svc", ["SRV 53 web.default.svc"]),
        ("db.default.svc", ["A 10.244.0.5", "A 10.244.0.6", "AAAA fd00::5"]),
        ("db-0.db.default.svc", ["A 10.244.0.5", "AAAA fd00::5"]),
        ("10-244-0-6.db.default.svc", ["A 10.244.0.6"]),
        (
            "_http._tcp.db.default.svc",
            ["SRV 8080 10-244-0-6.db.default.svc", "SRV 8080 db-0.db.default.svc"],
        ),
        ("10-244-7-1.default.pod", ["A 10.244.7.1"]),
        ("fd00--5.empty.pod", ["AAAA fd00::5"]),
        # Names that others lie below exist, and have nothing themselves (RFC 8020).
        ("", []),
        ("svc", []),
        ("pod", []),
        ("empty.svc", []),
        ("default.pod", []),
        ("_tcp.web.default.svc", []),
    ],
)
def test_names_that_exist(name: str, expected: list[str]) -> None:
    assert answers(small(), name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "web.other.svc",
        "other.svc",
        "none.default.svc",
        "w.web.default.svc",  # the endpoints of a ClusterIP Service have no names
        "db-1.db.default.svc",
        "_https._tcp.web.default.svc",
        "_http._udp.web.default.svc",
        "_sctp.web.default.svc",
        "http.tcp.web.default.svc",
        "a._http._tcp.web.default.svc",
        "x.far.default.svc",
        "web.default",
        "10-244-0-300.default.pod",
        "a.10-244-0-1.default.pod",
        "10-244-0-1.nowhere.pod",
        "dns-version.svc",
    ],
)
def test_names_that_do_not_exist(name: str) -> None:
    assert small().lookup(tuple(name.split("."))) == Answer(False)


def test_an_external_name_stands_for_another() -> None:
    assert small().lookup(("far", "default", "svc")) == Answer(True, alias="example.org")


def test_srv_of_a_headless_service_brings_the_addresses_along() -> None:
    extra = small().lookup(("_http", "_tcp", "db", "default", "svc")).extra
    assert (("db-0", "db", "default", "svc"), Record("AAAA", "fd00::5")) in extra
    assert len(extra) == 3


def test_addresses_have_names() -> None:
    names = small()
    assert names.names_of("10.96.0.20") == (("web", "default", "svc"),)
    assert names.names_of("fd00::14") == (("web", "default", "svc"),)
    assert names.names_of("10.244.0.5") == (("db-0", "db", "default", "svc"),)
    assert names.names_of("10.244.0.6") == (("10-244-0-6", "db", "default", "svc"),)
    assert names.names_of("10.244.0.9") == (), "an endpoint of a ClusterIP Service is not called by it"


def test_an_endpoint_that_is_not_ready_has_no_name() -> None:
    names = small()
    names.slice_event("MODIFIED", slice_of("db", [entry("10.244.0.5", "db-0", ready=False)]))
    assert answers(names, "db.default.svc") == ["AAAA fd00::5"]
    assert names.names_of("10.244.0.6") == ()


def test_what_is_deleted_is_forgotten() -> None:
    names = small()
    web = service("web")
    names.service_event("DELETED", web)
    assert names.lookup(("web", "default", "svc")) == Answer(False) and names.names_of("10.96.0.20") == ()
    names.service_event("DELETED", web)
    names.slice_event("DELETED", slice_of("db", []))
    assert answers(names, "db.default.svc") == ["AAAA fd00::5"] and names.names_of("10.244.0.5") == ()
    names.namespace_event("DELETED", {"metadata": {"name": "default"}})
    assert names.lookup(("near", "default", "svc")) == Answer(False)


def test_a_service_that_gets_another_address_leaves_the_old() -> None:
    names = small()
    names.service_event("MODIFIED", service("web", clusterIP="10.96.0.21"))
    assert names.names_of("10.96.0.20") == () and names.names_of("10.96.0.21") == (("web", "default", "svc"),)


def test_only_what_matters_counts_as_a_change() -> None:
    names = small()
    before = names.generation
    db = slice_of("db", [entry("10.244.0.5", "db-0"), entry("10.244.0.6", ready=True)])
    names.slice_event("MODIFIED", {**db, "metadata": {**db["metadata"], "annotations": {"a": "b"}}})
    names.namespace_event("MODIFIED", {"metadata": {"name": "default"}})
    assert names.generation == before
    names.slice_event("MODIFIED", slice_of("db", [entry("10.244.0.5", "db-0")]))
    assert names.generation == before + 1


def test_slices_that_carry_names_of_hosts_are_no_addresses() -> None:
    names = small()
    names.slice_event("ADDED", slice_of("db", [entry("a.example.org")], name="fqdn", kind="FQDN"))
    assert "A a.example.org" not in answers(names, "db.default.svc")


@pytest.mark.parametrize(
    ("address", "label"), [("10.0.0.1", "10-0-0-1"), ("fd00::5", "fd00--5"), ("::1", "0--1"), ("1::", "1--0")]
)
def test_dashed(address: str, label: str) -> None:
    assert dashed(address) == label
