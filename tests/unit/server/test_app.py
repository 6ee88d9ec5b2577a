"""The server over real TLS sockets, with a backend whose containers are plain processes."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import threading
from pathlib import Path

import pytest

from kubeclient.streams import websocket
from tests.unit.server.fake_node import Pki
from tests.unit.server.live_server import Node


@pytest.mark.parametrize("client", [None, "nobody"])
def test_nothing_is_open_to_strangers(node: Node, client: str | None) -> None:
    """K07: every path needs a certificate of our CA, and a user whom the API server vouches for."""
    certificate = node.pki.issue(client) if client else None
    connection = node.http(certificate)
    found = {}
    for path in (
        "/healthz",
        "/pods",
        "/containerLogs/default/web/main",
        "/exec/default/web/main",
        "/metrics",
    ):
        connection.request("GET", path)
        answer = connection.getresponse()
        found[path] = (answer.status, answer.read())
    connection.close()
    if client:
        text = b"Forbidden (user=nobody, verb=get, resource=nodes, subresource(s)=[metrics])"
        assert found["/metrics"] == (403, text)
        assert found["/pods"][1].endswith(b"subresource(s)=[pods proxy])")
        assert {code for code, _ in found.values()} == {403}
    else:
        assert set(found.values()) == {(401, b"Unauthorized")}


def test_others_are_asked_about(node: Node) -> None:
    connection = node.http(node.pki.issue("allowed", "team"))
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read()
    connection.close()
    assert node.asked[-1] == ("allowed", ("team", "system:authenticated"), "get", "metrics")


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Bearer allowed", 200), ("bearer  allowed ", 200), ("Bearer nobody", 403), ("Bearer unknown", 401),
        ("Bearer ", 401), ("Basic allowed", 401), ("allowed", 401), ("", 401),
    ],
)  # fmt: skip
def test_a_bearer_token_logs_in_where_there_is_no_certificate(node: Node, header: str, code: int) -> None:
    connection = node.http(None)
    connection.request("GET", "/metrics", headers={"Authorization": header})
    answer = connection.getresponse()
    assert answer.status == code, answer.read()
    connection.close()


def test_a_certificate_counts_before_a_token(node: Node) -> None:
    connection = node.http(node.pki.issue("nobody"))
    connection.request("GET", "/metrics", headers={"Authorization": "Bearer allowed"})
    assert connection.getresponse().status == 403
    connection.close()


def test_another_certificate_is_shown_without_ending_open_connections(node: Node) -> None:
    connection = node.http(node.admin)
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    certificate, key = node.pki.issue("kubelet-2")
    node.server.use_certificate(certificate, key)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b"ok"
    connection.close()
    fresh = node.http(node.admin)
    fresh.connect()
    assert isinstance(fresh.sock, ssl.SSLSocket)
    assert (("commonName", "kubelet-2"),) in (fresh.sock.getpeercert() or {})["subject"]
    fresh.close()


def test_files_that_somebody_exchanged_are_shown_once_they_fit_together(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    used = [Path(path) for path in node.pki.issue("of-files")]
    node.server.use_certificate(*map(str, used))
    renewed = [Path(path) for path in node.pki.issue("renewed")]
    assert shown(node) == "of-files"
    shutil.copy(renewed[0], used[0])
    assert shown(node) == "of-files", "its key is not there yet"
    assert "Failed to read the serving certificate again" in caplog.text
    caplog.clear()
    assert shown(node) == "of-files" and "again" not in caplog.text, "told once"
    shutil.copy(renewed[1], used[1])
    assert shown(node) == "renewed"
    caplog.clear()
    assert shown(node) == "renewed" and "again" not in caplog.text, "read once"
    used[1].unlink()
    assert shown(node) == "renewed", "as long as there is nothing better"


def shown(node: Node) -> str:
    """Whose certificate a new connection sees."""
    connection = node.http(node.admin)
    connection.connect()
    assert isinstance(connection.sock, ssl.SSLSocket)
    subject = (connection.sock.getpeercert() or {})["subject"]
    connection.close()
    return str(subject[-1][0][1])


def test_a_certificate_of_another_ca_is_refused(node: Node, tmp_path: Path) -> None:
    connection = node.http(Pki(tmp_path).issue("admin", "system:masters"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connection.request("GET", "/pods")
        connection.getresponse()
    connection.close()


def test_each_page_of_numbers_is_served_and_asks_for_its_own_right(node: Node) -> None:
    for path, mark in (
        ("/metrics/resource", "node_cpu_usage_seconds_total 2.5 "),
        ("/metrics/cadvisor", 'interface="eth0"'),
        ("/metrics/probes", 'prober_probe_total{probe_type="Liveness",result="successful"} 2'),
    ):
        code, text = node.get(path)
        assert (code, mark in text) == (200, True), path
    whole = json.loads(node.get("/stats/summary")[1])
    brief = json.loads(node.get("/stats/summary?only_cpu_and_memory=true")[1])
    assert "fs" in whole["node"] and "fs" not in brief["node"]
    assert [node.get(path)[0] for path in ("/stats", "/stats/container", "/metrics/none")] == [404] * 3
    connection = node.http(node.pki.issue("reader"))
    connection.request("GET", "/stats/summary")
    answer = connection.getresponse()
    assert (answer.status, b"subresource(s)=[stats]" in answer.read()) == (403, True)
    connection.close()


def requests_to(node: Node) -> dict[str, int]:
    (rows,) = [each.rows() for each in node.server.counts.instruments if each.name.endswith("_total")]
    return {labels["path"]: int(count) for labels, count in rows if labels["method"] == "GET"}


def test_pods_and_metrics_are_listed(node: Node) -> None:
    before = requests_to(node)
    status, text = node.get("/pods")
    assert status == 200 and json.loads(text)["items"][0]["metadata"]["name"] == "web"
    assert 'kubelet_running_containers{container_state="running"} 1' in node.get("/metrics")[1]
    assert node.get("/strange")[0] == 404
    grown = {path: count - before.get(path, 0) for path, count in requests_to(node).items()}
    assert {path: count for path, count in grown.items() if count} == {"pods": 1, "metrics": 1, "other": 1}


def test_the_settings_in_use_and_running_pods_can_be_read(node: Node) -> None:
    assert json.loads(node.get("/configz")[1]) == {"kubeletconfig": {"maxPods": 110}}
    assert json.loads(node.get("/timeline/default/web")[1]) == {"steps": []}
    assert node.get("/timeline/default/none") == (404, "pod does not exist\n")
    assert json.loads(node.get("/runningpods/")[1])["items"][0]["metadata"]["name"] == "web"
    assert [node.get(path)[0] for path in ("/configz/x", "/pods/x")] == [404, 404]
    assert node.get("/configz", "POST")[0] == 405


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_method_that_a_page_does_not_have_is_told_in_plain_words(node: Node, method: str) -> None:
    assert node.get("/pods", method) == (405, "405: Method Not Allowed")


def test_what_is_no_request_is_told_in_plain_words(node: Node) -> None:
    connection = node.http(node.admin)
    connection.request("BREW", "/pods")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Content-Type"]) == (501, "text/plain; charset=utf-8")
    assert answer.read() == b"501: Unsupported method ('BREW')\n"
    connection.close()
    connection.connect()
    connection.sock.sendall(b"GET http://[/pods HTTP/1.1\r\n\r\n")
    assert b" 400 " in connection.sock.recv(100)
    connection.close()


def test_healthz_says_why_the_agent_is_not_healthy(node: Node) -> None:
    assert node.get("/healthz/syncloop") == (200, "ok")
    node.trouble = "sync Loop took longer than expected"
    assert node.get("/healthz") == (500, "healthz check failed: sync Loop took longer than expected\n")
    assert node.get("/healthz/ping") == (200, "ok")
    counted = node.get("/metrics/slis")[1]
    for line in (
        'kubernetes_healthcheck{name="syncloop",type="healthz"} 0',
        'kubernetes_healthcheck{name="ping",type="healthz"} 1',
        'kubernetes_healthchecks_total{name="syncloop",type="healthz",status="error"} 1',
    ):
        assert f"{line}\n" in counted
    assert 'kubernetes_healthchecks_total{name="ping",type="healthz",status="success"} ' in counted


def test_files_below_var_log_are_served_and_nothing_else(node: Node, tmp_path: Path) -> None:
    folder = node.server.log_folder
    (folder / "pods/a").mkdir(parents=True)
    (folder / "pods/a/0.log").write_text("hello\n")
    (folder / "link.log").symlink_to(folder / "pods/a/0.log")
    outside = tmp_path / "secret"
    outside.write_text("secret")
    (folder / "away").symlink_to(outside)
    os.mkfifo(folder / "fifo")
    assert node.get("/logs/pods/a/0.log") == node.get("/logs/link.log") == (200, "hello\n")
    assert node.get("/logs/pods/a/0.log", "HEAD") == (200, "")
    code, listing = node.get("/logs/")
    assert code == 200 and '<a href="pods/">pods/</a>' in listing
    assert node.get("/logs/pods")[0] == 301
    for path in ("away", "fifo", "none", "pods/a/0.log/x"):
        assert node.get(f"/logs/{path}")[0] == 404, path
    assert node.get("/logs/%2e%2e/secret")[0] == 404
    assert node.get("/logs/?query=kubelet")[0] == 403


def test_logs_are_filtered_and_refused_in_upstreams_words(node: Node) -> None:
    node.backend.log.write_text(
        "2026-11-21T02:00:00.000000000Z stdout F one\n2026-11-21T02:00:01.000000000Z stdout F two\n"
    )
    assert node.get("/containerLogs/default/web/main") == (200, "one\ntwo\n")
    assert node.get("/containerLogs/default/web/main?tailLines=1&timestamps=true") == (
        200,
        "2026-11-21T02:00:01.000000000Z two\n",
    )
    assert node.get("/containerLogs/default/gone/main") == (404, 'pod "gone" does not exist')
    status, text = node.get("/containerLogs/default/web/main?previous=true")
    assert (status, text) == (
        404,
        'previous terminated container "main" in pod "web" not found',
    ) or status == 400
    assert node.get("/containerLogs/default/web/main?tailLines=x")[0] == 400
    assert node.get("/containerLogs/default/web")[0] == 404
    assert node.get("/containerLogs/default/web/main", "POST")[0] == 405


def test_a_followed_log_ends_with_the_container(node: Node) -> None:
    log = node.backend.log
    log.write_text("2026-11-21T02:00:00.000000000Z stdout F one\n")
    connection = node.http(node.admin)
    connection.request("GET", "/containerLogs/default/web/main?follow=true")
    answer = connection.getresponse()
    try:
        assert answer.readline() == b"one\n"
        with open(log, "a") as handle:
            handle.write("2026-11-21T02:00:01.000000000Z stdout F two\n")
        assert answer.readline() == b"two\n"
        node.backend.running = False
        assert answer.read() == b""
    finally:
        node.backend.running = True
        connection.close()


def test_run_gives_the_output(node: Node) -> None:
    assert node.get("/run/default/web/main?cmd=echo+hi", "POST") == (200, "hi\n")
    status, text = node.get("/run/default/web/main?cmd=false", "POST")
    assert status == 500 and "exit code 1" in text


def test_run_keeps_no_more_than_fits(node: Node) -> None:
    status, text = node.get("/run/default/web/main?cmd=head+-c+17000000+/dev/zero", "POST")
    assert (status, len(text)) == (200, 16 << 20)


def test_run_that_fails_tells_even_what_is_no_text(node: Node, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"a\xff")
    status, text = node.get(f"/run/default/web/main?cmd=cat+{tmp_path}/bytes+/nonexistent", "POST")
    assert status == 500 and "exit code 1" in text and "a\ufffd" in text


EXEC = "/exec/default/web/main?output=1&error=1"


def test_exec_over_websocket_separates_the_outputs_and_tells_the_exit_code(node: Node) -> None:
    client = node.websocket(
        f"{EXEC}&command=sh&command=-c&command=echo+out;echo+err>%262;exit+3", "v5.channel.k8s.io"
    )
    assert client.status == 101 and client.headers["sec-websocket-protocol"] == "v5.channel.k8s.io"
    found = client.by_channel()
    client.close()
    assert (found[1], found[2]) == (b"out\n", b"err\n")
    status = json.loads(found[3])
    assert status["reason"] == "NonZeroExitCode" and status["details"]["causes"][0]["message"] == "3"


def test_exec_over_websocket_takes_text_frames_and_a_half_close(node: Node) -> None:
    client = node.websocket(f"{EXEC}&input=1&command=cat", "v5.channel.k8s.io")
    client.message(b"\0hello ", websocket.TEXT)
    client.message(b"\0world")
    client.message(b"\xff\0")
    found = client.by_channel()
    client.close()
    assert found[1] == b"hello world" and json.loads(found[3])["status"] == "Success"


def test_a_large_input_comes_back_whole(node: Node) -> None:
    """Both directions are full at once; nobody may wait for the other."""
    client = node.websocket(f"{EXEC}&input=1&command=cat", "v5.channel.k8s.io")
    piece = bytes(range(256)) * 128

    def send() -> None:
        for _ in range(100):
            client.message(b"\0" + piece)
        client.message(b"\xff\0")

    sender = threading.Thread(target=send)
    sender.start()
    found = client.by_channel()
    sender.join()
    client.close()
    assert found[1] == piece * 100


def test_exec_over_spdy_separates_the_outputs_and_tells_the_exit_code(node: Node) -> None:
    client = node.upgrade(
        f"{EXEC}&input=1&command=sh&command=-c&command=cat;echo+err>%262;exit+3",
        "Upgrade: SPDY/3.1",
        "X-Stream-Protocol-Version: v5.channel.k8s.io",
        "X-Stream-Protocol-Version: v4.channel.k8s.io",
        method="POST",
    )
    assert client.headers["x-stream-protocol-version"] == "v4.channel.k8s.io"
    for number, kind in ((1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")):
        client.open(number, streamtype=kind)
    client.data(3, b"hello", fin=True)
    found = client.streams(4)
    client.close()
    assert (found[5], found[7]) == (b"hello", b"err\n")
    assert json.loads(found[1])["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]


def test_what_cannot_be_executed_is_told_on_the_error_channel(node: Node) -> None:
    client = node.websocket(f"{EXEC}&command=nosuch", "v4.channel.k8s.io")
    status = json.loads(client.by_channel()[3])
    client.close()
    assert status["message"] == (
        'Internal error occurred: error executing command in container: exec: "nosuch": executable file'
        " not found in $PATH"
    )
    client = node.websocket(f"{EXEC}&command=broken", "v4.channel.k8s.io")
    assert "the shim is gone" in json.loads(client.by_channel()[3])["message"]
    client.close()


def test_attach_ends_with_success_whatever_the_exit_code(node: Node) -> None:
    client = node.websocket("/attach/default/web/main?input=1&output=1", "v5.channel.k8s.io")
    client.message(b"\0hi")
    client.message(b"\xff\0")
    found = client.by_channel()
    client.close()
    assert found[1] == b"hi" and json.loads(found[3])["status"] == "Success"


def test_a_client_that_vanishes_ends_the_command(node: Node) -> None:
    client = node.websocket(f"{EXEC}&input=1&command=sh&command=-c&command=echo+up;cat", "v5.channel.k8s.io")
    messages = client.messages()
    assert (next(messages), next(messages)) == (b"\1", b"\1up\n")
    threads = [thread for thread in threading.enumerate() if thread.name == "stream-output"]
    assert threads
    client.close()
    for thread in threads:
        thread.join(5)
    assert not [thread for thread in threads if thread.is_alive()]


@pytest.mark.parametrize(
    ("path", "headers", "status", "text"),
    [
        (f"{EXEC}&command=x", (), 400, "unable to upgrade"),
        (f"{EXEC}&command=x", ("Upgrade: h2c",), 400, "known protocol"),
        (f"{EXEC}&command=x", ("Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v9"), 403, "negotiate"),
        (f"{EXEC}&command=x", ("Upgrade: websocket",), 400, "version 13"),
        (EXEC, ("Upgrade: SPDY/3.1",), 400, "at least 1 command"),
        ("/exec/default/web/main?command=x", ("Upgrade: SPDY/3.1",), 400, "at least 1 of stdin"),
        ("/exec/default/gone/main?command=x&output=1", ("Upgrade: SPDY/3.1",), 404, "pod does not exist"),
        (
            "/exec/default/web/no?command=x&output=1",
            ("Upgrade: SPDY/3.1",),
            500,
            'container not found ("no")',
        ),
        ("/portForward/default/gone", ("Upgrade: SPDY/3.1",), 404, "pod does not exist"),
        ("/nowhere", (), 404, "404 page not found"),
    ],
)
def test_refusals_are_plain_text_with_upstreams_codes(
    node: Node, path: str, headers: tuple[str, ...], status: int, text: str
) -> None:
    client = node.upgrade(path, *headers)
    body = client.body()
    client.close()
    assert client.status == status and text in body
