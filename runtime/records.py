"""Frozen, slotted values without the price of `dataclasses`.

Shims are forked from a forkserver, one per pod, and each page that a fork touches is copied. Importing
`dataclasses` pulls in inspect, ast, dis and typing: about 2 MB and 8 ms here. A class statement over `Record`
gives what we use of it: slots, a constructor by position or name with defaults, equality, hash, repr, and no
assignment afterwards.

The annotations are read from the class namespace, so a module that defines records needs
`from __future__ import annotations` (which also keeps them strings on Python 3.14).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, TypeVar, dataclass_transform

    Kind = TypeVar("Kind", bound="Record")
else:

    def dataclass_transform(**_options):
        """At run time the decorator has nothing to do; type checkers read it."""
        return lambda decorated: decorated


@dataclass_transform(frozen_default=True)
class RecordType(type):
    """The metaclass: turns annotations into slots and remembers the defaults."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> RecordType:
        own = [f for f, t in namespace.get("__annotations__", {}).items() if not t.startswith("ClassVar")]
        fields: list[str] = []
        defaults: dict[str, Any] = {}
        for base in bases:
            fields += [f for f in getattr(base, "_fields", ()) if f not in fields]
            defaults.update(getattr(base, "_defaults", {}))
        slots = [f for f in own if f not in fields]
        defaults.update({f: namespace.pop(f) for f in own if f in namespace})
        namespace["__slots__"] = tuple(slots)
        namespace["_fields"] = tuple(fields + slots)
        namespace["_defaults"] = defaults
        tail: tuple[Any, ...] = ()
        for field in reversed(namespace["_fields"]):
            if field not in defaults:
                break
            tail = (defaults[field], *tail)
        namespace["_tail"] = tail
        namespace["_setters"] = None
        return super().__new__(mcs, name, bases, namespace)


class Record(metaclass=RecordType):
    """Base of all frozen values of this room."""

    if TYPE_CHECKING:
        _fields: ClassVar[tuple[str, ...]]

    if not TYPE_CHECKING:

        def __init__(self, *args, **kwargs):
            setters = self._setters or self._prepare()
            missing = len(setters) - len(args)
            if missing and 0 < missing <= len(self._tail) and not kwargs:
                args += self._tail[-missing:]
                missing = 0
            if not missing and not kwargs:
                for setter, value in zip(setters, args, strict=True):
                    setter(self, value)
                return
            fields = self._fields
            if len(args) > len(fields):
                raise TypeError(f"{type(self).__name__} takes {len(fields)} values, got {len(args)}")
            values = {**self._defaults, **dict(zip(fields, args, strict=False)), **kwargs}
            if len(values) != len(fields) or any(f not in values for f in fields):
                wrong = set(fields) ^ set(values)
                raise TypeError(f"{type(self).__name__}: missing or unknown {', '.join(sorted(wrong))}")
            for field, setter in zip(fields, setters, strict=True):
                setter(self, values[field])

        @classmethod
        def _prepare(cls):
            """What sets each field; made with the first value, since most classes never have one."""
            cls._setters = tuple(getattr(cls, field).__set__ for field in cls._fields)
            return cls._setters

        def __setattr__(self, name, value):
            raise AttributeError(f"{type(self).__name__} is frozen")

        def __delattr__(self, name):
            raise AttributeError(f"{type(self).__name__} is frozen")

        def _values(self):
            return tuple(getattr(self, field) for field in self._fields)

        def __eq__(self, other):
            return type(self) is type(other) and self._values() == other._values()

        def __hash__(self):
            return hash((type(self).__name__, self._values()))

        def __repr__(self):
            shown = ", ".join(f"{field}={getattr(self, field)!r}" for field in self._fields)
            return f"{type(self).__name__}({shown})"

        def __reduce__(self):
            return (type(self), self._values())


def replaced(record: Kind, **values: Any) -> Kind:
    """The same with other values in some fields."""
    return type(record)(**{**{name: getattr(record, name) for name in record._fields}, **values})
