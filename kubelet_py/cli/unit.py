"""The systemd unit of a node, as text. PURE.

One unit for the whole node, not one per process: the supervisor in it already restarts what ends, knows the
order in which to stop, and is what `status` and `down` ask. Stopping the unit never stops a pod: the main
process alone is signalled (KillMode=process) and ends agent, proxy and control plane; the shims stay in the
unit's cgroup, which systemd leaves alone (Delegate=yes), and are adopted by the next start. So the package
may be replaced and the unit restarted under running containers.
Facts relied on: systemd.service(5), systemd.kill(5), systemd.resource-control(5), "Delegate=".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kubelet_py.paths import NodePaths

ENVIRONMENT_FILE = "/etc/default/kubelet-py"

_TEXT = """\
# Written by `kubelet-py install`; `kubelet-py uninstall` removes it. Your own changes belong into a drop-in
# (systemctl edit {name}), which stays when this file is written anew.
[Unit]
Description=Kubernetes node (kubelet-py{which})
# Firewalls that load their rules at boot may flush all others: before us, not after.
Wants=network-online.target
After=network-online.target time-sync.target dbus.socket
After=nftables.service netfilter-persistent.service firewalld.service ufw.service
RequiresMountsFor={folders}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
# For HTTPS_PROXY and the like.
EnvironmentFile=-{environment}
ExecStart={command}
Restart=always
RestartSec=2
# Only the supervisor is signalled, and its cgroup is its own: pods run on while the unit is stopped.
KillMode=process
Delegate=yes
TimeoutStartSec=300
TimeoutStopSec=60
OOMScoreAdjust=-999
# Containers inherit what their pod does not set: a soft limit that old programs can live with.
LimitNOFILE=65536:1048576
LimitNPROC=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""


def name(paths: NodePaths) -> str:
    """One unit per root."""
    return f"kubelet-py-{paths.instance}.service" if paths.instance else "kubelet-py.service"


def text(paths: NodePaths, program: Sequence[str]) -> str:
    """The unit file; `program` is the command line of `kubelet-py`, with absolute paths."""
    command = [*program, "up", "--root", str(paths.root)]
    folders = (paths.config, paths.state, paths.logs)
    return _TEXT.format(
        name=name(paths),
        which=f" at {_plain(str(paths.root))}" if paths.instance else "",
        folders=" ".join(quoted(str(folder)) for folder in folders),
        environment=ENVIRONMENT_FILE,
        command=" ".join(quoted(word.replace("$", "$$")) for word in command),
    )


def quoted(word: str) -> str:
    """One word for systemd, which splits at spaces and replaces %-specifiers."""
    escaped = _plain(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if escaped != word or set(word) & set(" \t';") or not word else word


def _plain(word: str) -> str:
    return word.replace("%", "%%")


def program() -> list[str]:
    """How to start this very installation again: its own console script, else the module.

    Not the command that was typed, which may be a link somewhere else by then. `-P` keeps the folder in which
    systemd starts us out of the search path.
    """
    script = Path(sys.prefix) / "bin/kubelet-py"
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "kubelet_py"]
