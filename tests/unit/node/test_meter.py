"""Reading what the machine uses: the formats of /proc, rates between readings, folders walked seldom."""

from __future__ import annotations

from pathlib import Path

from kubelet_py.node import proc_files
from kubelet_py.node.meter import Rates, Walks
from kubelet_py.volumes.disk_usage import Used

DEV = """Inter-|   Receive            |  Transmit
 face |bytes    packets errs |bytes    packets errs
    lo:    1    1 0 0 0 0 0 0    1 1 0 0 0 0 0 0
  eth0: 1500   10 1 2 0 0 0 0 2500 20 3 4 0 0 0 0
veth12:    9    9 0 0 0 0 0 0    9 9 0 0 0 0 0 0
"""


def test_interfaces_are_those_that_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "dev").write_text(DEV)
    (found,) = proc_files.interfaces(tmp_path / "dev")
    assert (found.name, found.rx_bytes, found.rx_packets, found.rx_errors, found.rx_dropped) == (
        "eth0", 1500, 10, 1, 2,
    )  # fmt: skip
    assert (found.tx_bytes, found.tx_packets, found.tx_errors, found.tx_dropped) == (2500, 20, 3, 4)


def test_cpu_time_is_what_was_not_idle(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 10 50 9999 8888 5 6 7 300 20\ncpu0 1 1 1 1\nbtime 1700000000\n")
    assert proc_files.cpu_ns(tmp_path / "stat") == (100 + 10 + 50 + 5 + 6 + 7) * 10_000_000
    assert proc_files.boot_time(tmp_path) == 1_700_000_000


def test_the_default_interface_has_the_route_to_everywhere(tmp_path: Path) -> None:
    (tmp_path / "route").write_text("Iface Destination Gateway\neth1 000A0A0A 0\neth0 00000000 010A0A0A\n")
    assert proc_files.default_interface(tmp_path / "route") == "eth0"


def test_own_load_is_of_this_process() -> None:
    since, load = proc_files.own_load(0.0, 1000.0)
    assert since > 1000.0 and load.rss > 1 << 20 and load.processes == 1


def test_a_rate_needs_two_readings_of_the_same_counter() -> None:
    rates = Rates()
    assert rates.rate("a", 10.0, 1_000) is None
    assert rates.rate("a", 12.0, 5_000) == 2_000
    assert rates.rate("a", 12.5, 9_000) == 2_000, "too soon: the last rate stays"
    assert rates.rate("a", 14.0, 10) is None, "it went back: another cgroup of that name"
    rates.rate("b", 14.0, 1)
    rates.keep(["b"])
    assert rates.rate("a", 20.0, 20) is None


def test_a_folder_is_walked_once_a_minute() -> None:
    now, walked = [0.0], []

    def walk(folder: Path) -> Used:
        walked.append(folder)
        return Used(len(walked), 1)

    walks = Walks(lambda: now[0], walk)
    assert [walks.size(Path("/x")).bytes, walks.size(Path("/x")).bytes] == [1, 1]
    now[0] = 61.0
    assert walks.size(Path("/x")).bytes == 2


def test_a_walk_is_timed_and_a_remembered_one_is_not() -> None:
    now = [0.0]
    spent: list[float] = []

    def walk(folder: Path) -> Used:
        now[0] += 2.5
        return Used(1, 1)

    walks = Walks(lambda: now[0], walk)
    for _ in range(2):
        walks.size(Path("/x"), spent.append)
    assert spent == [2.5]
