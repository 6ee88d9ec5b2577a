"""`kubelet-py inspect`: from a pod or Service to what the kernel holds for it, and from a pid to its pod.

Nothing is taken from our own records where the kernel itself can be asked: processes come from the pod's
cgroup, namespaces from /proc, wiring from netlink inside the pod's network namespace, rules from
`iptables-save`. So this also shows what is wrong when a record and the kernel disagree. Environment
variables and Secret contents are never shown.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubelet_py.cli import login
from kubelet_py.cli import settings as node_settings
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.inspect_plan import inspect_plan
from kubelet_py.cli.inspect_start import inspect_start
from kubelet_py.paths import NodePaths

if TYPE_CHECKING:
    from kubeclient.rest import RestClient

CGROUP_MOUNT = Path("/sys/fs/cgroup")
LIMITS = (
    "cpu.max", "cpu.weight", "memory.max", "memory.high", "memory.current", "pids.max", "pids.current",
    "cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes", "memory.usage_in_bytes",
)  # fmt: skip


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="show what the kernel holds for a pod, a Service or a process",
        description="Show processes, namespaces, cgroup values, veth, addresses and routes of a pod, and "
        "how long each step of its start took; the plan by which its containers were started; the netfilter "
        "rules and counters of a Service; the way to another node's pods; or the pod that a process belongs "
        "to.",
        epilog="Examples: kubelet-py inspect pod hello-abc -n default; kubelet-py inspect service hello; "
        "kubelet-py inspect pid 4711",
    )
    parser.add_argument("kind", choices=("pod", "plan", "service", "node", "pid"), help="what to show")
    parser.add_argument("name", metavar="NAME", help="name of pod (plan: too), Service or node; a pid")
    parser.add_argument("--namespace", "-n", default="default", help="namespace (default: default)")
    parser.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    parser.add_argument("--output", "-o", choices=("text", "json"), default="text", help="form of the answer")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    paths = NodePaths(args.root.resolve())
    if args.kind == "pid":
        report = inspect_pid(paths, args.name)
    elif args.kind == "plan":
        report = inspect_plan(paths, _get(paths, "pods", args.name, args.namespace))
    elif args.kind == "node":
        from kubelet_py.cli.inspect_node import inspect_node

        report = inspect_node(_get(paths, "nodes", args.name, ""))
    elif args.kind == "pod":
        pod = _get(paths, "pods", args.name, args.namespace)
        report = inspect_pod(paths, pod) | {"start": inspect_start(_client(paths), pod)}
        warn_of_elsewhere(paths, pod)
    else:
        report = inspect_service(_get(paths, "services", args.name, args.namespace))
    if args.output == "json":
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(_text(report)))
    return 0


def warn_of_elsewhere(paths: NodePaths, pod: dict[str, Any]) -> None:
    settings, node = node_settings.load(paths), pod["spec"].get("nodeName")
    if settings is not None and node and node != settings.node_name:
        where = f"the pod is on node {node}, this is {settings.node_name}"
        print(f"kubelet-py inspect: {where}: type it there to see what the kernel holds", file=sys.stderr)


def _client(paths: NodePaths) -> RestClient:
    if node_settings.load(paths) is None:
        raise CommandError("this node was never started (kubelet-py up --detach)")
    return login.client(paths, "inspect")


def _get(paths: NodePaths, plural: str, name: str, namespace: str) -> dict[str, Any]:
    from kubeclient.errors import ApiError
    from kubeclient.resources import NODES, PODS, SERVICES

    resource = {"pods": PODS, "services": SERVICES, "nodes": NODES}[plural]
    try:
        return _client(paths).get(resource, name, namespace)
    except ApiError as error:
        raise CommandError(str(error)) from error


def inspect_pod(paths: NodePaths, pod: dict[str, Any]) -> dict[str, Any]:
    """Everything the kernel holds for one pod of this node, as nested plain values."""
    from kubelet_py.cli.inspect_nft import pod_policies

    metadata, status = pod["metadata"], pod.get("status", {})
    folders = pod_cgroups(paths, metadata["uid"])
    names = {
        s.get("containerID", "").rpartition("/")[2]: s["name"]
        for key in ("initContainerStatuses", "containerStatuses")
        for s in status.get(key, [])
    }
    processes = _processes(folders)
    report: dict[str, Any] = {
        "pod": f"{metadata['namespace']}/{metadata['name']}",
        "uid": metadata["uid"],
        "phase": status.get("phase", ""),
        "node": pod["spec"].get("nodeName", ""),
        "addresses": [entry["ip"] for entry in status.get("podIPs", [])],
        "cgroups": [str(folder) for folder in folders],
        "limits": limits(folders),
        "processes": [p | {"container": names.get(p.pop("folder"), "(pause)")} for p in processes],
    }
    if processes and not pod["spec"].get("hostNetwork"):
        report["network"] = wiring(processes[0]["pid"])
        policies = pod_policies(metadata["uid"])
        if policies:
            report["networkPolicies"] = policies
    return report


def pod_cgroups(paths: NodePaths, uid: str) -> list[Path]:
    """The pod's folder in each cgroup hierarchy that this host has (one on pure v2), by either driver."""
    from runtime.cgroups.names import PlainNames
    from runtime.systemd.names import SystemdNames

    levels: list[tuple[str, ...]] = [(), ("burstable",), ("besteffort",)]
    places = [
        names.group(paths.cgroup_root, "kubepods", *level, f"pod{uid}")
        for names in (PlainNames(), SystemdNames())
        for level in levels
    ]
    bases = [CGROUP_MOUNT, *sorted(p for p in CGROUP_MOUNT.iterdir() if p.is_dir())]
    return [base / place for base in bases for place in places if (base / place).is_dir()]


