"""`kubelet-py node shutdown`: end the node's pods by priority, before the machine or the node itself stops.

The command signals the agent and follows what it writes into `run/kubelet-py/node-shutdown.json`. Afterwards
the node is NotReady and refuses pods until its agent starts anew. A host calls this from whatever shuts it
down; under systemd it fits an ExecStop= line.
"""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.processes import ProcessIdentity
from kubelet_py.cli.supervisor import read_state
from kubelet_py.paths import NodePaths

LOOK_SECONDS = 0.1
LONGEST_SECONDS = 3600.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    node = subparsers.add_parser(
        "node", help="act on the node as a whole", description="Act on the node as a whole."
    )
    actions = node.add_subparsers(dest="action", metavar="ACTION", required=True)
    shutdown = actions.add_parser(
        "shutdown",
        help="end all pods by priority, critical ones last",
        description="End all pods by priority, as the kubelet does when its machine shuts down: the node "
        "becomes NotReady (node is shutting down), pods get shutdownGracePeriod of the KubeletConfiguration "
        "(or their own grace without it), critical ones end last. Returns when all have ended. The node "
        "takes pods again when its agent starts anew.",
    )
    shutdown.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    shutdown.add_argument(
        "--timeout", type=float, default=LONGEST_SECONDS, help="seconds to wait at most (default 3600)"
    )
    shutdown.set_defaults(handler=run_shutdown)


def run_shutdown(args: argparse.Namespace) -> int:
    from kubelet_py.node.shutdown import TERMINATED, request_file, state_of

    paths = NodePaths(args.root.resolve())
    agent = _agent(paths)
    request = request_file(paths)
    if state_of(request) == TERMINATED:
        print("The pods have been ended already")
        return 0
    if not agent.send(signal.SIGUSR1):
        raise CommandError("the agent ended just now (see kubelet-py status)")
    deadline = time.monotonic() + args.timeout
    while (state := state_of(request)) != TERMINATED:
        if not agent.alive():
            raise CommandError("the agent ended before all pods had (see kubelet-py status)")
        if time.monotonic() > deadline:
            raise CommandError(f"pods still run after {args.timeout:g} s (state: {state or 'not begun'})")
        time.sleep(LOOK_SECONDS)
    print("All pods have ended")
    return 0


def _agent(paths: NodePaths) -> ProcessIdentity:
    state = read_state(paths.run)
    agent = state.children.get("agent") if state is not None else None
    if agent is None or not agent.alive():
        raise CommandError("no agent runs here (start the node: kubelet-py up --detach)")
    return agent
