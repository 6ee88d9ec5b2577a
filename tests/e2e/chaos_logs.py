"""What the containers wrote, compared with what the node says of them: logs, exit codes, restart counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos_monkey import Deeds, read
from chaos_pods import Object
from chaos_truth import is_over, statuses

from kubelet_py.paths import NodePaths

LOST = "ContainerStatusUnknown"


@dataclass(frozen=True)
class Attempt:
    """What one attempt wrote into its file on the host."""

    uid: str
    container: str
    numbers: int  # so many were printed, at least
    end: int | None  # the exit code that it was about to end with


def attempts(truth: Path) -> dict[str, Attempt]:
    """Name of the attempt → what it says of itself; one that was killed before its first word is left out."""
    found = {}
    for file in truth.iterdir():
        lines = file.read_text().splitlines()
        if not lines or len(lines[0].split()) != 3:
            continue
        _, uid, container = lines[0].split()
        ends = [int(line.split()[1]) for line in lines if line.startswith("end ")]
        numbers = sum(line.isdigit() for line in lines)
        found[file.name] = Attempt(uid, container, numbers, ends[0] if ends else None)
    return found


def wrong_logs(paths: NodePaths, pods: list[Object], known: dict[str, Attempt], deeds: Deeds) -> list[str]:
    """Lines that are lost, doubled or out of order.

    Only the SIGKILL of a shim may cost something: what was still in the pipe to it, so the end of the log.
    """
    wrong = []
    seen: dict[str, Path] = {}
    for pod in pods:
        for file in sorted(pod_logs(paths, pod).glob("*/*.log")):
            # Which of a pod's attempts went with a shim that died while it was just starting is not known.
            lost = str(file) in deeds.lost or bool(deeds.shims[pod["metadata"]["uid"]])
            for text in _wrong_log(file, known, seen, lost):
                wrong.append(f"{pod['metadata']['name']} {file.parent.name}/{file.name}: {text}")
    return wrong


def _wrong_log(file: Path, known: dict[str, Attempt], seen: dict[str, Path], lost: bool) -> Iterator[str]:
    raw = text_of(file)
    if raw and not raw.endswith("\n") and not lost:
        yield "ends in the middle of a line"
    lines = [line.split(" ", 3) for line in raw.splitlines()]
    if lost and lines and not raw.endswith("\n"):
        lines.pop()
    if not lines:
        return
    if any(len(parts) != 4 or parts[2] != "F" for parts in lines):
        yield f"not all lines are whole: {[p for p in lines if len(p) != 4 or p[2] != 'F'][:3]}"
        return
    first, *rest = [parts[3] for parts in lines]
    if not first.startswith("start "):
        yield f"begins with {first!r}"
        return
    name = first.split()[1]
    if name in seen:
        yield f"is the same attempt as {seen[name]}"
    seen[name] = file
    end = rest.pop() if rest and rest[-1].startswith("end ") else None
    if rest != [str(number) for number in range(len(rest))]:
        where = next(n for n, text in enumerate(rest) if text != str(n))
        yield f"line {where} is {rest[where]!r}, after {rest[max(0, where - 2) : where]}"
    attempt = known.get(name)
    if attempt is not None and not lost:
        if len(rest) < attempt.numbers:
            yield f"has {len(rest)} numbers of {attempt.numbers}"
        if attempt.end is not None and end != f"end {attempt.end}":
            yield f"lacks its end {attempt.end}"


def pod_logs(paths: NodePaths, pod: Object) -> Path:
    metadata = pod["metadata"]
    return paths.pod_logs / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"


def text_of(log: Path) -> str:
    """Nothing where the agent has just removed it: of a pod's dead containers it keeps the last."""
    try:
        return log.read_text()
    except FileNotFoundError:
        return ""


def log_paths(paths: NodePaths) -> dict[str, str]:
    """Container id → its log, of all that are on disk."""
    records = {folder.name: read(folder / "config.json") for folder in paths.containers.glob("[!.]*")}
    return {name: record["config"]["log_path"] for name, record in records.items() if record is not None}


