"""The invoker with small shell programs as plugins: order, prevResult, cache, undoing."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest

from cni.attachment import Attachment
from cni.conflist import ConfigFolder, bridge_network, write
from cni.errors import CniError, InvalidConfig, NetlinkError
from cni.invoke import Invoker, _Turns
from cni.rtnetlink import Link
from cni.veth import network_mark

PLUGIN = """#!/bin/sh
config=$(cat)
echo "$CNI_COMMAND $(basename "$0") $CNI_CONTAINERID $CNI_ARGS" >> {log}
echo "$CNI_NETNS" > {log}.netns.$CNI_COMMAND
echo "$config" > {log}.$(basename "$0").$CNI_COMMAND
[ "$CNI_COMMAND" = ADD ] || exit 0
[ -e {log}.fail.$(basename "$0") ] && echo '{{"cniVersion":"1.0.0","code":11,"msg":"later"}}' && exit 1
echo '{{"cniVersion":"1.0.0","ips":[{{"address":"10.1.0.'$(wc -l < {log})'/24"}}]}}'
"""


@pytest.fixture
def invoker(tmp_path: Path) -> Invoker:
    (tmp_path / "bin").mkdir()
    for name in ("one", "two"):
        program = tmp_path / "bin" / name
        program.write_text(PLUGIN.format(log=tmp_path / "log"))
        program.chmod(0o755)
    plugins = [{"type": "one", "unknown": {"x": 1}}, {"type": "two", "capabilities": {"portMappings": True}}]
    write(tmp_path / "net.d/10.conflist", {"cniVersion": "1.0.0", "name": "n", "plugins": plugins})
    made = Invoker(
        config_dir=tmp_path / "net.d",
        bin_dirs=[tmp_path / "empty", tmp_path / "bin"],
        cache_dir=tmp_path / "cache",
        own_bin_dir=tmp_path / "own",
    )
    made._loopback = lambda *_: None  # type: ignore[method-assign]
    return made


def log(tmp_path: Path) -> list[str]:
    return [" ".join(line.split()[:2]) for line in (tmp_path / "log").read_text().splitlines()]


def seen(tmp_path: Path, plugin: str, command: str) -> dict[str, object]:
    return dict(json.loads((tmp_path / f"log.{plugin}.{command}").read_text()))


def test_chain_runs_in_order_and_back_in_reverse(invoker: Invoker, tmp_path: Path) -> None:
    result = invoker.add(
        "c1",
        "/ns",
        args={"K8S_POD_NAME": "web"},
        capabilities={"portMappings": [{"hostPort": 1, "containerPort": 2}]},
    )
    assert result.ips[0].address == "10.1.0.2/24"
    assert seen(tmp_path, "one", "ADD").get("unknown") == {"x": 1}
    assert "runtimeConfig" not in seen(tmp_path, "one", "ADD")
    assert seen(tmp_path, "two", "ADD")["runtimeConfig"] == {
        "portMappings": [{"hostPort": 1, "containerPort": 2}]
    }
    previous = seen(tmp_path, "two", "ADD")["prevResult"]
    assert previous["ips"] == [{"address": "10.1.0.1/24"}]  # type: ignore[index]
    invoker.delete("c1", None)
    assert log(tmp_path) == ["ADD one", "ADD two", "DEL two", "DEL one"]
    assert seen(tmp_path, "one", "DEL")["prevResult"]["ips"] == [{"address": "10.1.0.2/24"}]  # type: ignore[index]
    assert list((tmp_path / "cache/results").iterdir()) == []
    assert "K8S_POD_NAME=web" in (tmp_path / "log").read_text()


def test_failed_add_is_undone_and_leaves_no_cache(invoker: Invoker, tmp_path: Path) -> None:
    (tmp_path / "log.fail.two").touch()
    with pytest.raises(CniError) as caught:
        invoker.add("c1", "/ns")
    assert (caught.value.code, caught.value.msg) == (11, "later")
    assert log(tmp_path) == ["ADD one", "ADD two", "DEL two", "DEL one"]
    assert list((tmp_path / "cache/results").iterdir()) == []


def test_the_result_of_early_wiring_has_the_lasting_path(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/one"
    answer = '{"cniVersion":"1.0.0","interfaces":[{"name":"v"},{"name":"eth0","sandbox":"/early"}]}'
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    write(tmp_path / "net.d/1.conflist", {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "one"}]})
    folders = {"config_dir": tmp_path / "net.d", "cache_dir": tmp_path / "cache"}
    made = Invoker(bin_dirs=[tmp_path / "bin"], own_bin_dir=tmp_path / "own", **folders)
    made._loopback = lambda *_: None  # type: ignore[method-assign]
    result = made.add("c1", "/early", lasting=lambda: "/proc/7/ns/net")
    assert [interface.sandbox for interface in result.interfaces] == ["", "/proc/7/ns/net"]
    kept = Attachment.find(tmp_path / "cache/results", "c1", "eth0")
    assert kept is not None and kept[1] == result
    assert not made.wires_early()  # a foreign plugin may compare the paths


def test_an_add_whose_namespace_does_not_last_is_undone(invoker: Invoker, tmp_path: Path) -> None:
    def gone() -> str:
        raise RuntimeError("pause did not start")

    with pytest.raises(RuntimeError, match="pause"):
        invoker.add("c1", "/early", lasting=gone)
    assert log(tmp_path) == ["ADD one", "ADD two", "DEL two", "DEL one"]
    netns = [(tmp_path / f"log.netns.{command}").read_text() for command in ("ADD", "DEL")]
    assert netns == ["/early\n", "\n"], "by then the path may be another pod's"
    assert list((tmp_path / "cache/results").iterdir()) == []


def test_what_a_crash_left_half_done_is_undone_before_the_next_add(invoker: Invoker, tmp_path: Path) -> None:
    invoker.add("c1", "/ns")
    entry = next((tmp_path / "cache/results").iterdir())
    body = json.loads(entry.read_text())
    entry.write_text(json.dumps({**body, "result": None}))
    invoker.add("c1", "/ns")
    assert log(tmp_path) == ["ADD one", "ADD two", "DEL two", "DEL one", "ADD one", "ADD two"]


def test_missing_plugin_is_why_the_network_is_not_ready(invoker: Invoker, tmp_path: Path) -> None:
    assert invoker.ready() is None
    (tmp_path / "bin/two").unlink()
    assert "'two'" in str(invoker.ready())
    (tmp_path / "net.d/10.conflist").unlink()
    assert "no network configuration" in str(invoker.ready())
    with pytest.raises(InvalidConfig):
        invoker.status()


def test_first_valid_file_in_order_wins_and_changes_are_seen(tmp_path: Path) -> None:
    folder = ConfigFolder(tmp_path)
    (tmp_path / "00-broken.conflist").write_text("{")
    (tmp_path / "05-ignored.txt").write_text("{}")
    (tmp_path / "20-b.conf").write_text('{"cniVersion":"0.4.0","name":"b","type":"x"}')
    assert folder.load().name == "b"
    (tmp_path / "10-a.conflist").write_text(
        '{"cniVersion":"0.3.1","cniVersions":["0.3.1","1.0.0","7.0.0"],"name":"a","plugins":[{"type":"y"}]}'
    )
    assert (folder.load().name, folder.load().version) == ("a", "1.0.0")


def test_own_conflist_is_written_once(tmp_path: Path) -> None:
    body = bridge_network(
        name="k",
        bridge="kpy0",
        subnets=["10.1.0.0/24", "fd00:1::/64"],
        cluster_cidrs=["10.0.0.0/8"],
        data_dir=tmp_path,
        mtu=1450,
        gso=131072,
    )
    assert body["plugins"][0]["mtu"] == 1450
    assert body["plugins"][0]["gsoIPv4MaxSize"] == 131072
    assert body["plugins"][0]["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert write(tmp_path / "x/10.conflist", body)
    assert not write(tmp_path / "x/10.conflist", body)


def test_operations_on_one_container_take_turns_and_gc_runs_alone() -> None:
    turns = _Turns()
    order: list[str] = []
    inside, go = threading.Event(), threading.Event()

    def first() -> None:
        with turns.one("a"):
            inside.set()
            go.wait(5)
            order.append("first")

    def second() -> None:
        with turns.one("a"):
            order.append("second")

    def alone() -> None:
        with turns.alone():
            order.append("gc")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert inside.wait(5)
    threads += [threading.Thread(target=work) for work in (second, alone)]
    for thread in threads[1:]:
        thread.start()
    with turns.one("b"):
        order.append("other")
    go.set()
    for thread in threads:
        thread.join(5)
    assert order[:2] == ["other", "first"]
    assert sorted(order[2:]) == ["gc", "second"]


def test_a_result_that_was_cut_off_is_none_and_what_was_asked_for_stays_known(
    invoker: Invoker, tmp_path: Path
) -> None:
    invoker.add("c1", "/ns", args={"K8S_POD_NAME": "web"})
    (file,) = (tmp_path / "cache/results").iterdir()
    whole = file.read_bytes()
    assert json.loads(whole)["result"]["ips"]
    for length in range(whole.index(b"\n") + 1, len(whole) - 2):
        file.write_bytes(whole[:length])
        found = Attachment.find(file.parent, "c1", "eth0")
        assert found is not None
        assert found[0].args == {"K8S_POD_NAME": "web"}
        assert found[1] is None
    assert Attachment.all(file.parent) == [("c1", "eth0")]
    file.write_bytes(whole[:-20])
    invoker.delete("c1", None)
    assert log(tmp_path)[-2:] == ["DEL two", "DEL one"]
    assert not list(file.parent.iterdir())


def test_a_file_that_a_power_cut_emptied_is_no_obstacle(invoker: Invoker, tmp_path: Path) -> None:
    invoker.add("c1", "/ns")
    (file,) = (tmp_path / "cache/results").iterdir()
    file.write_bytes(b"")
    invoker.gc([("c1", "eth0")])
    invoker.delete("c1", None)
    assert log(tmp_path)[-2:] == ["DEL two", "DEL one"]
    assert not file.exists()
    file.write_bytes(b"\0" * 512)
    assert invoker.add("c1", "/ns").ips


def test_a_result_that_cannot_be_kept_is_a_failed_add_and_undone(invoker: Invoker, tmp_path: Path) -> None:
    two = tmp_path / "bin/two"
    two.write_text(two.read_text() + f"rm -r {tmp_path}/cache/results\n")
    with pytest.raises(CniError, match="Could not write the CNI result"):
        invoker.add("c1", "/ns")
    assert log(tmp_path)[-2:] == ["DEL two", "DEL one"]


class Host:
    """Two bridges and the near end of one pod's pair; what is set is counted, the first bridge refuses."""

    def __init__(self) -> None:
        named = (("br1", ""), ("br2", ""), ("veth1", network_mark("n") + "c1"))
        self._links = [
            Link(index, name, "", 1500, True, 0, "bridge", 0, False, alias, gso=65536, gso_most=1 << 20)
            for index, (name, alias) in enumerate(named)
        ]
        self.batches = 0

    def link(self, name: str) -> Link | None:
        return next((link for link in self._links if link.name == name), None)

    def links(self) -> list[Link]:
        return self._links

    def batch(self, _messages: object) -> None:
        self.batches += 1
        if self.batches == 1:
            raise NetlinkError("set br1", errno.ERANGE)


def test_a_bridge_that_takes_no_other_size_keeps_none_of_the_rest_from_it(
    invoker: Invoker, tmp_path: Path
) -> None:
    invoker.add("c1", "/ns")
    plugins = [{"type": "bridge", "bridge": name} for name in ("br1", "br2")]
    write(tmp_path / "net.d/10.conflist", {"cniVersion": "1.0.0", "name": "n", "plugins": plugins})
    (file,) = (tmp_path / "cache/results").iterdir()
    file.write_text('{"containerId": "c1", "ifName": "eth0"}')  # so that the pod's turn is heard of
    host = Host()
    bridges, pods = (str(error) for error in invoker._resized(host, 1 << 17))  # type: ignore[arg-type]
    assert bridges.startswith("Could not set br1: ERANGE") and host.batches == 2
    assert pods.startswith(f"Could not read the CNI result {file} ")
