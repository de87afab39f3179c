"""Plots of the report as inline SVG, in lines that read on paper and in the dark.

Pure, and without a word from outside: what stands in a plot is numbers, units and marks; all of it is escaped anyway.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

WIDTH, HEIGHT = 720, 220
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 22, 36


class Line(NamedTuple):
    """`points`: (milliseconds since the epoch, value), in order of time; None breaks the line. `unit`: of the value."""

    name: str
    points: Sequence[tuple[int, float] | None]
    dashed: bool = False


class Mark(NamedTuple):
    """A number above the plot, at its time."""

    at_ms: int
    number: int


@dataclass(frozen=True, slots=True)
class Plot:
    """`axis`: what the vertical axis shows, with its unit."""

    title: str
    axis: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()

    @property
    def empty(self) -> bool:
        return sum(point is not None for line in self.lines for point in line.points) < 2


def svg(plot: Plot) -> str:
    """One SVG element; the plot must not be `empty`."""
    known = [point for line in plot.lines for point in line.points if point is not None]
    begin, end = min(at for at, _ in known), max(at for at, _ in known)
    span = max(1, end - begin)
    most = max(value for _, value in known)
    steps = ticks(most)
    top = max(steps[-1], most)

    def x(at_ms: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at_ms - begin) / span

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="plot">',
        f"<title>{html.escape(plot.title)}</title>",
    ]
    for step in steps:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(step):.1f}" y2="{y(step):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(step) + 4:.1f}" text-anchor="end">{number(step)}</text>')
    for at_ms, anchor in ((begin, "start"), ((begin + end) / 2, "middle"), (end, "end")):
        label = clock(at_ms, span)
        parts.append(f'<text x="{x(at_ms):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">time (UTC)</text>')
    parts.append(f'<text x="4" y="12">{html.escape(plot.axis)}</text>')
    parts += _marks(plot, x, begin, end)
    for at, line in enumerate(plot.lines):
        style = f'class="line line{at}"' + (' stroke-dasharray="6 4"' if line.dashed else "")
        for stretch in _stretches(line.points):
            shown = " ".join(f"{x(at_ms):.1f},{y(value):.1f}" for at_ms, value in stretch)
            if len(stretch) == 1:
                (at_ms, value) = stretch[0]
                parts.append(f'<circle class="dot{at}" cx="{x(at_ms):.1f}" cy="{y(value):.1f}" r="2"/>')
            else:
                parts.append(f'<polyline {style} points="{shown}"/>')
    return "".join([*parts, "</svg>"])


def _marks(plot: Plot, x: Callable[[float], float], begin: int, end: int) -> list[str]:
    parts: list[str] = []
    last = -math.inf
    for mark in plot.marks:
        if not begin <= mark.at_ms <= end:
            continue
        at = x(mark.at_ms)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        if at - last >= 14:  # numbers that would lie upon each other are left to the table
            parts.append(f'<text class="number" x="{at:.1f}" y="{TOP - 3}" text-anchor="middle">{mark.number}</text>')
            last = at
    return parts


def _stretches(points: Iterable[tuple[int, float] | None]) -> list[list[tuple[int, float]]]:
    stretches: list[list[tuple[int, float]]] = [[]]
    for point in points:
        if point is None:
            stretches.append([])
        else:
            stretches[-1].append(point)
    return [stretch for stretch in stretches if stretch]


def ticks(most: float) -> list[float]:
    """0 and three to six round steps; the last one is at or above `most`."""
    if most <= 0 or not math.isfinite(most):
        return [0.0, 1.0]
    rough = most / 5
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * 0.999)
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]


def number(value: float) -> str:
    """1,234, 0.25, 1.5M: as short as an axis wants it."""
    for scale, unit in ((1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:,.0f}" if value == round(value) else f"{value:.3g}"


def clock(at_ms: float, span_ms: int) -> str:
    """The time of day, to the second when little of it is shown; with the date when much is."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    if span_ms > 36 * 3_600_000:
        return at.strftime("%Y-%m-%d %H:%M")
    return at.strftime("%H:%M:%S" if span_ms < 3_600_000 else "%H:%M")
