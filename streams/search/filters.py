"""What a query asks of a document's properties, from JSON to conditions.

Pure: it must never show a value, which may be personal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from connectors import reserved
from connectors.errors import ConfigurationError
from connectors.protocols import JSON, Condition, Operator, Scalar

_OPERATORS: tuple[Operator, ...] = get_args(Operator)


def conditions_of(asked: Mapping[str, JSON], types: Mapping[str, str]) -> tuple[Condition, ...]:
    """`{"lang": "en", "year": {"gte": 1990, "lt": 2000}, "kind": ["a", "b"]}`: all of them must hold.

    `types`: of the collection's declared properties. Raises ConfigurationError with what can be asked.
    """
    found: list[Condition] = []
    for name, wanted in asked.items():
        if isinstance(wanted, dict):
            for operator, value in wanted.items():
                found.append(_condition(name, operator, value))
        else:
            found.append(_condition(name, "in" if isinstance(wanted, list) else "eq", wanted))
    reserved.check_conditions(found, types)
    return tuple(found)


def _condition(name: str, asked: str, value: JSON) -> Condition:
    operator = next((known for known in _OPERATORS if known == asked), None)
    if operator is None:
        raise ConfigurationError(
            f"the filter on {name[:100]!r} has the unknown operator {asked[:100]!r}",
            next_step=f"use one of {', '.join(_OPERATORS)}, or a plain value",
        )
    return Condition(name, operator, _value(name, value))


def _value(name: str, value: JSON) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, str | int | float):  # bool too
        return value
    if isinstance(value, list):
        plain = tuple(one for one in value if isinstance(one, str | int | float))
        if len(plain) == len(value):
            return plain
    raise ConfigurationError(
        f"the filter on {name[:100]!r} has a value that is neither plain nor a list of plain ones",
        next_step='ask like {"lang": "en"}, {"year": {"gte": 1990}} or {"kind": ["a", "b"]}',
    )
