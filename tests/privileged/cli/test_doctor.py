"""What `doctor` finds on a real host: all it looks at, a port, and rules that iptables does not show."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import network_lab
import pytest

pytestmark = pytest.mark.privileged

ROOT = Path(__file__).parents[3]
DOCTOR = "from kubelet_py.cli.main import main; sys.exit(main(['doctor', '--output', 'json']))"


WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")


def findings(
    prelude: str = "pass", code: int | None = None, under: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    script = f"import sys; {prelude}; {DOCTOR}"
    done = subprocess.run([*under, sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "" and code in (None, done.returncode)
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def legacy_finding(prelude: str = "pass", under: tuple[str, ...] = ()) -> dict[str, str]:
    [finding] = [one for one in findings(prelude, under=under) if one["name"] == "legacy rules"]
    return finding


@pytest.mark.skipif(not shutil.which("iptables-legacy"), reason="iptables-legacy is not installed")
def test_rules_that_the_nft_variant_hides_are_found() -> None:
    with network_lab.node():
        assert legacy_finding()["state"] == "ok"
        subprocess.run(["iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT"], check=True)
        finding = legacy_finding()
        assert (finding["state"], finding["found"]) == ("degraded", "rules in filter/FORWARD")
        # python-iptables is an extra: without it the tables are named and another way to look at them.
        finding = legacy_finding("sys.modules['iptc'] = None")
        assert (finding["state"], finding["found"]) == ("degraded", "not known; legacy tables: filter")
        assert finding["mend"] == "look with iptables-legacy-save"
        # Nor are they shown to root in a container that was given few capabilities.
        finding = legacy_finding(under=WITHOUT_NET_ADMIN)
        assert (finding["state"], finding["found"]) == ("degraded", "not known; legacy tables: filter")


def test_a_run_on_this_machine_looks_at_everything_and_changes_nothing() -> None:
    names = [finding["name"] for finding in findings()]
    looked_at = {
        "capabilities",
        "namespaces",
        "veth",
        "vxlan",
        "cgroup.kill",
        "delegation",
        "nftables",
        "services",
    }
    looked_at |= {
        "FORWARD policy",
        "firewalls",
        "address",
        "forwarding",
        "rp_filter",
        "DNS",
        "networkd",
        "clock",
    }
    assert looked_at | {"disk", "ports", "swap", "other nodes"} <= set(names)
    assert len(names) == len(set(names))
    made = [finding for finding in findings() if finding["name"] in ("veth", "bridge", "nftables")]
    assert {finding["state"] for finding in made} == {"ok"}, made


def test_a_port_that_is_taken_is_missing_and_names_who_has_it() -> None:
    with network_lab.node(), socket.create_server(("127.0.0.1", 10250)):
        [ports] = [finding for finding in findings(code=1) if finding["name"] == "ports"]
    assert ports["state"] == "missing" and "10250 (the kubelet) is held by" in ports["found"]
    assert f"(pid {os.getpid()})" in ports["found"] and "--kubelet-port" in ports["mend"]
