"""A command line of verbs and flags, read as runc's and crun's are.

`argparse` costs 3 ms of a start that takes 15, and reads some things otherwise than callers of runc write
them: `-bundle DIR` and `--force=true` are fine with Go's flags. So flags are rows of a table here. They may
stand before and after positional words, except where the rest of the line is somebody else's.
"""

from __future__ import annotations

from runtime.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    # name, letter or "", kind, help. A kind is one of those in _VALUES or a tuple of the allowed words.
    Flag = tuple[str, str, "str | tuple[str, ...]", str]
    # flags, positional words, what it does. A word that ends in "?" may be left out; one that ends in "*"
    # takes the rest of the line as it is.
    Command = tuple[tuple[Flag, ...], tuple[str, ...], str]

HELP: Flag = ("help", "h", "yes or no", "print this and end")


class UsageError(RuntimeFailure):
    """The command line names a command or flag that does not exist, or a value that it cannot take."""


class Arguments:
    """What was asked for: one attribute for each flag and positional word, as the tables name them."""

    command: str
    log: str

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class HelpAsked(Exception):
    """The caller wants to read about a command (or "", all of them)."""

    def __init__(self, command: str) -> None:
        super().__init__(command)
        self.command = command


def read(
    found: Arguments,
    words: Sequence[str],
    general: tuple[Flag, ...],
    commands: Mapping[str, Command],
    defaults: Mapping[str, object],
) -> None:
    """Fills in `found` from the command line; `.command` is "" if only --version was asked for. What stood
    before a mistake is there even then. Raises UsageError, HelpAsked."""
    found.command = ""
    position = _flags(found, words, 0, general, defaults, [], stop=True)
    if position >= len(words):
        if getattr(found, "version", False):
            return
        raise UsageError("Could not run: no command was given (see --help)")
    command = words[position]
    if command == "help":
        raise HelpAsked(words[position + 1] if words[position + 1 :] else "")
    if command not in commands:
        raise UsageError(f"Could not run command {command!r}: it is unknown (see --help)")
    found.command = command
    flags, names, _ = commands[found.command]
    rest: list[str] = []
    greedy = bool(names) and names[-1].endswith("*")
    position = _flags(found, words, position + 1, flags, defaults, rest, stop=greedy)
    _positional(found, names, [*rest, *words[position:]])


def _flags(
    found: Arguments,
    words: Sequence[str],
    position: int,
    flags: tuple[Flag, ...],
    defaults: Mapping[str, object],
    rest: list[str],
    *,
    stop: bool,
) -> int:
    """Reads flags into `found`, other words into `rest`; ends before the first of these if `stop`."""
    for name, _, kind, _ in flags:
        attribute = name.replace("-", "_")
        setattr(found, attribute, defaults.get(name, _NOTHING.get(kind, "")))
    while position < len(words):
        word = words[position]
        if word == "--":
            if stop:
                return position + 1
            rest += words[position + 1 :]
            return len(words)
        if word[:1] != "-" or word == "-":
            if stop:
                return position
            rest.append(word)
            position += 1
            continue
        position += 1
        name, given, value = word.lstrip("-").partition("=")
        flag = _long(name, flags)
        if flag is None and word[1] != "-":
            flag, given, value = _letters(found, word, flags)
        if flag is None:
            raise UsageError(f"Could not understand flag {word}: it is not one of {_listed(flags)}")
        if not given and flag[2] != "yes or no":
            if position >= len(words):
                raise UsageError(f"Could not read flag --{flag[0]}: it needs a value")
            value = words[position]
            position += 1
        _set(found, flag, value if given or flag[2] != "yes or no" else "true")
    return position


def _long(name: str, flags: tuple[Flag, ...]) -> Flag | None:
    for flag in (*flags, HELP):
        if flag[0] == name:
            return flag
    return None


def _letters(found: Arguments, word: str, flags: tuple[Flag, ...]) -> tuple[Flag | None, str, str]:
    """`-it`, `-uroot`, `-u=root`: sets all but the last flag, returns that, and its value if it is there."""
    for index, letter in enumerate(word[1:], 1):
        flag = next((flag for flag in (*flags, HELP) if flag[1] == letter), None)
        if flag is None:
            return None, "", ""
        rest = word[index + 1 :]
        if not rest:
            return flag, "", ""
        if flag[2] != "yes or no" or rest[0] == "=":
            return flag, "=", rest.removeprefix("=")
        _set(found, flag, "true")
    return None, "", ""


