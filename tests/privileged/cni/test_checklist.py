"""The CNI 1.1.0 checklist, a test per line, by programs as a runtime runs them or by our invoker.

Each test's docstring begins with its line; docs/cni-checklist.md is the table, compared with this file by
tests/unit/cni/test_checklist_table.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cni_lab import Attach, leases, links, nat_rules
from network_lab import Namespace
from plugin_lab import LIMITS, PORTS, alone, bandwidth, body_of, bridge, eth0, names, portmap, run, stub

from cni.errors import CniError, FirewallError, NetlinkError
from cni.invoke import Invoker
from cni.iptables import Iptables
from cni.netlink import Netlink
from cni.types import Result

pytestmark = pytest.mark.privileged

# --- ADD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_add_twice(kind: str, node: None, own_bin: Path, tmp_path: Path) -> None:
    """ADD errors when CNI_IFNAME exists in the netns: ADD twice -> error, first interface untouched."""
    config = alone({**bridge(tmp_path), "type": kind})
    with Namespace() as pod:
        assert run(own_bin / kind, "ADD", config, **names(pod))[0] == 0
        before = eth0(pod)
        for container in ("c1", "c2"):
            status, body = run(own_bin / kind, "ADD", config, **names(pod, container))
            assert (status, body["code"]) == (1, 102)
            assert "EEXIST" in body["msg"]
        assert eth0(pod) == before
        assert leases(tmp_path / "leases/net") == ["10.6.0.2"]
        run(own_bin / kind, "DEL", config, **names(pod))


class Fault:
    """Counts what is asked of kernel and iptables, and breaks the n-th of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self._lock = threading.Lock()
        for owner, name in ((Netlink, "batch"), (Iptables, "_run")):
            self._wrap(monkeypatch, owner, name)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        real = getattr(owner, name)

        def broken(this: Any, *args: Any, **options: Any) -> Any:
            with self._lock:
                self.left -= 1
                hit = self.left == 0
            if hit:
                kernel = owner is Netlink
                raise NetlinkError("obey", 5) if kernel else FirewallError("Could not obey")
            return real(this, *args, **options)

        monkeypatch.setattr(owner, name, broken)


