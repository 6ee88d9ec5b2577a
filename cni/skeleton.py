"""From environment and stdin to a plugin's method, and from a plugin's name to the plugin.

A CNI plugin is a program: CNI_* variables and a configuration on stdin go in, a result or an error
comes out as JSON on *stdout* (that is where libcni reads errors from, too), free text on stderr. The
same plugin classes also run inside the caller, without a process: `Plugins` decides which, by where the
name is found on CNI_PATH. Source: CNI SPEC 1.1.0, sections 2 and 4.
"""

from __future__ import annotations

import os
import sys

from cni.errors import BadEnvironment, CniError, DecodeFailure, IncompatibleVersion, InvalidConfig, IoFailure
from cni.jsontext import dumps, loads
from cni.types import (
    LATEST,
    SUPPORTED_VERSIONS,
    Request,
    Result,
    check_container_id,
    check_ifname,
    check_network_name,
    format_args,
    parse_args,
    require_version,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import IO, Any

    from cni.plugin import Plugin

OWN_PLUGINS = ("bridge", "ptp", "host-local", "loopback", "portmap", "bandwidth")
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")

_NEEDS_CONTAINER = ("ADD", "DEL", "CHECK")
_NEEDS_NETNS = ("ADD", "CHECK")
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


class Plugins:
    """Runs plugins by name: ours in this process, all others as executables.

    `own_bin_dir` is the folder of our wrapper scripts (`write_executables`): a name whose first hit along
    the search path lies there is run in-process; the effect is the same, the process is spared.
    `spare_addresses` is for a process that lives long (see address_store).
    """

    def __init__(
        self, own_bin_dir: Path | str | None, *, timeout: float = 60.0, spare_addresses: int = 0
    ) -> None:
        self._own = str(own_bin_dir) if own_bin_dir is not None else None
        self._timeout = timeout
        self._spare_addresses = spare_addresses
        self._loaded: dict[str, Plugin] = {}

    def find(self, kind: str, path: Sequence[str]) -> str:
        """The file that a plugin name stands for. Raises InvalidConfig, with the folders searched."""
        return f"{self._folder_of(kind, path)}/{kind}"

    def _folder_of(self, kind: str, path: Sequence[str]) -> str:
        # Asked several times for each plugin of each ADD: text, where pathlib would take a tenth of the time.
        if "/" in kind or kind in ("", ".", ".."):
            raise InvalidConfig(f"Could not accept the plugin name {kind!r}")
        for folder in path:
            candidate = f"{folder}/{kind}"
            if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
                return folder
        raise InvalidConfig(f"Could not find CNI plugin {kind!r} in {':'.join(path) or '(empty CNI_PATH)'}")

    def in_process(self, kind: str, path: Sequence[str]) -> bool:
        if kind not in OWN_PLUGINS or self._own is None:
            return False
        return self._folder_of(kind, path).rstrip("/") == self._own

    def own(self, kind: str) -> Plugin:
        """Our plugin of that name, made once."""
        if kind not in self._loaded:
            self._loaded[kind] = _load(kind, self, self._spare_addresses)
        return self._loaded[kind]

    def close(self) -> None:
        """Give back what was kept for later. Raises CniError, OSError."""
        if "host-local" in self._loaded:
            from cni.host_local import HostLocal

            plugin = self._loaded["host-local"]
            assert isinstance(plugin, HostLocal)
            plugin.close()

    def run(self, kind: str, request: Request) -> Result | None:
        """Run one command of one plugin; ADD answers a Result, the others None."""
        if self.in_process(kind, request.path):
            return dispatch(self.own(kind), request)
        output = self._execute(self.find(kind, request.path), request)
        return Result.from_json(_decode(output)) if request.command == "ADD" else None

    def versions(self, kind: str, path: Sequence[str]) -> tuple[str, ...]:
        """The CNI versions a plugin says it speaks."""
        if self.in_process(kind, path):
            return SUPPORTED_VERSIONS
        output = self._execute(
            self.find(kind, path), Request("VERSION", {"cniVersion": LATEST}, path=tuple(path))
        )
        return tuple(_decode(output).get("supportedVersions") or ())

    def _execute(self, program: str, request: Request) -> bytes:
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "CNI_COMMAND": request.command,
            "CNI_CONTAINERID": request.container_id,
            "CNI_NETNS": request.netns,
            "CNI_IFNAME": request.ifname,
            "CNI_ARGS": format_args(request.args),
            "CNI_PATH": ":".join(request.path),
        }
        config = request.config
        if request.previous is not None:
            config = {**config, "prevResult": request.previous.to_json(request.version)}
        import subprocess  # not above: most programs execute no other

        try:
            done = subprocess.run(
                [program],
                input=dumps(config).encode(),
                env={key: value for key, value in environment.items() if value},
                capture_output=True,
                timeout=self._timeout,
                check=False,
            )
        except OSError as error:
            raise IoFailure(f"Could not run CNI plugin {program}", str(error)) from error
        except subprocess.TimeoutExpired as error:
            text = f"Could not finish {request.command} of {program}: ETIMEDOUT"
            raise CniError(text, f"{self._timeout} s") from error
        if done.returncode == 0:
            return done.stdout
        try:
            body = _decode(done.stdout)
        except DecodeFailure:
            text = done.stderr.decode(errors="replace").strip()[-500:]
            raise CniError(f"CNI plugin {program} failed with status {done.returncode}", text) from None
        raise CniError.from_json(body)


