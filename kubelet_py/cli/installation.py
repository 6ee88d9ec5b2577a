"""Puts a node into systemd's hands: for `install`, and for `join --install`.

A node that runs already, started by `up` or `join`, is taken over: its processes end, its pods do not, and
the unit's processes adopt them.
"""

from __future__ import annotations

from kubelet_py.cli import unit, up
from kubelet_py.cli.settings import NodeSettings
from kubelet_py.cli.supervisor import read_state
from kubelet_py.cli.systemd import NotStarted, Systemd
from kubelet_py.paths import NodePaths

TAKE_OVER_GRACE = 30.0


def start(paths: NodePaths, settings: NodeSettings, systemd: Systemd, timeout: float) -> None:
    """Write the unit and have it run the node. A new one that could not be started is removed again."""
    name = unit.name(paths)
    known = systemd.installed(name)
    if not systemd.running(name):
        _take_over(paths)
        up.check_host(paths, settings)
    settings.save(paths, synced=True)
    systemd.install(name, unit.text(paths, unit.program()))
    print(f"Installed {name}, enabled at boot", flush=True)
    try:
        up.start_unit(paths, settings, timeout, systemd)
    except NotStarted:
        if not known:
            systemd.remove(name)
        raise


def _take_over(paths: NodePaths) -> None:
    """End the processes of a node that was started otherwise; its pods run on."""
    state = read_state(paths.run)
    if state is not None and state.supervisor.alive():
        state.supervisor.stop(TAKE_OVER_GRACE)
        print("Stopped the processes that ran the node; its pods run on", flush=True)
