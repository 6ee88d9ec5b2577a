"""`kubelet-py lab`: the command line of the lab; what the verbs do is in kubelet_py/cli/lab/.

Of `lab kubectl …` and `lab image …` all that follows is another command's. argparse would look for options
of its own among it, so their parsers know no option at all; `--root DIR` before the other command's first
word, and a lone `--help`, are ours.
"""

from __future__ import annotations

import argparse
import importlib
import textwrap
from collections.abc import Sequence
from pathlib import Path

from cni.errors import CniError
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.lab.layout import DEFAULT_ROOT, LabPaths
from kubelet_py.node import peers
from runtime.errors import RuntimeFailure

EPILOG = """\
begin:     kubelet-py lab up --nodes 3
images:    kubelet-py lab image from-binary /bin/busybox --name busybox;  … pull, import
look:      kubelet-py lab status;  kubelet-py lab kubectl get nodes -o wide
break:     kubelet-py lab node node2 kill;  … partition;  … delay 50ms;  … loss 5%
mend:      kubelet-py lab node node2 start;  … heal
end:       kubelet-py lab down
"""


ACTIONS = ("stop", "start", "kill", "pause", "partition", "heal", "delay", "loss")
NODE_EPILOG = """\
stop        shut it down in order: pods end first, critical ones last
kill        cut its power: everything in it ends at once, the disk stays
start       switch it on again, with what is on its disk; or let a paused one go on
pause       let all its processes stand still, as in a machine that hangs
partition   cut its cable, to all or to those after --from; the link stays up, frames are lost
delay 50ms  hold back every frame, each way: a ping takes 100 ms more
loss 5%     lose five of a hundred frames, each way
heal        give it a good cable again: no partition, no delay, no loss
"""


OTHER_COMMANDS = {
    "kubectl": (
        "run kubectl as the lab's administrator",
        "Run this host's kubectl with the lab's kubeconfig. All that follows is kubectl's, its options as "
        "well: kubelet-py lab kubectl get pods -A -o wide. Its own help: kubelet-py lab kubectl help.",
    ),
    "image": (
        "give every node an image",
        "Run `kubelet-py image …` on this host, where files and registries can be reached, for every node's "
        "disk in turn: kubelet-py lab image from-binary /bin/busybox --name busybox; … pull, import, ls, rm. "
        "Each action's own help: kubelet-py lab image pull --help.",
    ),
}
LOAD_BALANCERS = "what Services of type LoadBalancer get: nodes, or ranges with commas (default: they wait)"
WIREGUARD = "UDP port of the tunnel, with --pod-routes wireguard (default 51820)"
NO_PREFIX = "\0"  # begins no argument, so none is taken for an option


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    lab = subparsers.add_parser(
        "lab",
        help="a cluster of several machines on this one",
        description="A cluster of several machines on this one, to try what one node cannot show. Each\n"
        "machine has namespaces, cgroups and a disk of its own; a switch connects them, and one\n"
        "link this host to it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    lab.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help=f"folder of the lab (default {DEFAULT_ROOT})"
    )
    verbs = lab.add_subparsers(dest="verb", metavar="VERB", required=True)
    _up(verbs)
    _others(verbs)


