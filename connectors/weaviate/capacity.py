"""How much disk and memory Weaviate has left: its REST interface does not say, so pages of metrics or this machine do.

It only reads, and says what it could not learn; it must never guess a figure.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from connectors.aside import Aside
from connectors.errors import CrossfadeError, Transient
from connectors.http_get import HttpGet
from connectors.protocols import Capacity

SERIES = (
    "go_gc_gomemlimit_bytes",
    "go_memstats_sys_bytes",
    "go_memstats_heap_released_bytes",
    "node_filesystem_avail_bytes",
    "node_filesystem_size_bytes",
    "node_memory_MemAvailable_bytes",
    "node_memory_MemTotal_bytes",
)
MOST_BYTES = 4 * 2**20
LOOK_S = 2.0
_NO_LIMIT = 2.0**60  # Go writes 2^63 - 1 where nobody has set GOMEMLIMIT
_MEMINFO = Path("/proc/meminfo")

__all__ = ["Capacity", "CapacityReader", "CapacitySettings", "capacity", "read_pages"]


@dataclass(frozen=True, slots=True)
class CapacitySettings:
    """Where to look. `metrics`: pages of Weaviate's nodes, and of the node exporters beside them (one host, one node).

    `data_path`: of Weaviate's data; with `metrics` as its node exporter sees it, else on this machine. `here`: Weaviate
    runs on this machine. Without anything, nothing is known.
    """

    metrics: tuple[str, ...] = ()
    data_path: Path | None = None
    here: bool = False


class Node(NamedTuple):
    """What the pages of one host say, in bytes."""

    disk_free: int | None = None
    disk_total: int | None = None
    memory_used: int | None = None
    memory_limit: int | None = None


@dataclass(slots=True)
class CapacityReader:
    """Looks again and again, over the same connections. `close` it."""

    settings: CapacitySettings
    _pages: dict[str, HttpGet] = field(init=False)
    _disk: Aside[tuple[int, int]] = field(default_factory=lambda: Aside("disk of Weaviate"))

    def __post_init__(self) -> None:
        self._pages = {url: HttpGet(url, f"weaviate.metrics {url}", timeout_s=LOOK_S) for url in self.settings.metrics}

    async def read(self) -> Capacity:
        """Never raises for what cannot be read: that is in `troubles`. Takes `LOOK_S` at most."""
        if self.settings.metrics:
            return await self._from_pages()
        return await self._from_here()

    async def close(self) -> None:
        await asyncio.gather(*(page.close() for page in self._pages.values()))

    async def _from_pages(self) -> Capacity:
        troubles: list[str] = []

        async def page(url: str) -> tuple[str, str]:
            try:
                answer = await self._pages[url].get(MOST_BYTES, keep=lambda line: line.startswith(SERIES))
                if answer.status != 200:
                    raise Transient(f"weaviate.metrics {url} answered {answer.status}")
            except CrossfadeError as error:
                troubles.append(error.message)
                return url, ""
            return url, answer.content.decode(errors="replace")

        pages = await asyncio.gather(*(page(url) for url in self.settings.metrics))
        found = read_pages([(url, text) for url, text in pages if text], self.settings.data_path)
        return replace(found, troubles=(*troubles, *found.troubles))

    async def _from_here(self) -> Capacity:
        path, troubles = self.settings.data_path, []
        free = total = None
        if path is None:
            troubles.append("nobody says where Weaviate's disk is: set weaviate.metrics or weaviate.data_path")
        else:
            try:
                usage = await self._disk.run(lambda: shutil.disk_usage(path)[::2], LOOK_S)
                total, free = usage
            except TimeoutError:
                troubles.append(f"weaviate.data_path {path} did not answer within {LOOK_S:g} s")
            except OSError as error:
                troubles.append(f"weaviate.data_path {path} cannot be looked at: {error.strerror}")
        used, limit = _memory_here() if self.settings.here or path is not None else (None, None)
        if limit is None:
            troubles.append("nobody says how much memory Weaviate has: set weaviate.metrics")
        return Capacity(free, total, used, limit, tuple(troubles))


async def capacity(settings: CapacitySettings) -> Capacity:
    """One look. Never raises for what cannot be read: that is in `troubles`. Takes `LOOK_S` at most."""
    reader = CapacityReader(settings)
    try:
        return await reader.read()
    finally:
        await reader.close()


def read_pages(pages: Iterable[tuple[str, str]], data_path: Path | None) -> Capacity:
    """Pages of metrics by URL, in Prometheus' text format, to the fullest disk and the fullest memory of all nodes."""
    nodes: dict[str, list[Mapping[str, list[Sample]]]] = {}
    troubles: list[str] = []
    for url, text in pages:
        try:
            nodes.setdefault(urlsplit(url).hostname or url, []).append(_samples(text))
        except ValueError:  # the library's error would show the line
            troubles.append(f"weaviate.metrics {url} is no page of Prometheus metrics")
    found = [_node(host, of_host, data_path, troubles) for host, of_host in nodes.items()]
    disks = [(n.disk_free, n.disk_total) for n in found if n.disk_free is not None and n.disk_total]
    limited = [(n.memory_used, n.memory_limit) for n in found if n.memory_used is not None and n.memory_limit]
    if not disks:
        troubles.append("weaviate.metrics names no page with a disk: add the node exporter's")
    if not limited:
        troubles.append("weaviate.metrics names no memory limit: set GOMEMLIMIT for Weaviate, or add the node exporter")
    free, total = min(disks, key=lambda disk: disk[0] / disk[1], default=(None, None))
    used, limit = max(limited, key=lambda memory: memory[0] / memory[1], default=(None, None))
    if used is None:
        used = max((n.memory_used for n in found if n.memory_used is not None), default=None)
    return Capacity(free, total, used, limit, tuple(troubles))


