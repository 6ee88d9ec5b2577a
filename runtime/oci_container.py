"""create, start, kill, delete, exec: the runtime specification's operations, each as one function.

There is no daemon. `create` leaves the container's first process waiting in its FIFO; whoever calls us is its
parent or init becomes that, so nobody here collects exit codes except `run` and a waiting `exec`.
"""

from __future__ import annotations

import _thread
import os
import time

from runtime import cgroups, json_text, signals
from runtime.capabilities import withheld
from runtime.cgroups.files import write
from runtime.errors import CgroupError, HookError, RuntimeFailure, SpecError, StateError, errno_name
from runtime.hooks import STOPPING, run_hooks, run_inside
from runtime.launch import Process, launch
from runtime.linux import LinuxKernel
from runtime.oci_options import (
    PLAIN,
    Options,
    activated,
    check_descriptors,
    check_options,
    deliver_console,
    write_pid_file,
)  # fmt: skip
from runtime.oci_state import CREATED, CREATING, PAUSED, RUNNING, STOPPED, Container, Store
from runtime.operations import container_plan, exec_plan
from runtime.plan import NO_STDIO, Operation, Plan
from runtime.records import replaced
from runtime.seccomp.programs import Programs
from runtime.spec import CREATING as CREATING_HOOKS
from runtime.spec import Hook, ProcessSpec, Spec, parse, parse_hooks, parse_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from runtime.plan import Attend

STANDARD = (0, 1, 2)
BINDS = frozenset(("bind", "rbind"))


NOWHERE: Mapping[str, str] = {}