def wrong_codes(
    logs: dict[str, str], pods: list[Object], known: dict[str, Attempt], deeds: Deeds
) -> list[str]:
    """Exit codes in the API that are not what the container ended with, and ends that nobody can explain.

    `logs` are of the containers that were on disk before and after `pods` were read.
    """
    wrong = []
    for pod in pods:
        for entry in statuses(pod):
            for key in ("state", "lastState"):
                ended = entry[key].get("terminated")
                if ended is None:
                    continue
                path = logs.get(ended.get("containerID", "").partition("://")[2], "")
                said = _own_end(Path(path), known) if path else None
                shim_killed = path in deeds.lost or bool(deeds.shims[pod["metadata"]["uid"]])
                reason = _wrong_code(ended, said, path in deeds.killed, shim_killed)
                if reason:
                    what = f"{pod['metadata']['name']}/{entry['name']} {key}"
                    wrong.append(f"{what}: {reason}: {ended}")
    return wrong


def _own_end(log: Path, known: dict[str, Attempt]) -> int | None:
    first = text_of(log).partition("\n")[0].split(" ", 3)[3:]
    attempt = known.get(first[0].split()[1]) if first and first[0].startswith("start ") else None
    return attempt.end if attempt is not None else None


def _wrong_code(ended: Object, said: int | None, killed: bool, shim_killed: bool) -> str:
    code, reason = ended["exitCode"], ended["reason"]
    if said is not None and code == said and reason == ("Completed" if code == 0 else "Error"):
        return ""
    if killed and code == 137 and reason == "Error":
        return ""
    if shim_killed and code == 137 and reason in (LOST, "Error"):
        return ""
    return f"ended by itself with {said}, killed: {killed}, its shim killed: {shim_killed}"


def wrong_counts(
    paths: NodePaths,
    pods: list[Object],
    before: dict[str, Attempt],
    after: dict[str, Attempt],
    deeds: Deeds,
) -> list[str]:
    """Restarts that nobody caused, and kills that no restart followed.

    An attempt ends by its own exit, by a kill, or with its shim. One that is neither running nor ended so was
    lost. An attempt that never came to its first word (its shim or its agent was killed meanwhile) counts
    as a restart without being known here, so there may be more restarts than known attempts, not fewer.
    `before` and `after` were read on either side of `pods`, which go on living.
    """
    wrong = []
    started = Counter((attempt.uid, attempt.container) for attempt in before.values())
    exits = Counter((a.uid, a.container) for a in after.values() if a.end is not None)
    for pod in pods:
        uid, folder = pod["metadata"]["uid"], str(pod_logs(paths, pod))
        for entry in statuses(pod):
            what = f"{pod['metadata']['name']}/{entry['name']}"
            count, own = entry["restartCount"], (uid, entry["name"])
            prefix = f"{folder}/{entry['name']}/"
            kills = [path for path in deeds.killed if path.startswith(prefix)]
            highest = max((int(Path(path).stem) for path in kills), default=-1)
            if highest > count or (highest == count and "running" in entry["state"]):
                wrong.append(f"{what}: attempt {highest} was killed, but the restart count is {count}")
            if started[own] > count + 1:
                wrong.append(f"{what}: {started[own]} attempts, but the restart count is {count}")
            still = 1 if "running" in entry["state"] else 0
            explained = exits[own] + len(kills) + deeds.shims[uid] + still
            if started[own] > explained:
                causes = (
                    f"{exits[own]} exits, {len(kills)} kills, {deeds.shims[uid]} shims lost, {still} running"
                )
                wrong.append(f"{what}: {started[own]} attempts started, explained by {causes}")
            most = exits[own] + len(kills) + deeds.shims[uid] + deeds.counts["agent killed"]
            if count > most:
                wrong.append(f"{what}: {count} restarts, but at most {most} reasons for one")
    return wrong


def wrong_phases(pods: list[Object]) -> list[str]:
    """A pod that is over says so by its containers' codes."""
    wrong = []
    for pod in pods:
        codes = [e["state"]["terminated"]["exitCode"] for e in statuses(pod) if "terminated" in e["state"]]
        if is_over(pod) and pod["status"]["phase"] != ("Failed" if any(codes) else "Succeeded"):
            wrong.append(f"{pod['metadata']['name']} is {pod['status']['phase']} with exit codes {codes}")
    return wrong
