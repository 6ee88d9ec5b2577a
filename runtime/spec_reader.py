"""JSON objects read with their types checked, each wrong field named by its path in config.json.

Between somebody's JSON and frozen values stands one class: without it every reader of a field would have its
own idea of what a wrong one is called.
"""

from __future__ import annotations

from _collections_abc import Mapping  # `collections.abc` imports all of `collections`: 2 ms

from runtime.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Reader:
    """One JSON object and its path, with typed reads. All of them raise SpecError."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise SpecError(path or "config.json", "must be an object")
        self.value: Mapping[str, Any] = value
        self.path = path

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def text(self, key: str, default: str = "") -> str:
        return str(self._typed(key, str, "a string", default))

    def flag(self, key: str) -> bool:
        return bool(self._typed(key, bool, "true or false", False))

    def number(self, key: str, default: int = 0, *, low: int = 0, high: int = 2**64 - 1) -> int:
        value = self._typed(key, int, "a whole number", default)
        if isinstance(value, bool) or not low <= value <= high:
            raise SpecError(self.at(key), f"must be a whole number from {low} to {high}")
        return int(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._typed(key, list | tuple, "a list of strings", ())
        for index, entry in enumerate(value):
            if not isinstance(entry, str) or "\0" in entry:
                raise SpecError(f"{self.at(key)}[{index}]", "must be a string without NUL")
        return tuple(value)

    def object(self, key: str) -> Reader | None:
        value = self.value.get(key)
        return None if value is None else Reader(value, self.at(key))

    def objects(self, key: str) -> list[Reader]:
        value = self._typed(key, list | tuple, "a list of objects", ())
        return [Reader(entry, f"{self.at(key)}[{index}]") for index, entry in enumerate(value)]

    def mapping(self, key: str) -> Mapping[str, Any]:
        return dict(self._typed(key, Mapping, "an object", {}))

    def paths(self, key: str) -> tuple[str, ...]:
        for index, entry in enumerate(self.texts(key)):
            if not entry.startswith("/"):
                raise SpecError(f"{self.at(key)}[{index}]", f"{entry!r} is not an absolute path")
        return self.texts(key)

    def string_mapping(self, key: str) -> Mapping[str, str]:
        value = self.mapping(key)
        for name, entry in value.items():
            if not isinstance(entry, str):
                raise SpecError(f"{self.at(key)}[{name}]", "must be a string")
        return value

    def one_of(self, key: str, value: str, allowed: Sequence[str]) -> str:
        if value not in allowed:
            raise SpecError(self.at(key), f"{value!r} is not one of {', '.join(allowed)}")
        return value

    def _typed(self, key: str, kind: Any, wanted: str, default: Any) -> Any:
        value = self.value.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, str) and "\0" in value):
            raise SpecError(self.at(key), f"must be {wanted}")
        return value
