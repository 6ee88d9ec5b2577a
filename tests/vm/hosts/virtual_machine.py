"""An emulated machine of hack/vm/build's image: QEMU in our network namespace, and commands in it by ssh.

It has what a machine of Vagrant's has: an interface whose address is translated and the same on all machines
(10.0.2.15, and here nothing is beyond it), and one on the private network: a tap on a bridge here.
Kernel and initrd are given to QEMU, which starts the machine with them again when it reboots.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "192.168.56"
BRIDGE = "private"
NULL = subprocess.DEVNULL
PATIENCE = 600.0  # emulated processors, shared with others

KERNEL = (
    "root=/dev/vda rw console=ttyS0 mitigations=off no_timer_check quiet systemd.show_status=0 panic=-1"
    " kubelet_py.host systemd.hostname={name} ip={address}:::255.255.255.0::enp0s16:none"
)
SSH = (
    "ssh", "-q", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
    "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=30",
    "-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=10",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Said:
    """What a command on a machine said."""

    code: int
    out: str
    err: str


def make_bridge() -> None:
    """The private network, with the host's own address on it; nothing leads out of our namespace."""
    for argv in (
        ("ip", "link", "add", BRIDGE, "type", "bridge"),
        ("ip", "addr", "add", f"{PREFIX}.1/24", "dev", BRIDGE),
        ("ip", "link", "set", BRIDGE, "up"),
    ):
        subprocess.run(argv, check=True)


class VirtualMachine:
    """One machine: `number` 0 is 192.168.56.10, and so on. `folder` is its place for disk, log and socket."""

    def __init__(self, name: str, number: int, image: Path, folder: Path) -> None:
        self.name = name
        self.address = f"{PREFIX}.{10 + number}"
        self.key = image / "key"
        self._number = number
        self._image = image
        self._folder = folder
        self._qemu: subprocess.Popen[bytes] | None = None
        self._line: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Start it on a new disk over the image; returns at once."""
        disk, tap = self._folder / f"{self.name}.qcow2", f"to-{self.name}"
        backing = ("-F", "raw", "-b", self._image / "root.img")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, disk], check=True)
        subprocess.run(["ip", "tuntap", "add", tap, "mode", "tap"], check=True)
        subprocess.run(["ip", "link", "set", tap, "master", BRIDGE, "up"], check=True)
        devices = {
            "-M": "q35", "-accel": "tcg,thread=multi,tb-size=256", "-cpu": "qemu64,-cx16",
            "-smp": "2", "-m": "1536", "-display": "none",
            "-kernel": self._image / "vmlinuz", "-initrd": self._image / "initrd.img",
            "-append": KERNEL.format(name=self.name, address=self.address),
            "-drive": f"file={disk},format=qcow2,if=virtio,cache=unsafe",
            "-object": "rng-random,id=rng,filename=/dev/urandom",
            "-serial": f"file:{self._folder / self.name}.console.log",
        }  # fmt: skip
        argv = ["qemu-system-x86_64", "-nodefaults"]
        argv += [word for pair in devices.items() for word in pair]
        argv += ["-device", "virtio-rng-pci,rng=rng"]
        argv += ["-netdev", "user,id=nat,restrict=on,ipv6=off"]
        argv += ["-device", "virtio-net-pci,netdev=nat,mac=52:54:00:00:02:0f,addr=0x0f"]
        argv += ["-netdev", f"tap,id=private,ifname={tap},script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,netdev=private,mac=52:54:00:00:56:{self._number:02x},addr=0x10"]
        self._qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def wait(self, seconds: float = PATIENCE) -> None:
        """Until it answers by ssh: by one connection that all commands share, as each takes seconds here."""
        deadline = time.monotonic() + seconds
        while not self._line or self.run("true", check=False, seconds=60).code != 0:
            assert self._qemu is None or self._qemu.poll() is None, f"qemu of {self.name} ended"
            assert time.monotonic() < deadline, f"{self.name} does not answer by ssh"
            if self._line is None or self._line.poll() is not None:
                argv = [*self._ssh(), "-MN", f"root@{self.address}"]
                self._line = subprocess.Popen(argv, stdin=NULL, stdout=NULL, stderr=NULL)
            time.sleep(1)

    def run(
        self, command: str, *, check: bool = True, seconds: float = PATIENCE, stdin: bytes = b""
    ) -> Said:
        """A shell line as root. 255 is ssh's own failure, 124 stands for none in time."""
        argv = [*self._ssh(), f"root@{self.address}", command]
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, timeout=seconds)
            said = Said(done.returncode, done.stdout.decode(), done.stderr.decode())
        except subprocess.TimeoutExpired as late:
            said = Said(124, (late.stdout or b"").decode(), f"no end after {seconds} s")
        assert not check or said.code == 0, f"{self.name}: {command}: exit {said.code}\n{said.out}{said.err}"
        return said

    def unpack(self, folder: Path, place: str, exclude: Sequence[str] = ()) -> None:
        """Make `place` on the machine like `folder`, but for some."""
        options = [f"--exclude={pattern}" for pattern in exclude]
        packed = subprocess.run(["tar", "-cz", *options, "-C", folder, "."], capture_output=True, check=True)
        self.run(f"rm -rf {place} && mkdir -p {place} && tar -xz -C {place}", stdin=packed.stdout)

    def boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id").out

    def reboot(self, how: str = "systemctl reboot") -> None:
        """Have it reboot, and wait until it answers again."""
        before = self.boot_id()
        self.run(how, check=False, seconds=120)
        self._hang_up()
        deadline = time.monotonic() + PATIENCE
        while True:
            self.wait()
            if self.run("cat /proc/sys/kernel/random/boot_id", check=False).out not in ("", before):
                return
            self._hang_up()
            assert time.monotonic() < deadline, f"{self.name} did not reboot"
            time.sleep(1)

    def pause(self) -> None:
        """Stop its processors: to others it looks like a machine that lost its power."""
        assert self._qemu is not None
        self._qemu.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._qemu is not None
        self._qemu.send_signal(signal.SIGCONT)

    def off(self) -> None:
        """Pull the plug."""
        self._hang_up()
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
        subprocess.run(["ip", "tuntap", "del", f"to-{self.name}", "mode", "tap"], check=False)
        (self._folder / f"{self.name}.qcow2").unlink(missing_ok=True)

    @property
    def _socket(self) -> Path:
        return self._folder / f"{self.name}.ssh"

    def _ssh(self) -> list[str]:
        return [*SSH, "-i", str(self.key), "-o", f"ControlPath={self._socket}"]

    def _hang_up(self) -> None:
        """End the shared connection: it would wait for a machine that forgot it."""
        if self._line is not None:
            self._line.kill()
            self._line.wait()
            self._line = None
        self._socket.unlink(missing_ok=True)