def _samples(text: str) -> Mapping[str, list[Sample]]:
    """By name. Raises ValueError for what is no Prometheus text."""
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not 0 <= sample.value < math.inf:
                raise ValueError("no number of bytes")
            found.setdefault(sample.name, []).append(sample)
    return found


def _node(host: str, pages: Sequence[Mapping[str, list[Sample]]], data_path: Path | None, troubles: list[str]) -> Node:
    """A node exporter tells the machine, also about itself as a Go process; the page beside it is Weaviate's."""
    node = Node()
    for page in pages:
        if "node_memory_MemTotal_bytes" in page or "node_filesystem_avail_bytes" in page:
            free, total = _disk(page, host, data_path, troubles)
            node = node._replace(disk_free=free, disk_total=total)
            machine, available = _one(page, "node_memory_MemTotal_bytes"), _one(page, "node_memory_MemAvailable_bytes")
            if machine is not None and available is not None and node.memory_limit is None:
                node = node._replace(memory_used=int(machine - available), memory_limit=int(machine))
            continue
        taken, given_back = _one(page, "go_memstats_sys_bytes"), _one(page, "go_memstats_heap_released_bytes")
        if taken is None:
            continue
        limit = _one(page, "go_gc_gomemlimit_bytes")
        used = int(taken - (given_back or 0.0))  # what Go holds against GOMEMLIMIT
        if limit is not None and 0 < limit < _NO_LIMIT:
            node = node._replace(memory_used=used, memory_limit=int(limit))
        elif node.memory_limit is None:
            node = node._replace(memory_used=used)
    return node


def _disk(
    page: Mapping[str, list[Sample]], host: str, data_path: Path | None, troubles: list[str]
) -> tuple[int | None, int | None]:
    """The file system that holds `data_path`, as `df` would name it; without a path the only one there is."""
    free = {s.labels.get("mountpoint", ""): s.value for s in page.get("node_filesystem_avail_bytes", [])}
    total = {s.labels.get("mountpoint", ""): s.value for s in page.get("node_filesystem_size_bytes", [])}
    mounts = [mount for mount in free if total.get(mount)]
    if data_path is not None:
        path = PurePosixPath(data_path)
        mounts = [mount for mount in mounts if path.is_relative_to(mount)]
    elif len(mounts) > 1:
        troubles.append(f"the node exporter of {host} has {len(mounts)} file systems: set weaviate.data_path")
        return None, None
    if not mounts:
        return None, None
    mount = max(mounts, key=len)
    return int(free[mount]), int(total[mount])


def _one(page: Mapping[str, list[Sample]], name: str) -> float | None:
    samples = page.get(name)
    return samples[0].value if samples else None


def _memory_here() -> tuple[int | None, int | None]:
    """Used and total bytes of this machine, where it is a Linux one."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return None, None
    return total - available, total