def _up(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    up = verbs.add_parser(
        "up",
        help="make the lab, or add nodes to it",
        description="Make a lab: a switch, a machine with the control plane, and N machines that join it as "
        "nodes. Returns when all nodes are Ready. With more nodes than a running lab has, it adds them.",
    )
    up.add_argument(
        "--nodes", type=int, default=3, help="how many nodes, besides the control plane (default 3)"
    )
    up.add_argument(
        "--timeout", type=float, default=120.0, help="seconds to wait for all Ready (default 120)"
    )
    up.add_argument(
        "--network", default="198.18.44.0/24", help="the machines' addresses (default 198.18.44.0/24)"
    )
    up.add_argument("--cluster-cidr", default="10.244.0.0/16", help="the pods' (default 10.244.0.0/16)")
    up.add_argument("--service-cidr", default="10.96.0.0/12", help="the Services' (default 10.96.0.0/12)")
    up.add_argument("--node-cidr-mask-size", type=int, help="each node's part of --cluster-cidr (default 24)")
    up.add_argument("--cluster-domain", help="domain of the cluster's names (default cluster.local)")
    up.add_argument("--load-balancer-addresses", help=LOAD_BALANCERS)
    up.add_argument(
        "--proxy-mode",
        choices=("iptables", "nftables", "auto"),
        help="how Services get into the kernel (default iptables; auto: nftables where it can be)",
    )
    up.add_argument(
        "--pod-routes",
        choices=peers.MODES,
        help="how to reach pods of other nodes (default auto, which is direct: all are on one switch)",
    )
    up.add_argument("--wireguard-port", type=peers.port, help=WIREGUARD)
    up.add_argument("--kubelet-config", help="a KubeletConfiguration file for every node")
    _to(up, "up")


def _others(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    down = verbs.add_parser(
        "down",
        help="take the lab away",
        description="End everything in the lab and remove it, disks included: the host is as before. Also "
        "after the lab's processes were killed.",
    )
    _to(down, "down")
    status = verbs.add_parser(
        "status",
        help="show machines, cables and nodes",
        description="Show the lab's machines: power, cable, Ready as the API server says, pods, memory (PSS "
        "of the machine's own processes). The exit code is 0 when all are on and Ready.",
    )
    status.add_argument("--output", "-o", choices=("text", "json"), default="text", help="form of the answer")
    _to(status, "status")
    _node(verbs)
    logs = verbs.add_parser(
        "logs",
        help="show what a machine's processes say",
        description="Show the ends of a machine's logs.",
    )
    logs.add_argument("name", metavar="NAME", help="control, node1, node2 …")
    logs.add_argument(
        "process", nargs="?", help="agent, proxy, controlplane, supervisor, boot (default: all)"
    )
    logs.add_argument("--follow", "-f", action="store_true", help="go on as they grow")
    logs.add_argument("--lines", "-n", type=int, default=20, help="how many of each (default 20)")
    _to(logs, "status")
    execute = verbs.add_parser(
        "exec",
        help="run a command in a machine",
        description="Run a command in a machine, as over ssh: terminal, signals and exit code are the "
        "command's own. The switch is a machine, too (its bridge, and the rules of loss and partition).",
        epilog="Examples: kubelet-py lab exec node1 -- kubelet-py status; kubelet-py lab exec node2 -- sh; "
        "kubelet-py lab exec switch -- nft list ruleset",
    )
    execute.add_argument("name", metavar="NAME", help="control, node1, node2 …, switch")
    execute.add_argument("command_line", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")
    _to(execute, "going")
    for verb, (short, text) in OTHER_COMMANDS.items():
        other = verbs.add_parser(verb, help=short, description=text, add_help=False, prefix_chars=NO_PREFIX)
        other.add_argument("command_line", nargs=argparse.REMAINDER, metavar="…", help="all that follows")
        _to(other, "going")
    kubeconfig = verbs.add_parser(
        "kubeconfig",
        help="print the path of the administrator's kubeconfig",
        description="Print the path of the lab's kubeconfig: export KUBECONFIG=$(kubelet-py lab kubeconfig).",
    )
    _to(kubeconfig, "going")


def _node(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    node = verbs.add_parser(
        "node",
        help="let something happen to a machine",
        description="Let something happen to a machine, the control plane's included.",
        epilog=NODE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    node.add_argument("name", metavar="NAME", help="control, node1, node2 …")
    node.add_argument("action", choices=ACTIONS, metavar="VERB", help=", ".join(ACTIONS))
    node.add_argument("value", nargs="?", metavar="HOW-MUCH", help="of delay and loss: 50ms, 5%%")
    node.add_argument("--from", dest="others", help="partition: from these only, with commas (also host)")
    node.add_argument("--grace", type=float, help="stop: seconds for the pods (default 60)")
    node.add_argument(
        "--wait", action="store_true", help="start: return when the node is Ready again, or control answers"
    )
    node.add_argument("--timeout", type=float, help="start --wait: for how long (default 60)")
    _to(node, "node")


def _to(parser: argparse.ArgumentParser, module: str) -> None:
    def run(args: argparse.Namespace) -> int:
        args.root, line = own_root(args.root, getattr(args, "command_line", []))
        if not parser.add_help and line[:1] in (["-h"], ["--help"]):
            print(help_of_other(parser))
            return 0
        args.command_line = line
        paths = LabPaths(args.root.resolve())
        try:
            return int(importlib.import_module(f"kubelet_py.cli.lab.{module}").run(args, paths))
        except (CniError, OSError, RuntimeFailure) as error:
            raise CommandError(f"{error} (take the lab away: {paths.command} down)") from error

    if parser.add_help:  # else all arguments are another command's
        parser.add_argument("--root", type=Path, default=argparse.SUPPRESS, help="folder of the lab")
    parser.set_defaults(handler=run)


def own_root(root: Path, line: Sequence[str]) -> tuple[Path, list[str]]:
    """The lab's folder and what is left of the command line: PURE. Raises CommandError."""
    first, *rest = line or [""]
    name, equals, value = first.partition("=")
    if name != "--root":
        return root, list(line)
    if not equals:
        value, rest = (rest[0], rest[1:]) if rest else ("", [])
    if not value:
        raise CommandError("--root: say which folder (kubelet-py lab --root DIR …)")
    return Path(value), rest


def help_of_other(parser: argparse.ArgumentParser) -> str:
    """argparse has no words for options that it does not know."""
    text = "\n".join(textwrap.wrap(str(parser.description), 78))
    return (
        f"usage: {parser.prog} [--root DIR] …\n\n{text}\n\noptions:\n"
        f"  --root DIR  folder of the lab (default {DEFAULT_ROOT}); before all others"
    )