def read_config(bundle: str, path: str = "") -> dict[str, Any]:
    """A bundle's config.json (or another file) with the paths that are relative to the bundle made absolute.
    Raises SpecError, StateError."""
    path = path or os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            config = json_text.loads(file.read().decode())
    except OSError as error:
        raise StateError(f"Could not read {path}: {errno_name(error.errno or 0)}") from error
    except ValueError as error:
        raise SpecError("config.json", f"is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise SpecError("config.json", "must be an object")
    if isinstance(config.get("root"), dict) and config["root"].get("path"):
        config["root"]["path"] = os.path.realpath(os.path.join(bundle, config["root"]["path"]))
    mounts = config.get("mounts")
    for mount in mounts if isinstance(mounts, list) else ():
        if _bound(mount) and not mount["source"].startswith("/"):
            mount["source"] = os.path.join(os.path.abspath(bundle), mount["source"])
    return config


def _bound(mount: object) -> bool:
    """Whether a mount binds a source that it names; what is malformed is refused by who parses it."""
    if not isinstance(mount, dict) or not isinstance(mount.get("source"), str) or not mount["source"]:
        return False
    options = mount.get("options")
    flags = map(str, options) if isinstance(options, list) else ()
    return mount.get("type") == "bind" or not BINDS.isdisjoint(flags)


class Runtime:
    """The operations over one store, one kernel and one cgroup driver."""

    def __init__(self, store: Store, kernel: LinuxKernel, driver: cgroups.CgroupDriver) -> None:
        self.store = store
        self._kernel = kernel
        self._driver = driver
        self._programs = Programs(f"{store.root}/.seccomp")  # no id starts with a dot

    def create(
        self, identity: str, bundle: str, config: dict[str, Any], options: Options = PLAIN
    ) -> tuple[Container, Process]:
        """Makes the container; its process waits for start. Raises RuntimeFailure with nothing left."""
        config = self._told(identity, config, options)
        return self._make(identity, bundle, config, parse(config), options, waits=True)

    def run(
        self, identity: str, bundle: str, config: dict[str, Any], options: Options = PLAIN
    ) -> tuple[Container, Process]:
        """create and start in one. Where nothing has to be done in between, nobody waits for a start: that
        costs a copy of our memory. Raises RuntimeFailure."""
        config = self._told(identity, config, options)
        spec = parse(config)
        waits = _attended(spec) or bool(options.notify) or any(spec.hooks.get(kind) for kind in STOPPING)
        made, process = self._make(identity, bundle, config, spec, options, waits=waits)
        if waits:
            self.start(identity, options)
        return made, process

    def _told(self, identity: str, config: dict[str, Any], options: Options) -> dict[str, Any]:
        if not options.notify:
            return config
        from runtime.oci_notify import told

        return told(config, self.store.folder(identity))

    def _hooks(self, kind: str, container: Container, hooks: Sequence[Hook]) -> list[str]:
        return run_hooks(kind, hooks, self.store.describe(container)) if hooks else []

    def _make(
        self, identity: str, bundle: str, config: dict[str, Any], spec: Spec, options: Options, *, waits: bool
    ) -> tuple[Container, Process]:
        check_options(spec, options)
        if spec.linux.resources.keys() - {"devices"}:  # those are checked where they are used
            from runtime.spec_resources import check

            check(spec.linux.resources)
        self.store.make(identity)
        try:
            if options.notify:
                from runtime.oci_notify import make

                make(self.store.folder(identity))
            cgroup = self._make_cgroup(identity, config, spec)
        except BaseException:
            self.store.forget(identity)
            raise
        path = cgroup.path
        try:
            made, process = self._launch_first(identity, bundle, config, spec, cgroup, options, waits)
            try:
                deliver_console(process, options.console_socket)
                if options.pid_file:
                    write_pid_file(options.pid_file, process.pid)
            except (OSError, StateError):
                self._driver.open(path).kill()
                os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
                raise
        except BaseException as error:
            if isinstance(error, RuntimeFailure) and cgroup.stats().oom_kills:  # runc's words
                error.args = (f"{error} (container init was OOM-killed: memory limit too low?)",)
            self._driver.remove(path, recursive=True)
            self.store.forget(identity)
            if isinstance(error, HookError):
                _add_problems(error, self._after_failure(spec, identity, bundle, config))
            raise
        return made, process

    def _make_cgroup(self, identity: str, config: Mapping[str, Any], spec: Spec) -> cgroups.Cgroup:
        path = self._driver.names.container(spec.linux.cgroups_path, identity)
        if self._driver.exists(path):
            there = self._driver.open(path)
            if there.pids():
                raise StateError(f"Could not create container {identity}: cgroup {path} has processes in it")
            if there.frozen():  # its first process would stop before it is one
                raise StateError(f"Could not create container {identity}: cgroup {path} is frozen")
        cgroup = self._driver.create(path, spec.linux.resources, config.get("annotations"))
        try:
            if _owns_its_cgroup(config, spec):
                from runtime.userns import host_id

                cgroup.give(host_id(spec.linux.uid_mappings, spec.process.user.uid if spec.process else 0))
        except BaseException:
            self._driver.remove(path, recursive=True)
            raise
        return cgroup

    def _launch_first(
        self, identity: str, bundle: str, config: dict[str, Any], spec: Spec, cgroup: cgroups.Cgroup,
        options: Options, waits: bool,
    ) -> tuple[Container, Process]:  # fmt: skip
        fifo = _make_fifo(self.store.fifo(identity)) if waits else -1
        terminal = bool(spec.process and spec.process.terminal)

        def attend(what: str, pid: int, number: int) -> None:
            made = self._made(identity, pid, self._kernel.start_time(pid), bundle, cgroup.path, config)
            if what == "hooks":
                self._run_creating(made, spec, cgroup)
            else:
                self._hand_over(spec, {**self.store.describe(made), "status": CREATING}, pid, number)

        if spec.process and spec.root:
            process_spec = activated(spec.process, options.sockets)
            spec = replaced(spec, process=self._at_home(process_spec, spec.root.path))
        join = cgroup.join()
        try:
            # What is set late is no mere warning here: a caller's limit holds, or there is no container.
            plan = container_plan(
                spec, rootfs=None, join={}, cgroup=replaced(join, late=()),
                wait_on=_wait(fifo) if waits else None,
                preserve_fds=options.preserve_fds, reopen_null=True, pivot=not options.no_pivot,
                new_keyring=options.new_keyring, compile=self._programs.compiled, tree=_tree_options(spec),
            )  # fmt: skip
            plan = self._noted(plan, spec.process)
            stdio = NO_STDIO if terminal else STANDARD
            wanted = _attended(spec) or any(spec.hooks.get(kind) for kind in CREATING_HOOKS)
            process = launch(self._kernel, plan, stdio, terminal=terminal, attend=attend if wanted else None)
        finally:
            if waits:
                os.close(fifo)
        try:
            for path, value in join.late:
                write(path, value)
            self._driver.settle(cgroup.path)
        except CgroupError:
            cgroup.kill()
            os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
            raise
        made = self._made(identity, process.pid, process.start_time_ticks, bundle, cgroup.path, config)
        self.store.save(made)
        return made, process

    def _noted(self, plan: Plan, process: ProcessSpec | None) -> Plan:
        """The plan with a warning of the capabilities that are not ours to give."""
        notes = withheld(process.capabilities if process else None, *self._kernel.capabilities())
        return replaced(plan, notes=(*plan.notes, *notes)) if notes else plan

    def _at_home(self, process: ProcessSpec, root: str) -> ProcessSpec:
        """The process with HOME, as runc and crun give it: what its environment says, else what /etc/passwd
        of its root does."""
        if any(entry.startswith("HOME=") for entry in process.env):
            return process
        from runtime.users import home

        return replaced(process, env=(*process.env, f"HOME={home(self._kernel, root, process.user.uid)}"))

    def _made(
        self, identity: str, pid: int, start_time: int, bundle: str, path: str, config: dict[str, Any]
    ) -> Container:
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        manager = cgroups.SYSTEMD if self._driver.name == cgroups.SYSTEMD else cgroups.CGROUPFS
        return Container(identity, pid, start_time, os.path.realpath(bundle), path, created, config, manager)

    def _run_creating(self, container: Container, spec: Spec, cgroup: cgroups.Cgroup) -> None:
        """The hooks between the namespaces and the change of root, in the specification's order."""
        self.store.save(container)
        self.store.creating(container.id, True)
        described = self.store.describe(container)
        run_hooks("prestart", spec.hooks.get("prestart", ()), described)
        run_hooks("createRuntime", spec.hooks.get("createRuntime", ()), described)
        for hook in spec.hooks.get("createContainer", ()):
            from runtime.operations import hook_plan

            env = tuple(f"{name}={value}" for name, value in os.environ.items())
            plan = hook_plan(spec, hook, init_pid=container.pid, cgroup=cgroup.join(), env=env)
            inner = {**described, "pid": _inner_pid(container.pid)}
            run_inside("createContainer", hook, inner, self._starter(plan))
        self.store.creating(container.id, False)

    def _after_failure(self, spec: Spec, identity: str, bundle: str, config: dict[str, Any]) -> list[str]:
        """A hook that fails leads to the end of the lifecycle, and so to the poststop hooks. Returns what
        went wrong with those."""
        gone = self._made(identity, 0, 0, bundle, "", config)
        described = {**self.store.describe(gone), "status": STOPPED}
        return run_hooks("poststop", spec.hooks.get("poststop", ()), described)

    def _hand_over(self, spec: Spec, state: Mapping[str, Any], pid: int, number: int) -> None:
        from runtime.seccomp.filter import listener
        from runtime.seccomp.listener import hand_over

        heard = listener(spec.linux.seccomp or {})
        if heard is not None:
            hand_over(heard, state, pid, number)

    def start(self, identity: str, options: Options = PLAIN) -> None:
        """Lets a created container's process go on. A hook that fails ends and removes the container: raises
        HookError. With `options.notify` it returns when the container is ready, or has ended."""
        container = self.store.load(identity)
        status = self.status(container)
        if status != CREATED:
            raise StateError(f"Could not start container {identity}: it is {status}, not created")
        hooks = _hooks_of(container)
        tell = self._teller(container, options)
        try:
            if hooks.get("startContainer"):
                self._run_inside(container)
            from runtime.early import let_go

            if not let_go(self.store.fifo(identity)):
                raise StateError(f"Could not start container {identity}: its process does not go on")
            os.unlink(self.store.fifo(identity))
            self._hooks("poststart", container, hooks.get("poststart", ()))
        except HookError as error:
            _add_problems(error, self.delete(identity, force=True))
            raise
        if options.stays:
            _thread.start_new_thread(tell, ())
        else:
            tell()

    def _teller(self, container: Container, options: Options) -> Callable[[], None]:
        """What has to be done behind the start, so that systemd learns when the container is ready: nothing,
        unless it asked for that when the container was made, too."""
        folder = self.store.folder(container.id)
        if not options.notify:
            return lambda: None
        from runtime import oci_notify

        if not oci_notify.exists(folder):
            return lambda: None
        listener = oci_notify.Listener(folder)

        def lives() -> bool:
            return self.store.status(container) != STOPPED

        def tell() -> None:
            try:
                listener.forward(options.notify, container.pid, lives)
            except OSError as error:
                # The container runs; that systemd does not hear of it is systemd's to say.
                text = f"Could not tell systemd that {container.id} is ready: {error.strerror}\n"
                os.write(2, text.encode())

        return tell

    def _run_inside(self, container: Container) -> None:
        """startContainer hooks: programs of the container, run in it as its process would be. Raises
        HookError."""
        spec = parse(container.config)
        hooks = spec.hooks["startContainer"]
        cgroup = self._driver.open(container.cgroup)
        described = {**self.store.describe(container), "pid": _inner_pid(container.pid)}
        for hook in hooks:
            plan = self._inside(container, spec, hook, cgroup)
            run_inside("startContainer", hook, described, self._starter(plan))

    def _inside(self, container: Container, spec: Spec, hook: Hook, cgroup: cgroups.Cgroup) -> Plan:
        args = list(hook.args or (hook.path,))
        process = {**container.config["process"], "args": args, "terminal": False}
        if hook.env is not None:
            process["env"] = list(hook.env)
        return exec_plan(
            spec,
            parse_process(process),
            init_pid=container.pid,
            cgroup=cgroup.join(),
            init_start_time=container.start_time,
            executable=hook.path,
            compile=self._programs.compiled,
        )

    def _launch_more(
        self, container: Container, spec: Spec, process: ProcessSpec, join: cgroups.CgroupJoin,
        options: Options,
    ) -> Process:  # fmt: skip
        """An exec's process; with a seccomp listener it waits until that has been handed over."""

        def plan(wait_on: Operation | None = None) -> Plan:
            return exec_plan(
                spec,
                process,
                init_pid=container.pid,
                cgroup=join,
                init_start_time=container.start_time,
                preserve_fds=options.preserve_fds,
                reopen_null=True,
                wait_on=wait_on,
                compile=self._programs.compiled,
            )

        def start(planned: Plan, attend: Attend | None = None) -> Process:
            stdio = NO_STDIO if process.terminal else STANDARD
            planned = self._noted(planned, process)
            return launch(self._kernel, planned, stdio, terminal=process.terminal, attend=attend)

        if not _attended(spec):
            return start(plan())
        from runtime.attended import launch_attended

        name = f"{self.store.folder(container.id)}/exec-{os.getpid()}.fifo"
        return launch_attended(name, spec.linux.seccomp or {}, self.store.describe(container), plan, start)

    def _starter(self, plan: Plan) -> Callable[[tuple[int, int, int]], int]:
        def start(stdio: tuple[int, int, int]) -> int:
            process = launch(self._kernel, plan, stdio)
            os.close(process.pidfd)
            return process.pid

        return start

    def state(self, identity: str) -> dict[str, Any]:
        """The container's state (runtime.md)."""
        return self.described(self.store.load(identity))

    def described(self, container: Container) -> dict[str, Any]:
        """The state, with `paused` where the cgroup is frozen."""
        return {**self.store.describe(container), "status": self.status(container)}

    def status(self, container: Container) -> str:
        """created, running, paused or stopped."""
        status = self.store.status(container)
        if status != STOPPED and self._driver.exists(container.cgroup):
            return PAUSED if self._driver.open(container.cgroup).frozen() else status
        return status

    def kill(self, identity: str, number: int, *, everyone: bool = False) -> None:
        """Sends a signal to the first process, or to all processes of the container."""
        container = self.store.load(identity)
        if everyone:
            for pid in self._driver.open(container.cgroup).pids():
                _signal(pid, number)
            return
        if self.store.status(container) == STOPPED:
            # In runc's words: containerd takes them for "it has ended", any others for a stop that failed.
            raise StateError(f"Could not signal container {identity}: container not running")
        _signal(container.pid, number)

    def delete(self, identity: str, *, force: bool = False) -> list[str]:
        """Removes a stopped container, or any with `force`. Returns complaints of poststop hooks."""
        try:
            container = self.store.load(identity)
        except StateError:
            if not force:
                raise
            self.store.forget(identity)
            return []
        if not force:
            status = self.status(container)
            if status in (RUNNING, PAUSED):
                raise StateError(
                    f"Could not delete container {identity}: it is {status} (kill it or use --force)"
                )
        return self.remove(container)

    def remove(self, container: Container) -> list[str]:
        """Ends and removes a container that was loaded. Returns complaints of poststop hooks."""
        self._driver_of(container).remove(container.cgroup, recursive=True)
        hooks = _hooks_of(container).get("poststop", ())
        described = {**self.store.describe(container), "status": STOPPED, "pid": 0} if hooks else {}
        self.store.forget(container.id)
        return run_hooks("poststop", hooks, described) if hooks else []

    def freeze(self, identity: str, on: bool) -> None:
        """Stops or continues all processes of the container. Raises StateError if that is not what it
        needs."""
        container = self.store.load(identity)
        status = self.status(container)
        if on and status not in (CREATED, RUNNING):
            raise StateError(f"Could not pause container {identity}: it is {status}, not running")
        if not on and status != PAUSED:
            raise StateError(f"Could not resume container {identity}: it is {status}, not paused")
        cgroup = self._driver.open(container.cgroup)
        if on:
            cgroup.freeze()
        else:
            cgroup.thaw()

    def cgroup(self, identity: str) -> cgroups.Cgroup:
        """The container's cgroup."""
        return self._driver.open(self.store.load(identity).cgroup)

    def processes(self, identity: str) -> list[int]:
        """Pids of the container, as the host sees them."""
        return self.cgroup(identity).pids()

    def update(self, identity: str, resources: Mapping[str, Any]) -> None:
        """Changes limits; what is not mentioned stays, but swap, which has no limit either once memory has
        none (as runc's update has it). Raises StateError for a stopped container."""
        container = self.store.load(identity)
        if self.store.status(container) == STOPPED:
            raise StateError(f"Could not update container {identity}: it is not running")
        from runtime.spec_resources import check

        check(resources)
        cgroup = self._driver_of(container).open(container.cgroup)
        memory = resources.get("memory") or {}
        if memory.get("limit") == -1 and memory.get("swap") is None:
            resources = {**resources, "memory": {**memory, "swap": -1}}
        cgroup.update(resources)

    def _driver_of(self, container: Container) -> cgroups.CgroupDriver:
        """The one that made its cgroup: callers give the flag to `create` alone."""
        if (container.manager == cgroups.SYSTEMD) == (self._driver.name == cgroups.SYSTEMD):
            return self._driver
        return cgroups.choose(container.manager)

    def exec(
        self, identity: str, process: ProcessSpec, options: Options = PLAIN,
        below: Mapping[str, str] = NOWHERE, *, paused: bool = False,
    ) -> Process:  # fmt: skip
        """One more process in a created or running container. `below`: cgroups below the container's that it
        joins (see Cgroup.join). `paused`: into a paused container, too, where it stays until that is
        resumed."""
        check_descriptors(options.preserve_fds)
        container = self.store.load(identity)
        status = self.status(container)
        if status not in (CREATED, RUNNING) and not (paused and status == PAUSED):
            hint = " (resume it, or use --ignore-paused)" if status == PAUSED else ""
            raise StateError(f"Could not execute in container {identity}: it is {status}, not running{hint}")
        if not self._driver.exists(container.cgroup):
            raise StateError(f"Could not execute in container {identity}: its cgroup is gone")
        cgroup = self._driver.open(container.cgroup)
        join = cgroup.join(below or cgroup.beside(container.pid))
        spec = parse(container.config)
        process = self._at_home(process, f"/proc/{container.pid}/root")
        started = self._launch_more(container, spec, process, join, options)
        try:
            deliver_console(started, options.console_socket)
            if options.pid_file:
                write_pid_file(options.pid_file, started.pid)
        except (OSError, StateError):
            os.kill(started.pid, signals.SIGKILL)
            os.waitid(os.P_PIDFD, started.pidfd, os.WEXITED)
            raise
        return started


def _hooks_of(container: Container) -> Mapping[str, tuple[Hook, ...]]:
    return parse_hooks(container.config)


def _add_problems(error: HookError, problems: list[str]) -> None:
    """A failed hook's error says what else went wrong on the way out."""
    if problems:
        error.args = ("; ".join([str(error), *problems]),)


def _owns_its_cgroup(config: Mapping[str, Any], spec: Spec) -> bool:
    """Whether the cgroup becomes its user's: it has a cgroup namespace of its own, and the tree mounted so
    that it can be written to (runtime-spec, "Cgroup ownership"). Not who joins a user namespace whose ids
    nobody has told us."""
    new = {namespace.type: not namespace.path for namespace in spec.linux.namespaces}
    if not new.get("cgroup") or ("user" in new and not spec.linux.uid_mappings):
        return False
    return any(
        mount.get("type") == "cgroup" and mount.get("destination") == "/sys/fs/cgroup"
        and "ro" not in (mount.get("options") or ())
        for mount in config.get("mounts") or ()
    )  # fmt: skip


def _tree_options(spec: Spec) -> tuple[str, ...]:
    """The cgroup tree's options, for a container that mounts it."""
    if not any(mount.type in ("cgroup", "cgroup2") for mount in spec.mounts):
        return ()
    with open("/proc/self/mountinfo", "rb") as file:
        return cgroups.tree_options(file.read().decode("utf-8", "surrogateescape"))


def _make_fifo(path: str) -> int:
    from runtime.early import make_fifo

    return make_fifo(path)


def _wait(fifo: int) -> Operation:
    from runtime.early import WaitForStart

    return WaitForStart(fifo)


def _attended(spec: Spec) -> bool:
    """Whether a seccomp listener may have to be handed over."""
    return bool(spec.linux.seccomp and spec.linux.seccomp.get("listenerPath"))


def _inner_pid(pid: int) -> int:
    """The process's number in its own PID namespace."""
    with open(f"/proc/{pid}/status", "rb") as file:
        return next(int(line.split()[-1]) for line in file if line.startswith(b"NSpid:"))


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait(process: Process) -> int:
    """Exit code as a shell shows it (128 + n for a signal)."""
    found = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
    if found is None:
        raise StateError(f"Could not wait for process {process.pid}")
    return found.si_status if found.si_code == os.CLD_EXITED else 128 + found.si_status
