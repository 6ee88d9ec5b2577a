"""Frozen, slotted values without `dataclasses`.

A plugin program lives for some milliseconds, and a runtime starts two for every pod. Importing `dataclasses`
(it brings inspect, ast, re and enum) costs 23 ms of CPU, more than starting Python itself, and each decorated
class another half, since its methods are compiled from text. Classes made here are used in the same way:
annotated fields with defaults, positional or by keyword; equal, hashable and printed by their values.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_):
        return lambda function: function


@dataclass_transform(frozen_default=True)
def frozen(cls: type[T]) -> type[T]:
    """The class with its annotated fields as slots. Defaults are shared: they must not be changed."""
    fields = tuple(cls.__annotations__)
    written = dict(vars(cls))
    defaults = {name: written[name] for name in fields if name in written}
    for name in (*defaults, "__dict__", "__weakref__"):
        written.pop(name, None)
    space = _METHODS | written | {"__slots__": fields, "__match_args__": fields, "_defaults": defaults}
    made: Any = type(cls.__name__, cls.__bases__, space)
    made._setters = tuple([vars(made)[name].__set__ for name in fields])
    return made  # type: ignore[no-any-return]


def replace(value: T, **changes: Any) -> T:
    """The value with other contents in some fields."""
    return type(value)(**(_values(value) | changes))


def _values(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _init(self: Any, *given: Any, **named: Any) -> None:
    fields = self.__slots__
    if not named and len(given) == len(fields):
        for put, value in zip(self._setters, given, strict=True):
            put(self, value)
        return
    values = {**self._defaults, **dict(zip(fields, given, strict=False)), **named}
    twice = given and named and not named.keys().isdisjoint(fields[: len(given)])
    if len(given) > len(fields) or len(values) != len(fields) or twice:
        raise TypeError(f"Could not make {type(self).__name__} of {given} and {named}: it has {fields}")
    for put, name in zip(self._setters, fields, strict=True):
        put(self, values[name])


def _tuple(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__slots__])


def _eq(self: Any, other: object) -> Any:
    return _tuple(self) == _tuple(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_tuple(self))


def _repr(self: Any) -> str:
    return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in _values(self).items())})"


def _reduce(self: Any) -> Any:
    return type(self), _tuple(self)


def _refuse(self: Any, name: str, *_: Any) -> None:
    raise AttributeError(f"Could not change {name} of a frozen {type(self).__name__}")


_METHODS: dict[str, Any] = {
    "__init__": _init,
    "__eq__": _eq,
    "__hash__": _hash,
    "__repr__": _repr,
    "__reduce__": _reduce,
    "__setattr__": _refuse,
    "__delattr__": _refuse,
}
