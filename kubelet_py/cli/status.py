"""`kubelet-py status` and `kubelet-py kubeconfig`: what runs here, and how to reach it."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kubelet_py.cli import login, unit
from kubelet_py.cli import settings as node_settings
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.processes import ProcessIdentity
from kubelet_py.cli.readiness import PROCESSES, condition, expected
from kubelet_py.cli.supervisor import read_state
from kubelet_py.cli.systemd import Systemd
from kubelet_py.node import announcement
from kubelet_py.paths import NodePaths


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = subparsers.add_parser(
        "status",
        help="show the node's processes, conditions and pods",
        description="Show what runs. The exit code is 0 when all processes run and the node is Ready.",
    )
    status.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    status.add_argument("--pid", choices=PROCESSES, help="print only the pid of this process")
    status.add_argument("--output", "-o", choices=("text", "json"), default="text", help="form of the answer")
    status.set_defaults(handler=run_status)
    kubeconfig = subparsers.add_parser(
        "kubeconfig",
        help="print the path of the admin kubeconfig",
        description="Print the path of the administrator's kubeconfig, for "
        "`export KUBECONFIG=$(kubelet-py kubeconfig)`.",
    )
    kubeconfig.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    kubeconfig.set_defaults(handler=run_kubeconfig)


def run_kubeconfig(args: argparse.Namespace) -> int:
    paths = NodePaths(args.root.resolve())
    path = paths.kubeconfig("admin")
    if not path.exists():
        settings = node_settings.load(paths)
        if settings is not None and settings.server:
            raise CommandError(
                f"this machine is a node of {settings.server}: the administrator's kubeconfig is there"
            )
        raise CommandError(f"there is no {path} yet (start the node: kubelet-py up --detach)")
    print(path)
    return 0


def run_status(args: argparse.Namespace) -> int:
    paths = NodePaths(args.root.resolve())
    processes = _processes(paths)
    if args.pid:
        if args.pid not in processes:
            raise CommandError(f"no {args.pid} runs here (start the node: kubelet-py up --detach)")
        print(processes[args.pid]["pid"])
        return 0
    report = {"root": str(paths.root), "unit": _unit(paths), "processes": processes, **_cluster(paths)}
    announced = announcement.read(paths)
    report["running"] = _running_pods(paths)
    settings = node_settings.load(paths)
    if settings is not None and settings.pod_routes == "wireguard":
        from kubelet_py.cli.inspect_node import tunnel_line

        report["encryption"] = tunnel_line()
    report["announced"] = asdict(announced) if announced is not None else None
    if args.output == "json":
        print(json.dumps(report, indent=2))
    else:
        _print(report, expected(settings))
    return 0 if set(expected(settings)) <= set(processes) and report["ready"] else 1


def _unit(paths: NodePaths) -> dict[str, str] | None:
    """The systemd unit that runs the node; None where `install` did not write one."""
    systemd, name = Systemd(), unit.name(paths)
    if not systemd.installed(name):
        return None
    enabled, active = systemd.state(name)
    return {"name": name, "enabled": enabled, "active": active}


def _processes(paths: NodePaths) -> dict[str, dict[str, Any]]:
    """Name → pid, seconds it has lived, PSS in bytes, restarts; only what is alive now."""
    state = read_state(paths.run)
    if state is None:
        return {}
    identities: dict[str, ProcessIdentity] = {"supervisor": state.supervisor, **state.children}
    seen = {name: _process(identity, state.restarts.get(name, 0)) for name, identity in identities.items()}
    return {name: process for name, process in seen.items() if process is not None}


def _process(identity: ProcessIdentity, restarts: int) -> dict[str, Any] | None:
    """None when it has ended, also when that happens while it is looked at."""
    import psutil

    try:
        process = psutil.Process(identity.pid)
        seen = {
            "pid": identity.pid,
            "seconds": round(time.time() - process.create_time(), 1),
            "pss": process.memory_full_info().pss,
            "restarts": restarts,
        }
    except psutil.NoSuchProcess:
        return None
    return seen if identity.alive() else None


def _cluster(paths: NodePaths) -> dict[str, Any]:
    """What the API server says of this node; with `error` where it does not answer."""
    from kubeclient import kubeconfig
    from kubeclient.errors import ApiError, ConfigError
    from kubeclient.resources import NODES, PODS
    from kubeclient.rest import RestClient

    settings = node_settings.load(paths)
    answer: dict[str, Any] = {"ready": False, "server": "", "conditions": {}, "pods": {}}
    if settings is None:
        return answer | {"error": "this node was never started (kubelet-py up --detach)"}
    answer |= {"node": settings.node_name, "address": settings.node_ip}
    own = login.own_kubeconfig(paths)
    if not own.exists():
        log = paths.logs / ("agent.log" if settings.server else "supervisor.log")
        return answer | {"error": f"this node has no certificate yet (look into {log})"}
    try:
        client_config = kubeconfig.load(own)
        client = RestClient(client_config, user_agent="kubelet-py-status", timeout=5.0)
        node = client.get(NODES, settings.node_name)
        pods = client.list(PODS, field_selector=f"spec.nodeName={settings.node_name}")["items"]
    except (ApiError, ConfigError, OSError) as error:
        return answer | {"error": str(error)}
    phases: dict[str, int] = {}
    for pod in pods:
        phase = pod.get("status", {}).get("phase", "Unknown")
        phases[phase] = phases.get(phase, 0) + 1
    return answer | {
        "server": client_config.server,
        "ready": condition(node, "Ready") == "True",
        "conditions": {
            c["type"]: {"status": c["status"], "message": c.get("message", "")}
            for c in node["status"].get("conditions", [])
        },
        "pods": phases,
    }


def _running_pods(paths: NodePaths) -> list[str]:
    """namespace/name of the pods that run on this machine, as its own files and processes say.

    The API server tells what it last heard; where it is not reached, this is the node's own knowledge.
    """
    from runtime.recovery import folders, record_of, sandbox_state

    found = []
    for folder in folders(paths.sandboxes):
        record = record_of(f"{folder}/sandbox.json")
        if record is None:
            continue  # it is being made, or goes just now
        pause = sandbox_state(folder).pause
        if pause is not None and pause.alive():
            found.append(f"{record['config']['namespace']}/{record['config']['name']}")
    return sorted(found)


def _print(report: dict[str, Any], expected: tuple[str, ...]) -> None:
    processes = report["processes"]
    if report["unit"]:
        print(f"{'unit':<13} {', '.join(report['unit'].values())}")
    for name in expected:
        process = processes.get(name)
        if process is None:
            print(f"{name:<13} not running")
            continue
        restarts = f", {process['restarts']} restarts" if process["restarts"] else ""
        age = f"{process['seconds']:.0f} s"
        print(f"{name:<13} pid {process['pid']}, up {age}, {process['pss'] / 1e6:.0f} MB{restarts}")
    if "node" in report:
        ready = "Ready" if report["ready"] else "NotReady"
        print(f"{'node':<13} {report['node']} ({report['address']}), {ready}")
    if report["announced"]:
        said = report["announced"]
        print(f"{'address':<13} {said['address']} on {said['interface']}: {said['reason']}")
        if said["refused"]:
            print(f"{'':<13} refused: {said['refused']}")
    if "encryption" in report:
        print(f"{'encryption':<13} {report['encryption']}")
    for kind, state in report["conditions"].items():
        print(f"  {kind:<21} {state['status']:<6} {state['message']}")
    if report["pods"]:
        counts = [f"{count} {phase}" for phase, count in sorted(report["pods"].items())]
        print(f"{'pods':<13} {', '.join(counts)}")
    if "error" in report:
        print(f"{'API server':<13} {report['error']}")
        here = report["running"]
        print(f"{'running here':<13} {', '.join(here) or 'no pod'}")