def nothing_left(pod: Namespace, tmp_path: Path) -> None:
    assert eth0(pod) is None
    assert [name for name in links() if name not in ("lo", "kpy0")] == []
    assert leases(tmp_path / "leases/net") == []
    assert "CNI-DN-" not in nat_rules()
    assert not list((tmp_path / "cache/results").iterdir())


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_fault_at_every_step(
    kind: str, attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ADD failure leaves nothing: kill at each step (fault injection) -> no veth, no lease, no rule."""
    fault = Fault(monkeypatch)
    step = 0
    while True:
        step += 1
        # A new one each time: an invoker remembers that the masquerade rules are there.
        invoker = attach({**bridge(tmp_path), "type": kind}, portmap(), bandwidth())
        with Namespace() as pod:
            fault.left = step
            try:
                invoker.add("c1", pod.path, capabilities=PORTS | LIMITS)
            except CniError as error:
                assert "obey" in str(error)
                fault.left = 0
                nothing_left(pod, tmp_path)
                continue
            assert fault.left > 0, "the fault was met and not reported"
            fault.left = 0
            invoker.check("c1", pod.path)
            invoker.delete("c1", pod.path)
            nothing_left(pod, tmp_path)
            break
    assert step > 12


KILLED = """
import os, signal, sys
sys.path.insert(0, {source!r})
from pathlib import Path
from cni.invoke import Invoker
from cni.iptables import Iptables
from cni.netlink import Netlink
left = int(sys.argv[1])
def wrap(owner, name):
    real = getattr(owner, name)
    def counted(*args, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    setattr(owner, name, counted)
wrap(Netlink, "batch")
wrap(Iptables, "_run")
folder = Path({folder!r})
invoker = Invoker(config_dir=folder / "net.d", bin_dirs=[folder / "bin"], cache_dir=folder / "cache",
                  own_bin_dir=folder / "bin")
invoker.add("c1", {netns!r}, capabilities={capabilities!r})
"""


def test_sigkill_at_every_step(attach: Attach, tmp_path: Path) -> None:
    """ADD failure leaves nothing: SIGKILL of the runtime at each step, and the GC of the next one."""
    invoker = attach(bridge(tmp_path), portmap(), bandwidth())
    for step in range(1, 60):
        with Namespace() as pod:
            code = KILLED.format(
                source=str(Path(__file__).parents[3]), folder=str(tmp_path), netns=pod.path,
                capabilities=PORTS | LIMITS,
            )  # fmt: skip
            done = subprocess.run([sys.executable, "-c", code, str(step)], capture_output=True, text=True)
            if done.returncode == 0:
                invoker.delete("c1", pod.path)
                nothing_left(pod, tmp_path)
                assert step > 12
                return
            assert done.returncode == -9, done.stderr
            pod_gone = step % 2 == 0  # both happen: the pod died too, or its namespace is still held
            if pod_gone:
                pod.close()
                invoker.gc([])
                for _ in range(3000):  # links of a dropped namespace take a moment
                    if links() in (["lo"], ["lo", "kpy0"]):
                        break
                    time.sleep(0.02)
                with Namespace() as fresh:
                    nothing_left(fresh, tmp_path)
            else:
                invoker.delete("c1", pod.path)
                nothing_left(pod, tmp_path)
    raise AssertionError("ADD never came to its end")


def test_chain_of_two(node: None, own_bin: Path, tmp_path: Path) -> None:
    """Success result passes through or modifies prevResult: chain of 2 plugins."""
    first = alone(bridge(tmp_path))
    with Namespace() as pod:
        status, previous = run(own_bin / "bridge", "ADD", first, **names(pod))
        assert status == 0
        extra = {**previous, "dns": {"nameservers": ["10.96.0.10"], "search": ["a"]}}
        passing = alone({"type": "portmap", "runtimeConfig": PORTS, "prevResult": extra})
        assert run(own_bin / "portmap", "ADD", passing, **names(pod)) == (0, extra)
        assert run(own_bin / "loopback", "ADD", {**passing, "type": "loopback"}, **names(pod)) == (0, extra)
        changing = alone({"type": "bandwidth", "runtimeConfig": LIMITS, "prevResult": extra})
        status, changed = run(own_bin / "bandwidth", "ADD", changing, **names(pod))
        assert status == 0
        assert changed["interfaces"][:3] == extra["interfaces"]
        assert changed["interfaces"][3]["name"].startswith("bwp")
        assert {k: v for k, v in changed.items() if k != "interfaces"} == {
            k: v for k, v in extra.items() if k != "interfaces"
        }
        for kind, config in (("bandwidth", changing), ("portmap", passing), ("bridge", first)):
            config = {**config, "prevResult": changed}
            assert run(own_bin / kind, "DEL", config, **names(pod)) == (0, {})


IPAM = """
echo "$CNI_COMMAND" >> $log.commands
echo "$config" > $log.$CNI_COMMAND.stdin
env | grep ^CNI_ | grep -v ^CNI_COMMAND | sort > $log.$CNI_COMMAND.env
[ $CNI_COMMAND = ADD ] || exit 0
echo '{"cniVersion":"1.1.0","code":11,"msg":"no address yet","details":"later"}'
exit 1
"""


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_delegated_ipam(kind: str, node: None, own_bin: Path, tmp_path: Path) -> None:
    """Delegated IPAM gets same env+stdin; on delegated failure the plugin runs DEL on it: IPAM stub that
    fails."""
    folder = tmp_path / "stubs"
    stub(folder, "no-ipam", IPAM)
    section = {**bridge(tmp_path), "type": kind, "ipam": {"type": "no-ipam", "own": [1, {"x": None}]}}
    config = {**alone(section), "somebody's": {"deep": True}}
    path = f"{own_bin}:{folder}"
    with Namespace() as pod:
        variables = {**names(pod), "ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web"}
        status, body = run(own_bin / kind, "ADD", config, path, **variables)
        assert status == 1
        assert (body["code"], body["msg"], body["details"]) == (11, "no address yet", "later")
        log = folder / "log.no-ipam"
        assert Path(f"{log}.commands").read_text().split() == ["ADD", "DEL"]
        for command in ("ADD", "DEL"):
            assert json.loads(Path(f"{log}.{command}.stdin").read_text()) == config
            seen = Path(f"{log}.{command}.env").read_text().splitlines()
            expected = [f"CNI_{k}={v}" for k, v in {**variables, "PATH": path}.items()]
            assert seen == sorted(expected)
        assert eth0(pod) is None
        assert links() == ["lo"]


# --- DEL -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_del_in_every_state(kind: str, node: None, own_bin: Path, tmp_path: Path) -> None:
    """DEL idempotent, best effort, OK with missing netns, missing prevResult, unknown container."""
    config = alone({**bridge(tmp_path), "type": kind})
    with Namespace() as pod:
        assert run(own_bin / kind, "ADD", config, **names(pod))[0] == 0
        for _ in range(2):  # DEL x2, without prevResult
            assert run(own_bin / kind, "DEL", config, **names(pod)) == (0, {})
        assert leases(tmp_path / "leases/net") == []
        assert run(own_bin / kind, "DEL", config, **names(pod, "never-seen")) == (0, {})
        assert run(own_bin / kind, "ADD", config, **names(pod))[0] == 0
        gone = names(pod)
    # DEL after the netns was removed, and with none at all, frees the address.
    assert run(own_bin / kind, "DEL", config, **gone) == (0, {})
    assert leases(tmp_path / "leases/net") == []
    without = {key: value for key, value in gone.items() if key != "NETNS"}
    assert run(own_bin / kind, "DEL", config, **without) == (0, {})
    for other in ("portmap", "bandwidth", "loopback"):
        section = alone({"type": other, "runtimeConfig": PORTS | LIMITS})
        assert run(own_bin / other, "DEL", section, **without) == (0, {})


RECORD = """
echo "$CNI_COMMAND $0" >> {log}
echo "$config" > {log}.$CNI_COMMAND.$(basename $0)
[ $CNI_COMMAND = ADD ] || exit 0
echo '{{"cniVersion":"1.1.0","ips":[{{"address":"10.1.0.'$(wc -l < {log})'/24"}}]}}'
"""


def recorders(tmp_path: Path, attach: Attach, script: str = "", **list_keys: Any) -> tuple[Invoker, Path]:
    """An invoker whose network has two stub plugins, and the file in which they note their calls."""
    folder, log = tmp_path / "stubs", tmp_path / "log"
    for name in ("one", "two"):
        stub(folder, name, (script or RECORD).format(log=log))
    sections = [{"type": "one", "unknown": {"x": [1, None]}}, {"type": "two"}]
    return attach(*sections, first=[folder], **list_keys), log


def calls(log: Path) -> list[str]:
    return [f"{c} {Path(p).name}" for c, p in (line.split() for line in log.read_text().splitlines())]


def test_reverse_del_after_a_restart(attach: Attach, tmp_path: Path) -> None:
    """Runtime runs chain DEL in reverse with the final ADD result as prevResult, cached on disk: restart
    between ADD and DEL."""
    invoker, log = recorders(tmp_path, attach)
    with Namespace() as pod:
        final = invoker.add("c1", pod.path)
        # The configuration is another one by then: what ADD was given counts.
        attach({"type": "loopback"})
        again = Invoker(
            config_dir=tmp_path / "net.d", bin_dirs=[tmp_path / "stubs"], cache_dir=tmp_path / "cache",
            own_bin_dir=tmp_path / "bin",
        )  # fmt: skip
        again.delete("c1", pod.path)
    assert calls(log) == ["ADD one", "ADD two", "DEL two", "DEL one"]
    for name in ("one", "two"):
        body = json.loads(Path(f"{log}.DEL.{name}").read_text())
        assert Result.from_json(body["prevResult"]) == final
    assert not list((tmp_path / "cache/results").iterdir())


# --- the runtime's order -------------------------------------------------------------------------

SLOW = """
id=${{CNI_CONTAINERID:-all}}
[ -e {log}.busy.$id ] && echo "two at once for $id" >> {log}.wrong
[ $id = all ] && ls {log}.busy.* >/dev/null 2>&1 && echo "GC not alone" >> {log}.wrong
[ -e {log}.busy.all ] && echo "beside GC" >> {log}.wrong
touch {log}.busy.$id; sleep 0.03; rm {log}.busy.$id
[ $CNI_COMMAND = ADD ] && echo '{{"cniVersion":"1.1.0"}}'
exit 0
"""


def test_turns(attach: Attach, tmp_path: Path) -> None:
    """Runtime never runs two ops for one container at once; GC exclusive of ADD/DEL: lock test."""
    invoker, log = recorders(tmp_path, attach, SLOW)

    def one(number: int) -> None:
        container = f"c{number % 3}"
        try:
            invoker.add(container, pod.path)
        except CniError as error:  # another thread's ADD came first
            assert "attached already" in str(error)
        invoker.delete(container, pod.path)

    with Namespace() as pod, ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(one, n) for n in range(12)]
        jobs += [pool.submit(invoker.gc, [(f"c{n}", "eth0") for n in range(3)]) for _ in range(3)]
        for job in jobs:
            job.result(60)
    wrong = Path(f"{log}.wrong")
    assert not wrong.exists(), wrong.read_text()


# --- CHECK ---------------------------------------------------------------------------------------


def test_check(node: None, own_bin: Path, tmp_path: Path) -> None:
    """CHECK compares against prevResult, errors if interface/IP/route gone: delete address by hand."""
    config = alone(bridge(tmp_path))
    with Namespace() as pod, pod.netlink() as inside:
        _, result = run(own_bin / "bridge", "ADD", config, **names(pod))
        checked = {**config, "prevResult": result}
        assert run(own_bin / "bridge", "CHECK", checked, **names(pod)) == (0, {})
        status, body = run(own_bin / "bridge", "CHECK", config, **names(pod))
        assert (status, body["code"]) == (1, 7), "without prevResult"
        nsenter = ["nsenter", f"--net={pod.path}", "ip"]
        for words, back, what in (
            (["route", "del", "default"], ["route", "add", "default", "via", "10.6.0.1"], "0.0.0.0/0"),
            (["addr", "del", "10.6.0.2/24", "dev", "eth0"], ["addr", "add", "10.6.0.2/24", "dev", "eth0"],
             "10.6.0.2/24"),
            (["link", "set", "eth0", "down"], ["link", "set", "eth0", "up"], "eth0"),
            (["link", "del", "eth0"], None, "eth0"),
        ):  # fmt: skip
            subprocess.run([*nsenter, *words], check=True)
            status, body = run(own_bin / "bridge", "CHECK", checked, **names(pod))
            assert status == 1 and what in body["msg"], body
            if back:
                subprocess.run([*nsenter, *back], check=True)
                subprocess.run([*nsenter, "route", "replace", "default", "via", "10.6.0.1"], check=True)
                assert run(own_bin / "bridge", "CHECK", checked, **names(pod)) == (0, {}), what
        assert inside.link("eth0") is None
        run(own_bin / "bridge", "DEL", checked, **names(pod))


@pytest.mark.parametrize("value", [True, "true"])
def test_check_is_skipped_on_disable_check(attach: Attach, tmp_path: Path, value: object) -> None:
    """CHECK is skipped on disableCheck."""
    invoker, log = recorders(tmp_path, attach)
    file = tmp_path / "net.d/10-test.conflist"
    with Namespace() as pod:
        invoker.add("c1", pod.path)
        invoker.check("c1", pod.path)
        assert calls(log)[-2:] == ["CHECK one", "CHECK two"]
        invoker.delete("c1", pod.path)
        file.write_text(json.dumps({**json.loads(file.read_text()), "disableCheck": value}))
        invoker.add("c1", pod.path)
        before = len(calls(log))
        invoker.check("c1", pod.path)
        assert len(calls(log)) == before
        invoker.delete("c1", pod.path)


# --- GC and STATUS -------------------------------------------------------------------------------


def test_gc(attach: Attach, own_bin: Path, tmp_path: Path) -> None:
    """GC uses cni.dev/valid-attachments, keeps going on errors, forwards to delegates: leave 3 stale
    leases."""
    folder, log = tmp_path / "stubs", tmp_path / "log"
    failing = '[ $CNI_COMMAND = GC ] && echo \'{{"code":100,"msg":"cannot"}}\' && exit 1\n' + RECORD
    stub(folder, "broken", failing.format(log=log))
    store = tmp_path / "leases/net"
    invoker = attach({"type": "broken"}, bridge(tmp_path), portmap(), first=[folder])
    with Namespace() as pod:
        invoker.add("keep", pod.path)
        for n in (50, 51, 52):
            (store / f"10.6.0.{n}").write_text(f"stale{n}\r\neth0")
        with pytest.raises(CniError, match="cannot"):
            invoker.gc([("keep", "eth0")])
        assert leases(store) == ["10.6.0.2"]
        # The program by itself: the list decides, container ID and interface name.
        for n in (50, 51):
            (store / f"10.6.0.{n}").write_text(f"c{n}\r\neth0")
        valid = [{"containerID": "keep", "ifname": "eth0"}, {"containerID": "c50", "ifname": "eth0"},
                 {"containerID": "c51", "ifname": "net1"}]  # fmt: skip
        config = {**alone(bridge(tmp_path)), "cni.dev/valid-attachments": valid}
        assert run(own_bin / "bridge", "GC", config) == (0, {})
        assert leases(store) == ["10.6.0.2", "10.6.0.50"]
        invoker.delete("keep", pod.path)


def test_status(node: None, own_bin: Path, tmp_path: Path) -> None:
    """STATUS 0, or error code 50 (not available) / 51 (not available, existing attachments limited): range
    exhausted / bridge missing."""
    section = bridge(tmp_path)
    section["ipam"]["rangeEnd"] = "10.6.0.3"
    config = alone(section)
    with Namespace() as first, Namespace() as second, Netlink() as host:
        assert run(own_bin / "bridge", "STATUS", config) == (0, {})
        assert run(own_bin / "bridge", "ADD", config, **names(first))[0] == 0
        assert run(own_bin / "bridge", "STATUS", config) == (0, {})
        assert run(own_bin / "bridge", "ADD", config, **names(second, "c2"))[0] == 0
        status, body = run(own_bin / "bridge", "STATUS", config)
        assert (status, body["code"]) == (1, 50), "the range is exhausted"
        host.delete_link("kpy0")
        status, body = run(own_bin / "bridge", "STATUS", config)
        assert (status, body["code"]) == (1, 51), "the bridge is missing, pods hang on it"
        for pod, container in ((first, "c1"), (second, "c2")):
            assert run(own_bin / "bridge", "DEL", config, **names(pod, container))[0] == 0
        assert run(own_bin / "bridge", "STATUS", config) == (0, {}), "the next ADD makes the bridge"


# --- versions, names, codes ----------------------------------------------------------------------


def test_version(attach: Attach, own_bin: Path, tmp_path: Path) -> None:
    """VERSION lists supportedVersions; runtime picks highest common of cniVersion/cniVersions: mismatch ->
    code 1."""
    ours = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    for kind in ("bridge", "ptp", "host-local", "loopback", "portmap", "bandwidth"):
        assert run(own_bin / kind, "VERSION", {"cniVersion": "1.0.0"}) == (
            0,
            {"cniVersion": "1.0.0", "supportedVersions": ours},
        )
    with Namespace() as pod:
        status, body = run(own_bin / "bridge", "ADD", alone(bridge(tmp_path), "2.0.0"), **names(pod))
        assert (status, body["code"]) == (1, 1)
        status, body = run(own_bin / "bridge", "STATUS", alone(bridge(tmp_path), "1.0.0"))
        assert (status, body["code"]) == (1, 1), "STATUS is younger than 1.0.0"
    # The runtime: the highest that both sides name.
    invoker, log = recorders(tmp_path, attach)
    file = tmp_path / "net.d/10-test.conflist"
    body = json.loads(file.read_text())
    table = (("0.3.1", ["0.4.0", "1.0.0", "9.0.0"], "1.0.0"), ("0.4.0", [], "0.4.0"))
    for version, versions, chosen in table:
        file.write_text(json.dumps({**body, "cniVersion": version, "cniVersions": versions}))
        with Namespace() as pod:
            invoker.add("c1", pod.path)
            assert json.loads(Path(f"{log}.ADD.one").read_text())["cniVersion"] == chosen
            invoker.delete("c1", pod.path)
    file.write_text(json.dumps({**body, "cniVersion": "9.0.0"}))
    with Namespace() as pod, pytest.raises(CniError, match=r"9\.0\.0"):
        invoker.add("c1", pod.path)


BAD_IDS = ["-a", ".a", "_a", "a/b", "a b", "a:b", "é", "../x"]
BAD_NAMES = [".", "..", "a/b", "a:b", "a b", "sixteen-letters-", "tab\there"]


def test_names(node: None, own_bin: Path, attach: Attach, tmp_path: Path) -> None:
    """containerID: starts alnum, then [alnum _ . -]; ifname <= 15, no "/", ":", space, not "." or "..": table
    test."""
    config = alone({"type": "loopback"})
    invoker = attach(bridge(tmp_path))
    with Namespace() as pod:
        for container, ifname in [*((c, "eth0") for c in BAD_IDS), *(("c1", n) for n in BAD_NAMES)]:
            for command in ("ADD", "DEL", "CHECK"):
                given = {"CONTAINERID": container, "IFNAME": ifname, "NETNS": pod.path}
                status, body = body_of("loopback", own_bin, command, config, **given)
                assert (status, body["code"]) == (1, 4), (command, container, ifname)
            with pytest.raises(CniError) as caught:
                invoker.add(container, pod.path, ifname=ifname)
            assert caught.value.code == 4
        for container, ifname in (("0", "a"), ("A_b.c-9", "fifteen-letters"), ("f" * 64, "eth0.5")):
            given = {"CONTAINERID": container, "IFNAME": ifname, "NETNS": pod.path}
            config = alone(bridge(tmp_path))
            assert body_of("bridge", own_bin, "ADD", config, **given)[0] == 0
            assert body_of("bridge", own_bin, "DEL", config, **given)[0] == 0


def test_codes(node: None, own_bin: Path, attach: Attach, tmp_path: Path) -> None:
    """Codes 1 incompatible version, 2 unsupported field, 3 unknown container, 4 bad env, 5 I/O, 6 decode, 7
    invalid config, 11 try again later, 50, 51; plugin codes >= 100: table test."""
    good = alone(bridge(tmp_path))
    small = alone(bridge(tmp_path))
    small["ipam"] = {**small["ipam"], "rangeEnd": "10.6.0.1"}
    file_in_the_way = tmp_path / "file"
    file_in_the_way.write_text("")
    no_folder = alone(bridge(tmp_path))
    no_folder["ipam"] = {**no_folder["ipam"], "dataDir": str(file_in_the_way)}
    with Namespace() as pod:
        table: list[tuple[int, Any, dict[str, str]]] = [
            (1, {**good, "cniVersion": "7.7.7"}, names(pod)),
            (2, {**good, "enabledad": True}, names(pod)),
            (3, good, {**names(pod), "NETNS": "/proc/0/ns/net"}),
            (4, good, {**names(pod), "IFNAME": ""}),
            (5, no_folder, names(pod)),
            (6, [], names(pod)),
            (7, {**good, "hairpinMode": True, "promiscMode": True}, names(pod)),
            (7, {**good, "ipam": {"type": "host-local"}}, names(pod)),
            (101, small, names(pod)),
        ]
        for code, config, variables in table:
            status, body = body_of("bridge", own_bin, "ADD", config, **variables)
            assert (status, body["code"]) == (1, code), body
            assert body["msg"] and body["cniVersion"]
            assert eth0(pod) is None
        # A runtime sees the codes of plugins, also those that ours have no use for.
        for code in (11, 50, 51, 117):
            stub(tmp_path / "stubs", "one", f'echo \'{{"code":{code},"msg":"m","details":"d"}}\'; exit 1')
            with pytest.raises(CniError) as caught:
                attach({"type": "one"}, first=[tmp_path / "stubs"]).add("c1", pod.path)
            assert (caught.value.code, caught.value.msg, caught.value.details) == (code, "m", "d")


def test_unknown_fields(attach: Attach, tmp_path: Path) -> None:
    """Unknown config fields passed unchanged."""
    invoker, log = recorders(tmp_path, attach)
    with Namespace() as pod:
        invoker.add("c1", pod.path)
        invoker.check("c1", pod.path)
        invoker.gc([("c1", "eth0")])
        invoker.status()
        invoker.delete("c1", pod.path)
    for command in ("ADD", "CHECK", "GC", "STATUS", "DEL"):
        body = json.loads(Path(f"{log}.{command}.one").read_text())
        assert body["unknown"] == {"x": [1, None]}, command
        assert (body["name"], body["cniVersion"], body["type"]) == ("net", "1.1.0", "one")
        assert "unknown" not in json.loads(Path(f"{log}.{command}.two").read_text())
