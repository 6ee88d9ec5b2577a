from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni.errors import AddressesExhausted, CniError, InvalidConfig, NotAvailable, PluginFailure
from cni.frozen import replace
from cni.host_local import HostLocal, parse_ranges
from cni.skeleton import Plugins
from cni.types import Request


def request(folder: Path, command: str = "ADD", container: str = "c", **ipam: Any) -> Request:
    section = {"type": "host-local", "dataDir": str(folder), "subnet": "10.9.0.0/29", **ipam}
    return Request(command, {"cniVersion": "1.1.0", "name": "n", "ipam": section}, container, "", "eth0")


def test_addresses_go_round_before_one_is_used_again(tmp_path: Path) -> None:
    plugin = HostLocal()
    taken = []
    for n in range(7):
        taken.append(plugin.add(request(tmp_path, container=f"c{n}")).ips[0].address)
        plugin.delete(request(tmp_path, "DEL", f"c{n}"))
    assert taken == [f"10.9.0.{n}/29" for n in (2, 3, 4, 5, 6, 2, 3)]


def test_layout_on_disk_is_upstreams(tmp_path: Path) -> None:
    HostLocal().add(request(tmp_path))
    assert (tmp_path / "n/10.9.0.2").read_bytes() == b"c\r\neth0"
    assert (tmp_path / "n/last_reserved_ip.0").read_text() == "10.9.0.2"
    assert sorted(os.listdir(tmp_path / "n")) == ["10.9.0.2", "last_reserved_ip.0", "lock"]


