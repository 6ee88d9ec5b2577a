"""The new process itself: what the child does between clone and execve, in the order of runc's
standard_init_linux.go.

Everything here is per process or per credential, so it must not happen on the starting thread. Each operation
adds system calls to the child's table; nothing is executed before `Start` hands the table to the kernel.
"""

from __future__ import annotations

import os
import struct
from errno import ENOSYS

from runtime.capabilities import CapabilityBits, bounding_steps, set_steps
from runtime.errors import errno_name
from runtime.kernel import AT_FDCWD, Filter, Kernel, Meeting, SpawnError, Step
from runtime.mounting import NO_MAGICLINKS, make_inside, open_inside
from runtime.plan import NO_STDIO, Context, Operation, Refused
from runtime.procfs import below
from runtime.spec import Rlimit

PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS = 8, 38
PR_SET_DUMPABLE = 4
EVERY_CPU = b"\xff" * 1024  # more than any kernel has; it reads as many as it knows
KEYCTL_JOIN_SESSION_KEYRING = 1
TIOCSCTTY = 0x540E
OF_GLIBC = (32, 33)  # signals that its posix_spawn leaves ignored, which nobody but the kernel can tell
CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC = 2, 4
MOST_INTERPRETERS = 6  # execve(2) follows five
NULL = "/dev/null"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class OpenCgroup(Operation):
    """Opens the cgroups to be joined while their paths still mean the host's."""

    unified: str
    tasks: tuple[str, ...]

    def describe(self) -> str:
        return f"open the cgroup {self.unified or self.tasks[0]}"

    def run(self, kernel: Kernel, context: Context) -> None:
        if self.unified:
            context.cgroup_fd = context.keep(kernel.open(self.unified, os.O_PATH | os.O_DIRECTORY))
        for path in self.tasks:
            context.task_fds.append(context.keep(kernel.open(path, os.O_WRONLY)))


class EnterCgroup(Operation):
    """The child puts itself into the v1 cgroups: 0 written to `tasks` avoids the wait for an RCU grace period
    that a write of somebody else's pid costs. Into the v2 cgroup it is born."""

    def describe(self) -> str:
        return "enter the cgroup"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(*(Step("write", (fd, b"0", 1)) for fd in context.task_fds))


class NewSession(Operation):
    """Own session and process group: no terminal of ours can be reached (CVE-2017-5226). Own session keyring:
    no key of ours either, where the kernel has keys at all (unless the caller wants its own kept)."""

    keyring: bool = True

    def describe(self) -> str:
        return "start a session"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(Step("setsid"))
        if self.keyring:
            context.child(Step("keyctl", (KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0), tolerate=True))


class ConnectStdio(Operation):
    """Puts the three streams in place; a terminal becomes the controlling one. `reopen_null`: where a caller
    has given the host's /dev/null, the container's is opened instead, for reading and writing, as runc does:
    containerd's is for reading alone, and a container could change the mode and owner of the host's."""

    reopen_null: bool = False

    def describe(self) -> str:
        return "connect standard input, output and error"

    def run(self, kernel: Kernel, context: Context) -> None:
        streams = tuple(context.keep(kernel.duplicate(fd)) if 0 <= fd <= 2 else fd for fd in context.stdio)
        if streams == NO_STDIO:
            raise Refused("no descriptors for standard input, output and error were given")
        context.child(*(Step("dup3", (fd, target, 0)) for target, fd in enumerate(streams)))
        nulls = [target for target, fd in enumerate(streams) if self.reopen_null and _is_null(kernel, fd)]
        own = self._own_null(kernel, context) if nulls else -1
        for target in nulls if own >= 0 else ():
            # By what was looked at, not by its path again: that may have become a link to what we have open.
            opened = Step("openat", (context.host_proc, f"self/fd/{own}", os.O_RDWR | os.O_CLOEXEC, 0),
                          pass_result=True)  # fmt: skip
            context.child(opened, Step("dup3", (0, target, 0)))
        if context.terminal:
            context.child(Step("ioctl", (0, TIOCSCTTY, 0)))

    def _own_null(self, kernel: Kernel, context: Context) -> int:
        """The container's /dev/null, not open for anything yet; -1 if there is none."""
        try:
            fd = context.keep(kernel.open(NULL, os.O_PATH | os.O_NOFOLLOW))
        except OSError:
            return -1
        return fd if _is_null(kernel, fd) else -1


