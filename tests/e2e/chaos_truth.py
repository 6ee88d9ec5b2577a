"""Three witnesses of what runs on a node (API, kernel, disk), and every point on which they disagree.

`disagreements` is asked again and again until it is empty: each line that stays is something lost (the API
has it, the kernel has not) or something left (the kernel or the disk has what the API does not know).
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from chaos_monkey import identity, read
from chaos_pods import WEB, Object
from e2e_node import Node

from kubeclient.resources import ENDPOINT_SLICES, PODS
from kubeclient.rest import RestClient
from kubelet_py.paths import NodePaths

CGROUPS = Path("/sys/fs/cgroup")
STATUSES = ("initContainerStatuses", "containerStatuses")


class Moved(Exception):
    """What was looked at has gone meanwhile."""


def disagreements(node: Node, client: RestClient) -> list[str]:
    """[] when API, kernel and disk say the same, at one moment: the pods did not change meanwhile."""
    pods = client.list(PODS)["items"]
    try:
        lines = sorted(_all(node, client, {pod["metadata"]["uid"]: pod for pod in pods}))
    except (Moved, FileNotFoundError) as error:
        return [f"something went while it was looked at: {error}"]
    if client.list(PODS)["items"] != pods:
        return [*lines, "the pods changed while they were looked at"]
    return lines


def _all(node: Node, client: RestClient, pods: dict[str, Object]) -> Iterator[str]:
    paths = NodePaths(node.root)
    sandboxes = {folder.name: read(folder / "sandbox.json") or {} for folder in listed(paths.sandboxes)}
    live = {name: record for name, record in sandboxes.items() if _lives(paths.sandboxes / name)}
    yield from _settled(pods)
    yield from _sandboxes(pods, sandboxes, live)
    yield from _containers(paths, pods, sandboxes)
    yield from _cgroups(paths, pods, live)
    yield from _addresses(paths, pods, live)
    yield from _links(paths, live)
    yield from _host_ports(pods)
    yield from _folders(node, paths, pods)
    yield from _endpoints(client, pods)


def listed(folder: Path) -> list[Path]:
    """Live folders; what is given up but not cleared away yet has a name with a dot in front."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def is_over(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def statuses(pod: Object) -> list[Object]:
    return [entry for key in STATUSES for entry in pod["status"].get(key) or ()]


def _settled(pods: dict[str, Object]) -> Iterator[str]:
    for pod in pods.values():
        name = pod["metadata"]["name"]
        if pod["metadata"].get("deletionTimestamp"):
            yield f"{name} is still being deleted"
        if not pod["spec"].get("nodeName"):
            yield f"{name} has no node"
        for entry in statuses(pod):
            waiting = entry["state"].get("waiting")
            if waiting and waiting["reason"] != "CrashLoopBackOff":
                yield f"{name}/{entry['name']} waits: {waiting}"


def _lives(folder: Path) -> bool:
    """Shim and pause both run."""
    state = read(folder / "state.json") or {}
    return all(state.get(who) and identity(state[who]).alive() for who in ("shim", "pause"))


def _sandboxes(
    pods: dict[str, Object], sandboxes: dict[str, Object], live: dict[str, Object]
) -> Iterator[str]:
    for name, record in sandboxes.items():
        if record.get("config", {}).get("uid") not in pods:
            yield f"sandbox {name[:12]} on disk is of no pod: {record.get('config', {}).get('name')}"
    per_pod = Counter(record["config"]["uid"] for record in live.values())
    for uid, pod in pods.items():
        expected = 0 if is_over(pod) else 1
        if per_pod[uid] != expected:
            yield f"{pod['metadata']['name']} ({pod['status']['phase']}) has {per_pod[uid]} live sandboxes"


def _containers(paths: NodePaths, pods: dict[str, Object], sandboxes: dict[str, Object]) -> Iterator[str]:
    running = {}
    for folder in listed(paths.containers):
        record, state = read(folder / "config.json") or {}, read(folder / "state.json") or {}
        if record.get("sandbox") not in sandboxes:
            yield f"container {folder.name[:12]} on disk is of no sandbox"
        if state.get("state") == "RUNNING":
            running[folder.name] = identity(state["process"])
    claimed = set()
    for pod in pods.values():
        for entry in statuses(pod):
            identifier = entry.get("containerID", "").partition("://")[2]
            what = f"{pod['metadata']['name']}/{entry['name']}"
            if "running" in entry["state"]:
                claimed.add(identifier)
                if identifier not in running or not running[identifier].alive():
                    yield f"{what} runs in the API, but not in the kernel"
                elif not _in_cgroup(running[identifier].pid, identifier):
                    yield f"{what} runs outside its cgroup"
    for identifier in running.keys() - claimed:
        yield f"container {identifier[:12]} runs, but the API says nothing of it"
    for removing in [*paths.containers.glob(".*"), *paths.sandboxes.glob(".*")]:
        yield f"not cleared away yet: {removing.name[:30]}"


def _in_cgroup(pid: int, identifier: str) -> bool:
    try:
        return identifier in Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _cgroups(paths: NodePaths, pods: dict[str, Object], live: dict[str, Object]) -> Iterator[str]:
    """Every pod's cgroup belongs to a pod; every process in one to a container or a live sandbox."""
    known = {name for name, body in live.items()}
    known |= {e.get("containerID", "").partition("://")[2] for p in pods.values() for e in statuses(p)}
    for tree in [CGROUPS, *CGROUPS.iterdir()]:
        for pod in (tree / paths.cgroup_root).glob("kubepods/**/pod*"):
            if pod.name.removeprefix("pod") not in pods:
                yield f"cgroup {pod} is of no pod"
            for group in (path for path in pod.iterdir() if path.is_dir()):
                if group.name not in known and members(group):
                    yield f"processes in {group}, which is nobody's"


