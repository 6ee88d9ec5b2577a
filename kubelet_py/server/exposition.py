"""Prometheus' text format, version 0.0.4: families of samples into text.

A family is told once, with its help and type, and then all its samples: parsers refuse a family that comes
twice. Timestamps are milliseconds; a sample without one is of the moment of the scrape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Sample:
    """`suffix` is for parts of a family, as _bucket, _sum and _count of a histogram; `at` epoch seconds."""

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    at: float | None = None
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """`kind` is counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


def family(name: str, kind: str, help: str, samples: Iterable[Sample]) -> Family:
    return Family(name, kind, help, tuple(samples))


def text(families: Iterable[Family]) -> str:
    """Families without samples are left out."""
    lines = []
    for each in families:
        if not each.samples:
            continue
        lines.append(f"# HELP {each.name} {_escaped(each.help)}")
        lines.append(f"# TYPE {each.name} {each.kind}")
        lines += [_line(each.name, sample) for sample in each.samples]
    return "".join(f"{line}\n" for line in lines)


def _line(name: str, sample: Sample) -> str:
    labels = ",".join(f'{key}="{_quoted(value)}"' for key, value in sample.labels.items())
    line = f"{name}{sample.suffix}{{{labels}}}" if labels else f"{name}{sample.suffix}"
    line += f" {_number(sample.value)}"
    return line if sample.at is None else f"{line} {int(sample.at * 1000)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value)).replace("inf", "+Inf")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(value: str) -> str:
    return _escaped(value).replace('"', '\\"')