def _is_null(kernel: Kernel, fd: int) -> bool:
    status = kernel.fstat(fd)
    return status.mode & 0o170000 == 0o020000 and status.rdev == os.makedev(1, 3)


class SetOomScore(Operation):
    """oom_score_adj of the child. Lowering it needs CAP_SYS_RESOURCE; without, that is reported, not
    fatal."""

    value: int

    def describe(self) -> str:
        return f"set oom_score_adj to {self.value}"

    def run(self, kernel: Kernel, context: Context) -> None:
        text = str(self.value).encode()
        path = "self/oom_score_adj"
        context.child(
            Step("openat", (context.host_proc, path, os.O_WRONLY | os.O_CLOEXEC, 0), pass_result=True),
            Step("write", (0, text, len(text)), tolerate=True),
        )


class SetRlimit(Operation):
    """One resource limit of the child. Raising a hard limit needs CAP_SYS_RESOURCE; without, it is
    reported."""

    limit: Rlimit

    def describe(self) -> str:
        return f"set RLIMIT_{self.limit.name} to {self.limit.soft}:{self.limit.hard}"

    def run(self, kernel: Kernel, context: Context) -> None:
        pair = struct.pack("=QQ", self.limit.soft, self.limit.hard)
        context.child(Step("prlimit64", (0, self.limit.resource, pair, 0), tolerate=True))


class RunAnywhere(Operation):
    """On every processor that the cgroup allows; the kernel cuts those out of the set. Else the child had
    those that who started us is confined to, and from Linux 6.2 on kept to them in a cgroup with more. runc
    and crun do so, too. What the host refuses is reported, not fatal."""

    def describe(self) -> str:
        return "run on every processor of the cgroup"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(Step("sched_setaffinity", (0, len(EVERY_CPU), EVERY_CPU), tolerate=True))


class ResetSignals(Operation):
    """Default action for the signals that we ignore (Python ignores SIGPIPE), and none blocked. Those that we
    handle have had theirs since the clone; see LinuxKernel.spawn."""

    def describe(self) -> str:
        return "reset signals"

    def run(self, kernel: Kernel, context: Context) -> None:
        ignored = (*kernel.ignored_signals(), *OF_GLIBC)
        default = (Step("rt_sigaction", (number, bytes(32), 0, 8)) for number in ignored)
        context.child(*default, Step("rt_sigprocmask", (2, bytes(8), 0, 8)))


class CloseDescriptors(Operation):
    """Everything from `first` on is closed by the execve, whoever opened it (CVE-2024-21626); with `now`
    before it, as runc does: by then a container can have put a link to one of ours (/proc/self/fd/5/…) where
    its program was."""

    first: int = 3
    now: bool = False

    def describe(self) -> str:
        return f"close descriptors from {self.first}" + (" at once" if self.now else "")

    def run(self, kernel: Kernel, context: Context) -> None:
        how = CLOSE_RANGE_UNSHARE if self.now else CLOSE_RANGE_CLOEXEC
        context.child(Step("close_range", (self.first, 0xFFFFFFFF, how)))