def members(group: Path) -> str:
    """Numbers of the processes in a cgroup; none in one that went, even between open and read (ENODEV)."""
    try:
        return (group / "cgroup.procs").read_text()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return ""
        raise


def leases(paths: NodePaths) -> dict[str, str]:
    """Address → the sandbox that it is kept for, by host-local's files; without what is set aside ("-…")."""
    found: dict[str, str] = {}
    for file in (paths.cni_state / "networks").glob("*/*.*.*.*"):
        with contextlib.suppress(FileNotFoundError):  # the agent sets others aside meanwhile
            owner = file.read_text().partition("\n")[0]
            if file.name[0].isdigit() and owner and not owner.startswith("-"):
                found[file.name] = owner
    return found


def _addresses(paths: NodePaths, pods: dict[str, Object], live: dict[str, Object]) -> Iterator[str]:
    kept_for = leases(paths)
    for address, sandbox in kept_for.items():
        if sandbox not in live:
            yield f"address {address} is kept for {sandbox[:12]}, which does not live"
    told = Counter(p["status"]["podIP"] for p in pods.values() if not is_over(p) and p["status"].get("podIP"))
    yield from (f"{count} pods have address {address}" for address, count in told.items() if count > 1)
    for sandbox, record in live.items():
        pod = pods.get(record["config"]["uid"])
        if pod is None:
            continue
        inside_of = f"--net=/proc/{_pause(paths.sandboxes / sandbox)}/ns/net"
        shown = json.loads(run("nsenter", inside_of, "ip", "-json", "-4", "addr", "show", "dev", "eth0"))
        inside = [info["local"] for link in shown for info in link["addr_info"]]
        kept = [address for address, owner in kept_for.items() if owner == sandbox]
        if not inside == kept == [pod["status"].get("podIP")]:
            yield (
                f"{pod['metadata']['name']}: address {pod['status'].get('podIP')} in the API, {inside} in "
                f"the kernel, {kept} on disk"
            )


def _pause(folder: Path) -> int:
    state = read(folder / "state.json")
    if not state or not state["pause"]:
        raise Moved(f"sandbox {folder.name}")
    return int(state["pause"]["pid"])


def _links(paths: NodePaths, live: dict[str, Object]) -> Iterator[str]:
    shown = json.loads(run("ip", "-json", "-details", "link", "show", "master", paths.bridge) or "[]")
    if len(shown) != len(live):
        yield f"{len(shown)} links on the bridge, but {len(live)} live sandboxes"


def _host_ports(pods: dict[str, Object]) -> Iterator[str]:
    wanted = {}
    for pod in pods.values():
        for container in pod["spec"]["containers"]:
            for port in container.get("ports") or ():
                if port.get("hostPort") and not is_over(pod):
                    wanted[str(port["hostPort"])] = f"{pod['status'].get('podIP')}:{port['containerPort']}"
    rules = run("iptables-save", "-t", "nat").splitlines()
    present = {}
    for rule in rules:
        found = re.match(r"-A CNI-DN-\S+ .*--dport (\d+) .*-j DNAT --to-destination (\S+)", rule)
        if found:
            present[found[1]] = found[2]
    if present != wanted:
        yield f"host ports {present} in the kernel, {wanted} in the API"
    chains = [rule for rule in rules if rule.startswith(":CNI-DN-")]
    if len(chains) != len(wanted):
        yield f"{len(chains)} chains of host ports for {len(wanted)} ports"


def _folders(node: Node, paths: NodePaths, pods: dict[str, Object]) -> Iterator[str]:
    for folder in listed(paths.pods):
        if folder.name not in pods:
            yield f"volumes of no pod: {folder.name}"
    for folder in listed(paths.pod_logs):
        if folder.name.rpartition("_")[2] not in pods:
            yield f"logs of no pod: {folder.name}"
    for link in listed(paths.container_logs):
        if not link.exists():
            yield f"link to a log that is gone: {link.name}"
    over = {uid for uid, pod in pods.items() if is_over(pod)}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = Path(line.split()[4])
        if place.is_relative_to(paths.pods):
            uid = place.relative_to(paths.pods).parts[0]
            if uid not in pods or uid in over:
                yield f"mount of no living pod: {place}"
        elif place.is_relative_to(node.root):
            yield f"a mount of nobody: {place}"


def _endpoints(client: RestClient, pods: dict[str, Object]) -> Iterator[str]:
    ready = {
        pod["status"]["podIP"]
        for pod in pods.values()
        if WEB.items() <= (pod["metadata"].get("labels") or {}).items()
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or ())
    }
    slices = client.list(ENDPOINT_SLICES, "default", label_selector="kubernetes.io/service-name=chaos-web")
    told = {
        endpoint["addresses"][0]
        for item in slices["items"]
        for endpoint in item["endpoints"] or ()
        if endpoint["conditions"]["ready"]
    }
    if told != ready:
        yield f"endpoints {sorted(told)}, but ready pods {sorted(ready)}"
    rules = run("iptables-save", "-t", "nat").splitlines()
    programmed = set()
    for rule in rules:
        if "default/chaos-web" in rule and rule.startswith("-A KUBE-SEP"):
            programmed |= set(re.findall(r"--to-destination (\S+):8080", rule))
    if programmed != ready:
        yield f"rules lead to {sorted(programmed)}, but ready pods are {sorted(ready)}"


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise Moved(f"{' '.join(argv)}: {done.stderr}")
    return done.stdout