def test_last_reserved_address_is_overwritten_whole(tmp_path: Path) -> None:
    plugin = HostLocal()
    ranges = [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.99", "rangeEnd": "10.9.0.101"}]]
    for n in range(3):
        plugin.add(request(tmp_path, container=f"c{n}", subnet=None, ranges=ranges))
    plugin.delete(request(tmp_path, "DEL", "c0", subnet=None, ranges=ranges))
    plugin.add(request(tmp_path, container="again", subnet=None, ranges=ranges))
    assert (tmp_path / "n/last_reserved_ip.0").read_text() == "10.9.0.99"


def test_exhausted_is_an_error_of_add_and_of_status(tmp_path: Path) -> None:
    plugin = HostLocal()
    for n in range(5):
        plugin.status(request(tmp_path, "STATUS"))
        plugin.add(request(tmp_path, container=f"c{n}"))
    with pytest.raises(AddressesExhausted):
        plugin.add(request(tmp_path, container="late"))
    with pytest.raises(NotAvailable):
        plugin.status(request(tmp_path, "STATUS"))


def test_failure_in_the_second_family_gives_the_first_back(tmp_path: Path) -> None:
    plugin = HostLocal()
    ranges = [
        [{"subnet": "10.9.0.0/29"}],
        [{"subnet": "fd00::/126", "rangeStart": "fd00::1", "rangeEnd": "fd00::2"}],
    ]
    both = plugin.add(request(tmp_path, subnet=None, ranges=ranges))
    assert [ip.address for ip in both.ips] == ["10.9.0.2/29", "fd00::2/126"]
    with pytest.raises(AddressesExhausted):
        plugin.add(request(tmp_path, container="late", subnet=None, ranges=ranges))
    assert sorted(n for n in os.listdir(tmp_path / "n") if n[0] not in "l") == ["10.9.0.2", "fd00::2"]


def test_same_interface_gets_no_second_address(tmp_path: Path) -> None:
    plugin = HostLocal()
    plugin.add(request(tmp_path))
    with pytest.raises(PluginFailure, match=r"already has 10\.9\.0\.2"):
        HostLocal().add(request(tmp_path))
    assert (tmp_path / "n/10.9.0.2").exists()


@pytest.mark.parametrize(
    ("wanted", "outcome"), [("10.9.0.5", "10.9.0.5/29"), ("10.9.0.1", None), ("10.10.0.1", None), ("x", None)]
)
def test_requested_address_is_given_or_refused(tmp_path: Path, wanted: str, outcome: str | None) -> None:
    base = request(tmp_path)
    ask = Request("ADD", base.config, "c", "", "eth0", {"IP": wanted})
    if outcome:
        assert HostLocal().add(ask).ips[0].address == outcome
    else:
        with pytest.raises(CniError):
            HostLocal().add(ask)


def test_a_lease_made_by_another_process_is_seen(tmp_path: Path) -> None:
    plugin = HostLocal()
    plugin.add(request(tmp_path))
    (tmp_path / "n/10.9.0.3").write_text("foreign\r\neth0")
    os.utime(tmp_path / "n", ns=(1, 1))
    assert plugin.add(request(tmp_path, container="d")).ips[0].address == "10.9.0.4/29"
    plugin.delete(request(tmp_path, "DEL", "foreign"))
    assert not (tmp_path / "n/10.9.0.3").exists()


def test_two_plugins_at_once_never_share_an_address(tmp_path: Path) -> None:
    taken: list[str] = []

    def work(name: str) -> None:
        plugin = HostLocal()
        for n in range(20):
            taken.append(
                plugin.add(request(tmp_path, container=f"{name}{n}", subnet="10.9.0.0/24")).ips[0].address
            )

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 80


def test_gc_keeps_only_valid_attachments(tmp_path: Path) -> None:
    plugin = HostLocal()
    for name in ("keep", "drop"):
        plugin.add(request(tmp_path, container=name))
    (tmp_path / "n/10.9.0.6").write_text("")
    base = request(tmp_path, "GC")
    valid = [{"containerID": "keep", "ifname": "eth0"}]
    plugin.gc(Request("GC", {**base.config, "cni.dev/valid-attachments": valid}))
    assert sorted(n for n in os.listdir(tmp_path / "n") if n[0] == "1") == ["10.9.0.2"]


@pytest.mark.parametrize(
    "ipam",
    [
        {},
        {"subnet": "10.0.0.0/31"},
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"},
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"},
        {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]},
        {"ranges": [[]]},
        {"ranges": [[{"gateway": "10.0.0.1"}]]},
    ],
)
def test_ranges_that_make_no_sense_are_refused(ipam: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        parse_ranges(ipam)


def test_routes_and_dns_come_with_the_address(tmp_path: Path) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("# c\nnameserver 10.96.0.10\nsearch a b\noptions ndots:5\n")
    result = HostLocal().add(request(tmp_path, routes=[{"dst": "0.0.0.0/0"}], resolvConf=str(resolv)))
    assert result.routes[0].dst == "0.0.0.0/0"
    assert (result.dns.nameservers, result.dns.search, result.dns.options) == (
        ("10.96.0.10",),
        ("a", "b"),
        ("ndots:5",),
    )


def test_a_reservation_and_its_name_are_on_disk_before_the_address_is_handed_out(tmp_path: Path) -> None:
    synced: list[str] = []
    HostLocal(lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}"))).add(request(tmp_path))
    assert synced == [str(tmp_path / "n/10.9.0.2"), str(tmp_path / "n")]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_disk_that_fails_gives_no_address(tmp_path: Path, failing: int) -> None:
    count = 0

    def sync(_handle: int) -> None:
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(5, "Input/output error")

    with pytest.raises(CniError, match="Could not reserve") as caught:
        HostLocal(sync).add(request(tmp_path))
    assert caught.value.code == 5
    assert [n for n in os.listdir(tmp_path / "n") if n[0] == "1"] == []


def test_a_caller_that_waits_later_is_told_of_a_disk_that_fails(tmp_path: Path) -> None:
    slow = threading.Event()

    def sync(_handle: int) -> None:
        slow.wait(60)
        raise OSError(5, "Input/output error")

    unfinished: list[Callable[[], object]] = []
    plugin = HostLocal(sync)
    assert plugin.add(replace(request(tmp_path), unfinished=unfinished)).ips[0].address == "10.9.0.2/29"
    # Meanwhile others may allocate.
    assert HostLocal().add(request(tmp_path, container="d")).ips[0].address == "10.9.0.3/29"
    slow.set()
    (wait,) = unfinished
    with pytest.raises(CniError, match="Could not reserve"):
        wait()


def test_what_a_killed_writer_left_empty_is_free(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    (tmp_path / "n/10.9.0.2").touch()
    assert HostLocal().add(request(tmp_path)).ips[0].address == "10.9.0.2/29"


def test_a_torn_memory_of_the_last_address_is_no_obstacle(tmp_path: Path) -> None:
    plugin = HostLocal()
    plugin.add(request(tmp_path))
    (tmp_path / "n/last_reserved_ip.0").write_bytes(b"10.9.\0\0")
    assert HostLocal().add(request(tmp_path, container="d")).ips[0].address == "10.9.0.3/29"


def aside(folder: Path, sync: Callable[[int], None]) -> tuple[HostLocal, Callable[[str], str]]:
    """A plugin with three spares in 10.9.0.0/26, and what gives a container an address and then refills."""
    plugin = HostLocal(sync, spares=4)  # but no more than a sixteenth

    def add(container: str) -> str:
        unfinished: list[Callable[[], object]] = []
        asked = request(folder, container=container, subnet="10.9.0.0/26")
        address = plugin.add(replace(asked, unfinished=unfinished)).ips[0].address
        for finish in unfinished:
            wait = finish()
            if callable(wait):
                wait()
        return address.partition("/")[0]

    return plugin, add


def contents(folder: Path) -> dict[str, str]:
    return {
        n: (folder / "n" / n).read_bytes().decode() for n in os.listdir(folder / "n") if n.startswith("10.")
    }


def test_addresses_set_aside_are_on_disk_before_they_are_handed_out_without_a_sync(tmp_path: Path) -> None:
    synced: list[str] = []
    _, add = aside(tmp_path, lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    assert add("c0") == "10.9.0.2"
    files = [str(tmp_path / f"n/10.9.0.{n}") for n in range(2, 6)]
    assert synced == [files[0], str(tmp_path / "n"), *files[1:], str(tmp_path / "n")]
    synced.clear()
    assert add("c1") == "10.9.0.3"
    assert synced == []
    assert contents(tmp_path)["10.9.0.3"] == "c1\r\neth0"
    assert [add(f"c{n}") for n in range(2, 9)] == [f"10.9.0.{n}" for n in range(4, 11)]
    assert {owner for owner in contents(tmp_path).values() if owner[0] == "c"} == {
        f"c{n}\r\neth0" for n in range(9)
    }


def test_what_was_set_aside_is_nobody_elses(tmp_path: Path) -> None:
    plugin, add = aside(tmp_path, os.fsync)
    add("c0")
    # As after a power cut: 3 to 5 may have been handed out.
    other = HostLocal()
    assert other.add(request(tmp_path, container="d", subnet="10.9.0.0/26")).ips[0].address == "10.9.0.6/26"
    base = request(tmp_path, "GC", subnet="10.9.0.0/26")
    valid = [{"containerID": name, "ifname": "eth0"} for name in ("c0", "d")]
    collect = Request("GC", {**base.config, "cni.dev/valid-attachments": valid})
    plugin.gc(collect)
    assert len(contents(tmp_path)) == 5  # its own GC keeps them
    other.gc(collect)
    assert sorted(contents(tmp_path)) == ["10.9.0.2", "10.9.0.6"]
    # Those are gone for their maker, too, who goes on behind the other's.
    assert other.add(request(tmp_path, container="e", subnet="10.9.0.0/26")).ips[0].address == "10.9.0.7/26"
    assert add("c1") == "10.9.0.8"
    assert sorted(contents(tmp_path)) == sorted(["10.9.0.2", *(f"10.9.0.{n}" for n in range(6, 12))])


def test_a_small_range_is_not_used_up_by_what_is_set_aside(tmp_path: Path) -> None:
    plugin, add = aside(tmp_path, os.fsync)
    taken = [add(f"c{n}") for n in range(61)]
    assert sorted(taken) == sorted(f"10.9.0.{n}" for n in range(2, 63))
    with pytest.raises(NotAvailable):
        plugin.status(request(tmp_path, "STATUS", subnet="10.9.0.0/26"))
    plugin.delete(request(tmp_path, "DEL", "c30", subnet="10.9.0.0/26"))
    assert add("again") == taken[30]


def test_a_disk_that_fails_while_setting_aside_leaves_nothing_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = False

    def sync(_handle: int) -> None:
        if broken:
            raise OSError(5, "Input/output error")

    plugin, add = aside(tmp_path, sync)
    add("c0")
    assert len(contents(tmp_path)) == 4
    broken = True
    add("c1")
    add("c2")
    assert sorted(contents(tmp_path)) == ["10.9.0.2", "10.9.0.3", "10.9.0.4"]
    assert caplog.messages == [f"Failed to set addresses aside folder={tmp_path}/n"]
    assert "Could not reserve" in caplog.text, "the reason is told"
    with pytest.raises(CniError, match="Could not reserve"):
        add("c3")
    broken = False
    plugin.delete(request(tmp_path, "DEL", "c3", subnet="10.9.0.0/26"))
    assert add("c4") == "10.9.0.6"


def test_what_was_set_aside_is_given_back_at_the_end(tmp_path: Path) -> None:
    plugin, add = aside(tmp_path, os.fsync)
    add("c0")
    assert len(contents(tmp_path)) == 4
    plugin.close()
    assert contents(tmp_path) == {"10.9.0.2": "c0\r\neth0"}
    assert add("late") == "10.9.0.3"
    assert sorted(contents(tmp_path)) == ["10.9.0.2", "10.9.0.3"], "nothing is set aside any more"


def test_who_holds_the_plugins_gives_back_what_they_set_aside(tmp_path: Path) -> None:
    plugins = Plugins(None, spare_addresses=2)
    plugins.close()  # nothing was used yet
    unfinished: list[Callable[[], object]] = []
    asked = replace(request(tmp_path, subnet="10.9.0.0/26"), unfinished=unfinished)
    plugins.own("host-local").add(asked)
    for finish in unfinished:
        wait = finish()
        if callable(wait):
            wait()
    assert len(contents(tmp_path)) == 3
    plugins.close()
    assert list(contents(tmp_path)) == ["10.9.0.2"]


def ended() -> tuple[int, str]:
    """Pid and start time of a process that is no more."""
    with subprocess.Popen(["sleep", "600"]) as process:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        process.kill()
    return process.pid, stat.rpartition(") ")[2].split()[19]


def test_what_a_killed_process_set_aside_is_free_again(tmp_path: Path) -> None:
    _, add = aside(tmp_path, os.fsync)
    add("c0")
    (mark,) = {owner for owner in contents(tmp_path).values() if owner[0] == "-"}
    own = mark[1:].split(".")
    assert own[0] == str(os.getpid())
    pid, start = ended()
    marks = {"7": f"-{pid}.{start}.00", "8": f"-{own[0]}.{int(own[1]) + 1}.00", "9": "-0123abcd"}
    for number, written in marks.items():
        (tmp_path / f"n/10.9.0.{number}").write_text(written)
    other = HostLocal().add(request(tmp_path, container="d", subnet="10.9.0.0/26"))
    assert other.ips[0].address == "10.9.0.6/26"
    left = contents(tmp_path)
    assert not {"10.9.0.7", "10.9.0.8"} & left.keys(), "dead, and another of the same pid"
    assert left["10.9.0.9"] == "-0123abcd", "of whom it is not known who made it"
    assert [left[f"10.9.0.{n}"] for n in (3, 4, 5)] == [mark] * 3, "of a living one"


def unseen(folder: Path, change: Callable[[], None]) -> None:
    """A change that the folder's time does not tell of."""
    before = os.stat(folder)
    change()
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_address_set_aside_that_another_has_taken_is_not_handed_out(tmp_path: Path) -> None:
    _, add = aside(tmp_path, os.fsync)
    add("c0")
    taken = tmp_path / "n/10.9.0.3"

    def take() -> None:
        taken.unlink()
        taken.write_text("d\r\neth0", newline="")

    unseen(tmp_path / "n", take)
    assert add("c1") == "10.9.0.4"
    assert taken.read_bytes() == b"d\r\neth0"


def test_an_address_set_aside_that_is_gone_is_taken_in_the_usual_way(tmp_path: Path) -> None:
    synced: list[str] = []
    _, add = aside(tmp_path, lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    add("c0")
    synced.clear()
    unseen(tmp_path / "n", (tmp_path / "n/10.9.0.3").unlink)
    assert add("c1") == "10.9.0.3"
    assert contents(tmp_path)["10.9.0.3"] == "c1\r\neth0"
    assert synced[0] == str(tmp_path / "n/10.9.0.3")
