"""Programs that allocate addresses, side by side, and are killed again and again."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cni_lab import leases

from cni.host_local import HostLocal
from cni.types import Request

pytestmark = pytest.mark.privileged

SUBNET = "10.5.0.0/21"
ALLOCATE = """
import sys
sys.path.insert(0, sys.argv[1])
from cni.host_local import HostLocal
from cni.types import Request
ipam = {"type": "host-local", "subnet": sys.argv[3], "dataDir": sys.argv[2]}
config = {"cniVersion": "1.1.0", "name": "n", "ipam": ipam}
n = 0
while True:
    n += 1
    name = f"{sys.argv[4]}-{n}"
    # A new instance each time, as each program that a runtime starts is one.
    result = HostLocal().add(Request("ADD", config, name, "", "eth0"))
    print(name, result.ips[0].address.split("/")[0], flush=True)
"""


def test_no_address_is_handed_out_twice_through_sigkill(tmp_path: Path) -> None:
    given: list[tuple[str, str]] = []
    chance = random.Random(5)
    pauses = [[chance.random() * 0.02 for _ in range(10)] for _ in range(3)]

    def life(worker: int) -> None:
        for round_, pause in enumerate(pauses[worker]):
            words = [str(Path(__file__).parents[3]), str(tmp_path), SUBNET, f"w{worker}-{round_}"]
            child = subprocess.Popen(
                [sys.executable, "-S", "-c", ALLOCATE, *words], stdout=subprocess.PIPE, text=True
            )
            assert child.stdout is not None
            first = child.stdout.readline()
            threading.Event().wait(pause)
            child.kill()
            for line in [first, *child.stdout.read().splitlines(keepends=True)]:
                if line.endswith("\n"):  # what was told whole
                    name, address = line.split()
                    given.append((address, name))
            child.stdout.close()
            child.wait()

    threads = [threading.Thread(target=life, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) >= 30
    assert len({address for address, _ in given}) == len(given)
    on_disk = {n: (tmp_path / "n" / n).read_text().split("\n")[0] for n in leases(tmp_path / "n")}
    assert {address: on_disk.get(address) for address, _ in given} == dict(given)
    # At most one unfinished reservation for each kill, and GC knows them.
    assert len(on_disk) - len(given) <= 30
    valid = [{"containerID": name, "ifname": "eth0"} for _, name in given]
    ipam = {"type": "host-local", "subnet": SUBNET, "dataDir": str(tmp_path)}
    config = {"cniVersion": "1.1.0", "name": "n", "ipam": ipam, "cni.dev/valid-attachments": valid}
    HostLocal().gc(Request("GC", config))
    assert leases(tmp_path / "n") == sorted(address for address, _ in given)