def dispatch(plugin: Plugin, request: Request) -> Result | None:
    """Call the method that the request's command names."""
    if request.command == "ADD":
        return plugin.add(request)
    methods = {"DEL": plugin.delete, "CHECK": plugin.check, "GC": plugin.gc, "STATUS": plugin.status}
    methods[request.command](request)
    return None


def main(
    kind: str,
    own_bin_dir: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[str] | None = None,
) -> int:
    """Body of each plugin executable: one command, one JSON answer, exit status 0 or 1."""
    environ = os.environ if environ is None else environ
    out = sys.stdout if stdout is None else stdout
    if not environ.get("CNI_COMMAND"):
        # A person at a terminal; upstream's plugins answer so, too.
        print(f"CNI {kind} plugin of kubelet-py", file=sys.stderr)
        print(f"CNI protocol versions supported: {', '.join(SUPPORTED_VERSIONS)}", file=sys.stderr)
        return 0
    version = LATEST
    try:
        command = environ["CNI_COMMAND"]
        if command not in COMMANDS:
            raise BadEnvironment(f"Could not accept CNI_COMMAND {command!r}", f"one of {', '.join(COMMANDS)}")
        config = _decode((sys.stdin.buffer if stdin is None else stdin).read() or b"{}")
        given = str(config.get("cniVersion") or "")
        version = given if given in SUPPORTED_VERSIONS else LATEST
        if command == "VERSION":
            body: dict[str, Any] | None = {
                "cniVersion": version,
                "supportedVersions": list(SUPPORTED_VERSIONS),
            }
        else:
            request = read_request(command, environ, config)
            result = dispatch(Plugins(own_bin_dir).own(kind), request)
            body = result.to_json(request.version) if result is not None else None
    except CniError as error:
        print(dumps(error.to_json(version)), file=out)
        return 1
    except OSError as error:
        print(dumps(IoFailure(f"Could not finish: {error}").to_json(version)), file=out)
        return 1
    if body is not None:
        print(dumps(body), file=out)
    return 0


def read_request(command: str, environ: Mapping[str, str], config: Mapping[str, Any]) -> Request:
    """Check the environment and the configuration of one call, as SPEC section 2 lists them."""
    version = require_version(config)
    since = _SINCE.get(command)
    if since and SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(since):
        raise IncompatibleVersion(f"Could not run {command} for CNI {version}", f"it exists since {since}")
    check_network_name(str(config.get("name") or ""))
    container_id, ifname, netns = (environ.get(f"CNI_{k}", "") for k in ("CONTAINERID", "IFNAME", "NETNS"))
    if command in _NEEDS_CONTAINER:
        for name, value in (("CNI_CONTAINERID", container_id), ("CNI_IFNAME", ifname)):
            if not value:
                raise BadEnvironment(f"Could not run {command}: {name} is missing")
        check_container_id(container_id)
        check_ifname(ifname)
    if command in _NEEDS_NETNS and not netns:
        raise BadEnvironment(f"Could not run {command}: CNI_NETNS is missing")
    return Request(
        command=command,
        config=config,
        container_id=container_id,
        netns=netns,
        ifname=ifname,
        args=parse_args(environ.get("CNI_ARGS", "")),
        path=tuple(filter(None, environ.get("CNI_PATH", "").split(":"))),
    )


def write_executables(folder: Path, python: str) -> None:
    """Put one small program per plugin into `folder`, run by the interpreter `python`.

    The programs need only the standard library and this package, so they start isolated (-I) and without
    site (-S): half the start-up time, and nothing in the caller's environment can change what is imported.
    """
    import shlex
    from pathlib import Path

    folder.mkdir(parents=True, exist_ok=True)
    source = str(Path(__file__).resolve().parent.parent)
    for kind in OWN_PLUGINS:
        code = (
            f"import sys; sys.path.insert(0, {source!r}); from cni.knock import main; "
            f"sys.exit(main({kind!r}, {str(folder)!r}))"
        )
        text = f"#!/bin/sh\nexec {shlex.quote(python)} -I -S -c {shlex.quote(code)}\n"
        target = folder / kind
        if target.exists() and target.read_text() == text:
            continue
        fresh = folder / f".{kind}.new"
        fresh.write_text(text)
        fresh.chmod(0o755)
        fresh.replace(target)


def _load(kind: str, plugins: Plugins, spare_addresses: int) -> Plugin:
    # Imported one by one: an executable should not read the modules of the others.
    if kind == "bridge":
        from cni.bridge import Bridge

        return Bridge(plugins.run)
    if kind == "ptp":
        from cni.ptp import Ptp

        return Ptp(plugins.run)
    if kind == "bandwidth":
        from cni.bandwidth import Bandwidth

        return Bandwidth()
    if kind == "host-local":
        from cni.host_local import HostLocal

        return HostLocal(spares=spare_addresses)
    if kind == "loopback":
        from cni.loopback import Loopback

        return Loopback()
    from cni.portmap import Portmap

    return Portmap()


def _decode(text: bytes) -> dict[str, Any]:
    try:
        body = loads(text)
    except ValueError as error:
        raise DecodeFailure("Could not read JSON", str(error)) from error
    if not isinstance(body, dict):
        raise DecodeFailure("Could not read JSON: it is not an object")
    return body