def limits(folders: list[Path]) -> dict[str, dict[str, str]]:
    """Container folder (or "." for the pod) → cgroup file → value."""
    values: dict[str, dict[str, str]] = {}
    for folder in folders:
        containers = [p for p in (*folder.glob("*/"), *folder.glob("*.scope/*/")) if p.suffix != ".scope"]
        for place in [folder, *sorted(containers)]:
            key = "." if place == folder else place.name[:12]
            for file in LIMITS:
                text = _read(place / file)
                if text:
                    values.setdefault(key, {})[file] = text.strip()
    return values


def _read(file: Path) -> str:
    """Nothing where there is none: one container and one exec of the pod may end while others are
    looked at."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _processes(folders: list[Path]) -> list[dict[str, Any]]:
    """Processes in the pod's cgroups, each with its namespaces; `folder` names the container's cgroup."""
    seen: dict[int, dict[str, Any]] = {}
    for folder in folders:
        for place in sorted(Path(parent) for parent, _, _ in os.walk(folder)):
            for pid in map(int, _read(place / "cgroup.procs").split()):
                seen.setdefault(pid, {"pid": pid, "folder": place.name, **_process(pid)})
    return [seen[pid] for pid in sorted(seen)]


def _process(pid: int) -> dict[str, Any]:
    folder = Path(f"/proc/{pid}")
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        spaces = {name: os.readlink(folder / "ns" / name) for name in sorted(os.listdir(folder / "ns"))}
    except (FileNotFoundError, ProcessLookupError):
        return {"command": "(ended)", "namespaces": {}}
    return {"command": command, "namespaces": spaces}


def wiring(pid: int) -> dict[str, Any]:
    """Links, addresses and routes inside the network namespace of `pid`, and the host's end of each veth."""
    import pyroute2

    inside: dict[str, Any] = {}

    def look() -> None:
        # A namespace is entered per thread: this one ends right after.
        pyroute2.netns.setns(f"/proc/{pid}/ns/net")
        with pyroute2.IPRoute() as netlink:
            inside.update(links=_links(netlink), routes=_routes(netlink))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    with pyroute2.IPRoute() as netlink:
        host = {link["index"]: link for link in netlink.get_links()}
    for link in inside.get("links", []):
        peer = host.get(link.pop("peer", None))
        if peer is not None and link["name"] != "lo":
            master = host.get(peer.get_attr("IFLA_MASTER"))
            link["host end"] = peer.get_attr("IFLA_IFNAME")
            link["bridge"] = master.get_attr("IFLA_IFNAME") if master else ""
    return inside


def _links(netlink: Any) -> list[dict[str, Any]]:
    addresses: dict[int, list[str]] = {}
    for entry in netlink.get_addr():
        addresses.setdefault(entry["index"], []).append(
            f"{entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}"
        )
    return [
        {
            "name": link.get_attr("IFLA_IFNAME"),
            "mac": link.get_attr("IFLA_ADDRESS"),
            "mtu": link.get_attr("IFLA_MTU"),
            "addresses": addresses.get(link["index"], []),
            "peer": link.get_attr("IFLA_LINK"),
        }
        for link in netlink.get_links()
    ]