def _set(found: Arguments, flag: Flag, text: str) -> None:
    name, _, kind, _ = flag
    if flag is HELP:
        raise HelpAsked(getattr(found, "command", ""))
    attribute = name.replace("-", "_")
    if isinstance(kind, tuple):
        if text not in kind:
            raise UsageError(f"Could not use --{name} {text}: it takes {' or '.join(kind)}")
        setattr(found, attribute, text)
        return
    try:
        value = _VALUES[kind](text)
    except ValueError:
        raise UsageError(f"Could not use --{name} {text}: it takes {kind}") from None
    if kind in ("texts", "numbers"):
        value = [*getattr(found, attribute), value]
    setattr(found, attribute, value)


def _positional(found: Arguments, names: tuple[str, ...], words: list[str]) -> None:
    taken = 0
    for name in names:
        plain = name.rstrip("?*")
        if name[-1] == "*":
            rest = words[taken:]
            setattr(found, plain, rest[1:] if rest[:1] == ["--"] else rest)
            return
        if taken < len(words):
            setattr(found, plain, words[taken])
            taken += 1
        elif name[-1] != "?":
            raise UsageError(f"Could not run {found.command}: its {plain} is missing (see --help)")
        else:
            setattr(found, plain, "")
    if taken < len(words):
        raise UsageError(f"Could not run {found.command}: {words[taken]!r} is one word too many")


def _yes_or_no(text: str) -> bool:
    if text in ("true", "True", "TRUE", "t", "T", "1"):
        return True
    if text in ("false", "False", "FALSE", "f", "F", "0"):
        return False
    raise ValueError(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def _bytes(text: str) -> int:
    """-1, or bytes as runc takes them (RAMInBytes of go-units): 64M, 1g, 1.5GiB."""
    if text == "-1":
        return -1
    number = text.rstrip("bBiIkKmMgGtTpP")
    unit = text[len(number) :].lower().removesuffix("b")
    unit = unit.removesuffix("i") if len(unit) == 2 else unit
    number = number.strip()
    if unit not in SIZES or not (number.isascii() and number.replace(".", "", 1).isdigit()):
        raise ValueError(text)
    return int(float(number) * SIZES[unit]) if "." in number else int(number) * SIZES[unit]


def _whole(text: str) -> int:
    """A whole number, which may be below 0."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(text)
    return int(text)


_VALUES: dict[str, Callable[[str], Any]] = {
    "yes or no": _yes_or_no,
    "text": str,
    "texts": str,
    "a number from 0 on": _count,
    "numbers": _count,
    "a whole number": _whole,
    "a number (of bytes: 64M)": _bytes,
}
_NOTHING: Mapping[object, Any] = {
    "yes or no": False,
    "texts": (),
    "numbers": (),
    "a number from 0 on": 0,
    "a whole number": None,
    "a number (of bytes: 64M)": None,
}


def _listed(flags: tuple[Flag, ...]) -> str:
    return ", ".join(f"--{flag[0]}" for flag in flags) or "none, for it takes none"


def help_text(program: str, command: str, general: tuple[Flag, ...], commands: Mapping[str, Command]) -> str:
    """What --help prints, for one command or for all."""
    if command not in commands:
        lines = [f"Usage: {program} [FLAG…] COMMAND [FLAG…] [WORD…]", "", "Commands:"]
        lines += [f"  {name:<10} {entry[2]}" for name, entry in commands.items()]
        return "\n".join([*lines, "", "Flags:", *_flag_lines(general)])
    flags, names, text = commands[command]
    words = " ".join(
        f"[{name.rstrip('?*').upper()}{'…' if name[-1] == '*' else ''}]" if name[-1] in "?*" else name.upper()
        for name in names
    )
    usage = f"Usage: {program} {command} [FLAG…] {words}".rstrip()
    return "\n".join([usage, "", f"{command}: {text}", "", *_flag_lines(flags)])


def _flag_lines(flags: tuple[Flag, ...]) -> list[str]:
    lines = []
    for name, letter, kind, text in (*flags, HELP):
        value = "" if kind == "yes or no" else f" {'|'.join(kind) if isinstance(kind, tuple) else 'VALUE'}"
        lines.append(f"  {f'--{name}' + (f', -{letter}' if letter else '') + value:<34} {text}")
    return lines
