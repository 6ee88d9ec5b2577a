"""The machine code in the source is what an assembler makes of its listing, and the ELF is well-formed."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from runtime import oci_start, pause
from runtime.machine import ARM64, X86_64, Machine

LISTINGS = Path(__file__).parent / "listings"
TOOLS = {"x86_64": ("as", "objcopy"), "aarch64": ("aarch64-linux-gnu-as", "aarch64-linux-gnu-objcopy")}


def assembled(machine: Machine, name: str, folder: Path) -> bytes:
    assembler, copier = TOOLS[machine.name]
    try:
        target = folder / "code.o"
        subprocess.run([assembler, LISTINGS / f"{name}-{machine.name}.s", "-o", target], check=True)
        subprocess.run([copier, "-O", "binary", "-j", ".text", target, folder / "code"], check=True)
    except FileNotFoundError:
        pytest.skip(f"{assembler} is not installed")
    return (folder / "code").read_bytes()


@pytest.mark.parametrize("machine", [X86_64, ARM64], ids=lambda m: m.name)
def test_the_spawn_code_is_what_its_listing_says(machine: Machine, tmp_path: Path) -> None:
    assert assembled(machine, "spawn", tmp_path) == machine.spawn


@pytest.mark.parametrize("machine", [X86_64, ARM64], ids=lambda m: m.name)
def test_the_pause_code_is_what_its_listing_says(machine: Machine, tmp_path: Path) -> None:
    assert assembled(machine, "pause", tmp_path) == pause.image(machine)[64 + 2 * 56 :]


@pytest.mark.parametrize("machine", [X86_64, ARM64], ids=lambda m: m.name)
def test_the_starters_code_is_what_its_listing_says(machine: Machine, tmp_path: Path) -> None:
    code = assembled(machine, "start", tmp_path)
    image = oci_start.image(machine, "/python", "-IS")
    assert image[64 + 2 * 56 :].startswith(code + b"/python\0-IS\0kubelet-py-oci: Could not execute /python")


@pytest.mark.parametrize(("machine", "number"), [(X86_64, 62), (ARM64, 183)], ids=lambda v: str(v))
def test_pause_is_a_small_static_program(machine: Machine, number: int) -> None:
    image = pause.image(machine)
    kind, elf_machine, _, entry, headers = struct.unpack_from("=HHIQQ", image, 16)
    assert (kind, elf_machine, headers) == (2, number, 64)
    assert len(image) < 400
    load, flags, offset, address, _, size, memory, align = struct.unpack_from("=IIQQQQQQ", image, 64)
    assert (load, flags, offset, size, memory) == (1, 5, 0, len(image), len(image))
    assert address % align == 0 and address < entry < address + size


def test_both_machines_know_the_same_calls() -> None:
    assert set(X86_64.numbers) == set(ARM64.numbers)