class SetCredentials(Operation):
    """Bounding set, groups, gid, uid, then the other sets: each needs what the next one gives up."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    capabilities: CapabilityBits
    umask: int = 0o022

    def describe(self) -> str:
        return f"become user {self.uid}:{self.gid} with capabilities {self.capabilities.permitted:#x}"

    def run(self, kernel: Kernel, context: Context) -> None:
        groups = struct.pack(f"={len(self.groups)}I", *self.groups)
        permitted, bounding = context.held or kernel.capabilities()
        given = self.capabilities.within(permitted, bounding)
        context.child(*bounding_steps(given, bounding))
        context.child(
            Step("prctl", (PR_SET_KEEPCAPS, 1, 0, 0, 0)),
            Step("setgroups", (len(self.groups), groups)),
            Step("setresgid", (self.gid,) * 3),
            Step("setresuid", (self.uid,) * 3),
            Step("prctl", (PR_SET_KEEPCAPS, 0, 0, 0, 0)),
            Step("umask", (self.umask,)),
            *set_steps(given),
            # A change of ids resets this to fs.suid_dumpable, for the memory we share with the starter.
            Step("prctl", (PR_SET_DUMPABLE, 0, 0, 0, 0)),
        )


class SetNoNewPrivileges(Operation):
    """No execve of this process or its children raises privileges any more."""

    def describe(self) -> str:
        return "set no_new_privs"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(Step("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))


class CheckLabels(Operation):
    """Refuses labels of a security module that this kernel does not run, before anything is made: their files
    would be missing, or take the text and do nothing with it."""

    apparmor: bool
    selinux: bool

    def describe(self) -> str:
        modules = [n for n, wanted in (("AppArmor", self.apparmor), ("SELinux", self.selinux)) if wanted]
        return f"use {' and '.join(modules)} labels"

    def run(self, kernel: Kernel, context: Context) -> None:
        if self.apparmor:
            self._find(kernel, "AppArmor", "self/attr/apparmor/exec", context.host_proc)
        if self.selinux:
            self._find(kernel, "SELinux", "/sys/fs/selinux/status", None)

    def _find(self, kernel: Kernel, module: str, path: str, folder: int | None) -> None:
        try:
            kernel.close(kernel.open(path, os.O_PATH, dir_fd=folder))
        except FileNotFoundError:
            raise Refused(f"{module} is not enabled on this host") from None


class SetSecurityLabel(Operation):
    """AppArmor profile or SELinux label from the next execve on, written to a real procfs."""

    module: str
    label: str

    def describe(self) -> str:
        return f"set the {self.module} label {self.label}"

    def run(self, kernel: Kernel, context: Context) -> None:
        apparmor = self.module == "apparmor"
        text = (f"exec {self.label}" if apparmor else self.label).encode()
        path = "self/attr/apparmor/exec" if apparmor else "self/attr/exec"
        context.child(
            Step("openat", (context.host_proc, path, os.O_WRONLY | os.O_CLOEXEC, 0), pass_result=True),
            Step("write", (0, text, len(text))),
        )


class LoadSeccomp(Operation):
    """Loads the compiled filter. Without no_new_privs it needs CAP_SYS_ADMIN, so it comes before the sets."""

    program: Filter
    flags: int = 0

    def describe(self) -> str:
        return f"load a seccomp filter of {len(self.program) // 8} instructions"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(Step("seccomp", (1, self.flags, self.program)))


class EnterWorkingDirectory(Operation):
    """Changes to `path`, resolved inside the root without /proc's magic links; what getcwd then says must lie
    inside the root (CVE-2024-21626). A container's is made if missing, an exec's is not (`make`). The child
    inherits it from the thread."""

    path: str
    make: bool = True

    def describe(self) -> str:
        return f"change to the working directory {self.path}"

    def run(self, kernel: Kernel, context: Context) -> None:
        if below(context, self.path + "/.x") is not None:
            raise Refused("a working directory below /proc is not supported")
        enter = make_inside if self.make else open_inside
        fd = enter(kernel, context.root, self.path)
        try:
            kernel.fchdir(fd)
        finally:
            kernel.close(fd)
        if not kernel.getcwd().startswith("/"):
            raise Refused("it lies outside the container's root")


class FindExecutable(Operation):
    """Resolves the program as execvp would, inside the container's root, in PATH of the container."""

    name: str
    path: str
    strict: bool = False  # look at one that is given by its path, too: its execve comes too late to tell

    def describe(self) -> str:
        return f'find "{self.name}"'

    def run(self, kernel: Kernel, context: Context) -> None:
        if "/" in self.name:
            context.executable = self.name
            if self.strict and not self._fits(kernel):
                raise PermissionError(13, "not executable")
            return
        denied = False
        for folder in self.path.split(":") if self.name else ():
            candidate = f"{folder or '.'}/{self.name}"
            try:
                if kernel.is_executable(candidate):
                    context.executable = candidate
                    return
                denied = True
            except OSError:
                continue
        if denied:
            raise PermissionError(13, "found, but not executable")
        raise FileNotFoundError(2, "executable file not found in $PATH")

    def _fits(self, kernel: Kernel) -> bool:
        """Whether it is a program; one that is not there is ProbeExecutable's to tell of."""
        try:
            return kernel.is_executable(self.name)
        except OSError:
            return True


