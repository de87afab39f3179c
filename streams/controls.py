"""What may be changed while a build runs: each control with its unit, its range and what `none` means for it.

Pure: the command line reads values with it and shows them, the controller checks them again; nobody else decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

from pydantic import JsonValue

from connectors.errors import Refused
from streams.config_operation import TIERS, Throttle
from streams.state import Controls

READ = "?"


@dataclass(frozen=True, slots=True)
class Control:
    """`least`: with `above` itself out of range. `none`: what none means; `zero`: what 0 means, "" where it is refused.

    `whole`: no fractions.
    """

    name: str
    unit: str
    least: float
    most: float
    none: str
    zero: str = ""
    above: bool = False
    whole: bool = False

    @property
    def range(self) -> str:
        """In words."""
        none = f"none: {self.none}"
        if self.name == "tiers":
            return f"some of {', '.join(TIERS[:-1])}, in the order wanted; the rest comes last by itself; {none}"
        least = f"above {self.least:g} and up to" if self.above else f"{self.least:g} to"
        if self.zero:
            none = f"0 or {none}" if self.zero == self.none else f"0: {self.zero}; {none}"
        return f"{least} {self.most:,.15g}; {none}"

    def check(self, value: JsonValue) -> JsonValue:
        """As it is kept. Raises Refused for a value out of range."""
        if self.name == "tiers":
            return self._tiers(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._out_of_range(value)
        if value == 0 and self.zero:
            return None if self.zero == self.none else 0
        if not (self.least < value if self.above else self.least <= value) or value > self.most:
            raise self._out_of_range(value)
        if self.whole and value != int(value):
            raise self._out_of_range(value)
        return int(value) if self.whole else float(value)

    def _tiers(self, value: JsonValue) -> JsonValue:
        if value is None:
            return None
        names = value if isinstance(value, list) else []
        if not names or not all(name in TIERS for name in names) or len(set(map(str, names))) < len(names):
            raise self._out_of_range(",".join(map(str, names)) if names else value)
        if "rest" in names[:-1]:
            raise self._out_of_range(",".join(map(str, names)))
        return [*(name for name in names if name != "rest"), "rest"]

    def _out_of_range(self, value: JsonValue) -> Refused:
        shown = f"{value:,.15g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)[:80]
        return Refused(f"{self.name} {shown} is out of range", next_step=f"{self.unit}: {self.range}")


_NO_LIMIT, _CONFIGURED = "no limit", "as configured"
CONTROLS: Mapping[str, Control] = {
    control.name: control
    for control in (
        Control("replay_rate", "documents a second", 0, 1e6, _NO_LIMIT, zero=_NO_LIMIT, above=True),
        Control("budget_usd", "USD for the whole build", 0, 1e6, _NO_LIMIT, zero=_NO_LIMIT, above=True),
        Control("concurrency", "requests of the replay at once, of each worker", 1, 1024, _CONFIGURED, whole=True),
        Control("tiers", "order of the replay", 0, 0, _CONFIGURED),
        Control("max_live_lag", "events", 1, 1e12, _CONFIGURED, zero="off", whole=True),
        Control("max_weaviate_latency_ms", "milliseconds", 0, 3.6e6, _CONFIGURED, zero="off", above=True),
        Control("max_disk", "share of Weaviate's disk", 0, 1, _CONFIGURED, zero="off", above=True),
        Control("max_memory", "share of Weaviate's memory", 0, 1, _CONFIGURED, zero="off", above=True),
        Control("max_endpoint_errors", "share of the requests", 0, 1, _CONFIGURED, zero="off", above=True),
    )
}


class Unreadable(Exception):
    """What was typed is no change of a control; the message says what is wanted."""


def read(change: str) -> tuple[str, JsonValue]:
    """KEY=VALUE as typed to name and value, checked; KEY=? and ? to name (or "") and READ.

    Raises Unreadable for what is none, Refused for a value out of range.
    """
    if change == READ:
        return "", READ
    name, equals, text = change.partition("=")
    control = CONTROLS.get(name)
    if control is None:
        near = get_close_matches(name, CONTROLS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise Unreadable(f"there is nothing named {name!r} to set; {hint}known: {', '.join(CONTROLS)}")
    if text == READ:
        return name, READ
    if not equals or not text:
        raise Unreadable(f"{name} without a value: write {name}=VALUE ({control.unit}: {control.range}), or {name}=?")
    if text.lower() == "none":
        return name, control.check(None)
    if name == "tiers":
        parts = [part.strip() for part in text.split(",")]
        for part in parts:
            if part not in TIERS:
                near = get_close_matches(part, TIERS, 1)
                hint = f", did you mean {near[0]}?" if near else ""
                raise Unreadable(f"tiers={text}: there is no tier {part!r}{hint}; wanted: {control.range}")
        return name, control.check([*parts])
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Unreadable(f"{name}={text}: wanted is a number ({control.unit}: {control.range})")
    return name, control.check(number)


def changed(controls: Controls, args: Mapping[str, JsonValue]) -> Controls:
    """With what a command's arguments say; other arguments change nothing. Raises Refused for a value out of range."""
    return controls.model_copy(
        update={name: control.check(args[name]) for name, control in CONTROLS.items() if name in args}
    )


class Setting(NamedTuple):
    """A control as it stands. `source`: set, configuration, or default when nobody has said anything."""

    control: Control
    value: JsonValue
    source: str

    @property
    def text(self) -> str:
        """The value for people."""
        value = self.value
        if self.control.name == "tiers":
            return ",".join(map(str, value)) if isinstance(value, list) else "-"
        if value is None:
            return "no limit" if self.control.none == _NO_LIMIT or self.control.name == "concurrency" else "off"
        if value == 0:
            return "off"
        return f"{value:,.15g}" if isinstance(value, int | float) else str(value)


def standing(
    controls: Controls,
    throttle: Throttle,
    *,
    replay_rate: float | None,
    budget_usd: float | None,
    tiers: Sequence[str],
) -> list[Setting]:
    """Every control, in order. The named arguments are those of the configuration; `tiers`: the order they come to."""
    configured: dict[str, JsonValue] = {"replay_rate": replay_rate, "budget_usd": budget_usd, "tiers": [*tiers]}
    found: list[Setting] = []
    for name, control in CONTROLS.items():
        said = configured.get(name, getattr(throttle, name, None))
        value: JsonValue = getattr(controls, name)
        if control.none == _NO_LIMIT:  # these were taken from the configuration when the build began
            source = "default" if value is None and said is None else "configuration" if value == said else "set"
        elif value is not None:
            source = "set"
        else:
            value, source = said, "default" if said is None or said == ["rest"] else "configuration"
            if name in Throttle.model_fields and name not in throttle.model_fields_set:
                source = "default"
        found.append(Setting(control, value, source))
    return found


def summary(controls: Controls) -> str:
    """One line: the two limits always, the others where they were set."""
    rate = f"{controls.replay_rate:g} documents/s" if controls.replay_rate else _NO_LIMIT
    budget = f"{controls.budget_usd:g} USD" if controls.budget_usd else _NO_LIMIT
    said = [f"replay_rate {rate}", f"budget {budget}"]
    for name, control in CONTROLS.items():
        value = getattr(controls, name)
        if control.none == _CONFIGURED and value is not None:
            said.append(f"{name} {Setting(control, value, 'set').text}")
    return ", ".join(said)
