"""`kubelet-py down` and `kubelet-py reset`: take away exactly what this node made, nothing else.

What is ours is known by state files and by names that this node gave, never by a pattern over the whole
host. Each step works although an earlier one found nothing, so that `down` also cleans up after a SIGKILL
of everything. `down` keeps what is on disk (images, the API's objects, certificates): the next `up` brings
the same pods back. `reset` removes that too.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kubelet_py.cli import settings as node_settings
from kubelet_py.cli import unit
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.settings import NodeSettings
from kubelet_py.cli.supervisor import read_state
from kubelet_py.cli.systemd import Systemd
from kubelet_py.cli.up import require_root
from kubelet_py.errors import VolumeError
from kubelet_py.node import logind
from kubelet_py.paths import NodePaths
from runtime.removal import remove_tree

if TYPE_CHECKING:
    from kubelet_py.node.network import NodeNetwork

log = logging.getLogger(__name__)

SUPERVISOR_GRACE = 15.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    down = subparsers.add_parser(
        "down",
        help="stop the node and its pods",
        description="Stop the node's processes and pods, and remove its links, routes, rules, mounts and "
        "cgroups. Images, API objects and certificates stay: the next `up` brings the same pods back.",
    )
    down.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    down.set_defaults(handler=run_down)
    reset = subparsers.add_parser(
        "reset",
        help="`down`, and remove all state from the disk",
        description="Do what `down` does, then remove images, API objects, certificates, volumes and logs.",
    )
    reset.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    reset.add_argument("--yes", "-y", action="store_true", help="do not ask")
    reset.set_defaults(handler=run_reset)


def run_down(args: argparse.Namespace) -> int:
    require_root("down")
    paths = NodePaths(args.root.resolve())
    if down(paths, say=print):
        print(f"{unit.name(paths)} starts it again at boot (kubelet-py uninstall removes that)")
    return 0


def run_reset(args: argparse.Namespace) -> int:
    require_root("reset")
    paths = NodePaths(args.root.resolve())
    if not args.yes:
        if not sys.stdin.isatty():
            raise CommandError("this removes all pods, images and certificates of the node (say --yes)")
        answer = input(f"Remove all pods, images, objects and certificates below {paths.root}? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was done")
    settings = node_settings.load(paths)
    down(paths, say=print)
    remove_state(paths)
    print("Removed the node's state from the disk")
    if settings is not None and settings.server:
        print(node_that_stays(settings))
    return 0


def node_that_stays(settings: NodeSettings) -> str:
    """`reset` asks no API server, unlike `leave`: it is for a node in whatever state."""
    name = settings.node_name
    return f"The cluster at {settings.server} still has the Node {name} (there: kubectl delete node {name})"


def down(paths: NodePaths, *, say: Callable[[str], None]) -> bool:
    """Stop everything of this node and give the kernel back what it held; safe to repeat.

    Answers whether its unit, if it stays, starts the node again at boot.
    """
    settings = node_settings.load(paths)
    at_boot = stop_processes(paths)
    say("Stopped the node's processes")
    network = _network(paths, settings)
    _detach_pods(network)
    _remove_pods(paths)
    _remove_profile()
    say("Removed the pods")
    _remove_network(network, settings)
    say("Removed links, routes and rules")
    _unmount_volumes(paths)
    _remove_tree(paths.run)
    _remove_log_links(paths)
    return at_boot


def stop_processes(paths: NodePaths) -> bool:
    """End supervisor, agent, proxy and control plane; whether systemd had to be asked."""
    systemd, name = Systemd(), unit.name(paths)
    managed = systemd.running(name)
    if managed:
        systemd.stop(name)  # or it would start them again
    state = read_state(paths.run)
    if state is None:
        return managed
    state.supervisor.stop(SUPERVISOR_GRACE)
    # A supervisor that was killed, now or earlier, could not take its children along.
    for identity in state.children.values():
        identity.stop(5.0)
    return managed


def _remove_pods(paths: NodePaths) -> None:
    """Kill what runs in this node's sandboxes and remove their cgroups."""
    from runtime import cgroups
    from runtime.service import RuntimeService

    driver = cgroups.choose(cgroups.native())
    service = RuntimeService(run_dir=paths.run, state_dir=paths.containers, cgroups=driver)
    service.remove_everything()
    # Which driver the agent had is its configuration's business, and that may have changed.
    for path in {paths.cgroup_root, driver.names.group(paths.cgroup_root)}:
        if driver.exists(path):
            driver.remove(path, recursive=True)


def _remove_profile() -> None:
    from kubelet_py.pods import app_armor

    try:
        app_armor.Profiles(enabled=app_armor.enabled()).remove_default()
    except OSError as error:
        raise CommandError(f"Could not remove the AppArmor profile {app_armor.DEFAULT}: {error}") from error


def _network(paths: NodePaths, settings: NodeSettings | None) -> NodeNetwork:
    from kubelet_py.node.network import NodeNetwork

    folders = [Path(folder) for folder in settings.cni_bin_dirs] if settings else []
    return NodeNetwork(paths, folders)


def _detach_pods(network: NodeNetwork) -> None:
    """DEL while the pods' namespaces still exist: upstream's plugins leave their rules behind otherwise."""
    from cni.errors import CniError

    try:
        network.invoker.gc(())
    except CniError as error:
        # Tried again once the pods are gone, and reported then.
        log.warning("Failed to detach pods error=%s", error)


def _remove_network(network: NodeNetwork, settings: NodeSettings | None) -> None:
    """Undo the pods' wiring, the proxy's rules, the routes and the bridge."""
    from cni.errors import CniError

    try:
        network.tear_down()
    except CniError as error:
        raise CommandError(f"Could not remove the pods' network: {error}") from error
    if settings is None:
        return
    done = subprocess.run([sys.executable, "-m", "proxy", "--cleanup"], capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandError(f"Could not remove the proxy's rules: {done.stderr.strip()}")


def _unmount_volumes(paths: NodePaths) -> None:
    from kubelet_py.volumes import mounting

    try:
        mounting.unmount_below(paths.pods)
    except VolumeError as error:
        raise CommandError(str(error)) from error


def _remove_tree(folder: Path) -> None:
    """Remove the folder; one that is a mount point is somebody's disk: it is emptied, and stays."""
    if not folder.is_mount():
        if folder.exists():
            remove_tree(folder)
        return
    for entry in list(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            entry.unlink()


def _remove_log_links(paths: NodePaths) -> None:
    """Remove the links in var/log/containers that point into this node's pod logs."""
    if not paths.container_logs.is_dir():
        return
    for link in paths.container_logs.iterdir():
        if link.is_symlink() and link.readlink().is_relative_to(paths.pod_logs):
            link.unlink()


def remove_state(paths: NodePaths) -> None:
    """Remove this node's folders, of the shared ones only what it wrote, and its unit."""
    Systemd().remove(unit.name(paths))
    if paths.root == Path("/"):
        logind.remove_drop_in()
    for folder in (paths.state, paths.config, paths.logs):
        _remove_tree(folder)
    own_conflist = paths.cni_config / "10-kubelet-py.conflist"
    own_conflist.unlink(missing_ok=True)
    _remove_tree(paths.pod_logs)
    for folder in (paths.container_logs, paths.cni_config, paths.cni_config.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