class Execute(Operation):
    """The program replaces the child. The last step."""

    args: tuple[str, ...]
    env: tuple[str, ...]

    def describe(self) -> str:
        return f'execute "{self.args[0]}"'

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(Step("execve", (context.executable, self.args, self.env)))


class ProbeExecutable(Execute):
    """Refuses a program whose path leads through a magic link, and a script whose interpreter's does. A
    link to /proc/self/exe, or `#!/proc/self/exe`, in an image would execute the starter's own program
    file with the container's dynamic loader, which could then overwrite it (CVE-2019-5736). By the child,
    which sees the container's /proc; before the limits, which may leave no descriptor, and the filter,
    which may not know openat2."""

    def describe(self) -> str:
        return f'examine "{self.args[0]}"'

    def run(self, kernel: Kernel, context: Context) -> None:
        how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, NO_MAGICLINKS)
        programs = (context.executable, *interpreters(kernel, context.executable))
        context.child(*(Step("openat2", (AT_FDCWD, path, how, len(how))) for path in programs))


def interpreters(kernel: Kernel, path: str) -> list[str]:
    """Of a script: what it names behind `#!`, and what that names if it is a script, too."""
    found: list[str] = []
    while len(found) < MOST_INTERPRETERS and (head := kernel.head(path)).startswith(b"#!"):
        line = head[2:].partition(b"\n")[0].replace(b"\t", b" ").lstrip(b" ")
        path = os.fsdecode(line.partition(b" ")[0].partition(b"\0")[0])
        found.append(path)
    return found


class ExecuteImage(Operation):
    """Executes a sealed file in memory: the program of a sandbox, which has no file system."""

    name: str
    image: bytes

    def describe(self) -> str:
        return f"execute {self.name} from memory"

    def run(self, kernel: Kernel, context: Context) -> None:
        fd = context.keep(kernel.memfd(self.name, self.image))
        context.child(Step("execveat", (fd, "", (self.name,), (), 0x1000)))


class Start(Operation):
    """Makes the child, which works off its steps. One that was born early is given them by its maker."""

    def describe(self) -> str:
        return "start the process"

    def run(self, kernel: Kernel, context: Context) -> None:
        if context.early:
            return
        meeting = None
        if context.ready is not None:
            context.opened.remove(context.ready[1])
            meeting = Meeting(context.ready, context.listen)
        start(kernel, context, meeting)


def start(kernel: Kernel, context: Context, meeting: Meeting | None) -> None:
    """Spawns, and notes in the context what comes of it."""
    steps = [step for step, _ in context.steps]
    try:
        spawned = kernel.spawn(
            steps, cgroup_fd=context.cgroup_fd, meeting=meeting, sibling=context.sibling
        )
    except SpawnError as error:
        context.fail(error.index)
        raise
    context.process = (spawned.pid, spawned.pidfd)
    for (step, number), result in zip(context.steps, spawned.results, strict=False):
        if step.tolerate and result < 0 and result != -ENOSYS:
            context.warnings.append(f"{number}:{errno_name(-result)}")