def _routes(netlink: Any) -> list[str]:
    lines = []
    for route in netlink.get_routes(family=2, table=254):
        target = route.get_attr("RTA_DST")
        gateway = route.get_attr("RTA_GATEWAY")
        network = f"{target}/{route['dst_len']}" if target else "default"
        lines.append(f"{network} via {gateway}" if gateway else network)
    return lines


def inspect_service(service: dict[str, Any]) -> dict[str, Any]:
    """A Service's chains and rules with counters, or its elements (nftables), from the running kernel."""
    from kubelet_py.cli.inspect_nft import service_elements

    done = subprocess.run(["iptables-save", "-c"], capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandError(f"Could not read the rules: {done.stderr.strip()} (this needs root)")
    metadata = service["metadata"]
    elements = service_elements(service)
    return {
        "service": f"{metadata['namespace']}/{metadata['name']}",
        "clusterIP": service["spec"].get("clusterIP", ""),
        "ports": [
            f"{p.get('name', '')} {p['port']}/{p['protocol']} → {p.get('targetPort')}"
            + (f", node port {p['nodePort']}" if "nodePort" in p else "")
            for p in service["spec"].get("ports", [])
        ],
        "rules": service_rules(done.stdout, f"{metadata['namespace']}/{metadata['name']}"),
        **({"elements": elements} if elements else {}),
    }


def service_rules(saved: str, name: str) -> list[str]:
    """Rules of `iptables-save -c` that carry the Service's name, then those of the chains they reach."""
    rules = [line for line in saved.splitlines() if line.startswith("[")]
    pattern = re.compile(rf'--comment "?{re.escape(name)}(:[^ "]*)?[ "]')
    chosen = [line for line in rules if pattern.search(line + " ")]
    chains = {m.group(1) for line in chosen for m in re.finditer(r"-j (KUBE-(?:SVC|EXT|SEP)-\w+)", line)}
    while True:
        more = [r for r in rules if r not in chosen and r.split()[2] in chains]
        if not more:
            return chosen
        chosen += more
        chains |= {m.group(1) for line in more for m in re.finditer(r"-j (KUBE-(?:SVC|EXT|SEP)-\w+)", line)}


def pod_of(paths: NodePaths, cgroup: str) -> tuple[str, str]:
    """The pod's uid and the container's id ("" for none) in /proc/<pid>/cgroup, whichever driver made it."""
    root, unit = re.escape(paths.cgroup_root), re.escape(paths.cgroup_root.replace("-", "_"))
    for pattern in (
        rf"/{root}/kubepods/.*?pod([0-9a-f-]{{32,36}})(?:/([0-9a-f]+))?",
        rf"/{unit}\.slice/.*-pod([0-9a-f_]{{32,36}})\.slice(?:/[^/]+\.scope(?:/([0-9a-f]+))?)?",
    ):
        match = re.search(pattern, cgroup)
        if match is not None:
            return match[1].replace("_", "-"), match[2] or ""
    return "", ""


def inspect_pid(paths: NodePaths, text: str) -> dict[str, Any]:
    """The pod and container that a process of this host belongs to."""
    from kubeclient.errors import ApiError
    from kubeclient.resources import PODS

    if not text.isdigit() or not Path(f"/proc/{text}").exists():
        raise CommandError(f"there is no process {text}")
    cgroup = Path(f"/proc/{text}/cgroup").read_text()
    uid, container = pod_of(paths, cgroup)
    if not uid:
        raise CommandError(f"process {text} belongs to no pod of this node")
    try:
        pods = _client(paths).list(PODS)["items"]
    except ApiError as error:
        raise CommandError(str(error)) from error
    pod = next((p for p in pods if p["metadata"]["uid"] == uid), None)
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" if pod else "(no longer in the API)"
    return {
        "pid": int(text),
        "pod": name,
        "uid": uid,
        "container": container or "(pause)",
        **_process(int(text)),
    }


def _text(value: Any, indent: int = 0) -> list[str]:
    """Nested values as indented lines."""
    pad = "  " * indent
    if isinstance(value, dict):
        lines = []
        for key, item in value.items():
            if isinstance(item, dict | list) and item:
                lines += [f"{pad}{key}:", *_text(item, indent + 1)]
            else:
                lines.append(f"{pad}{key}: {item if item or item == 0 else '-'}")
        return lines
    if isinstance(value, list):
        lines = []
        for item in value:
            piece = _text(item, indent + 1)
            lines += [f"{pad}- {piece[0].strip()}", *piece[1:]]
        return lines
    return [f"{pad}{value}"]
