"""What `doctor` says of rules that the host's own iptables does not show."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import network_lab
import pytest

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(not shutil.which("iptables-legacy"), reason="iptables-legacy is not installed"),
]

ROOT = Path(__file__).parents[3]
DOCTOR = "from kubelet_py.cli.main import main; sys.exit(main(['doctor', '--output', 'json']))"


def legacy_finding(prelude: str = "pass") -> dict[str, str]:
    script = f"import sys; {prelude}; {DOCTOR}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    [finding] = [one for one in json.loads(done.stdout) if one["name"] == "legacy rules"]
    return finding


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
