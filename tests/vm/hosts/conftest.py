"""Two emulated machines or more, made a cluster by the scripts of vagrant/; only under hack/vm/hosts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))
sys.path.insert(0, str(Path(__file__).parent))

from hosts import Hosts, machines


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    """All nodes Ready and the example deployed, as `vagrant up` leaves them."""
    said = os.environ.get("KUBELET_PY_VM_IMAGE")
    if not said:
        pytest.skip("the image of the virtual machines is missing (sudo ./hack/test --vm)")
    image = Path(said)
    folder = image / "hosts"  # stays, for who wants to read the logs
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    hosts = Hosts(machines(int(os.environ.get("VM_HOSTS", "2")), image, folder), folder)
    try:
        hosts.up()
        yield hosts
    finally:
        for machine in hosts.machines:
            machine.off()
