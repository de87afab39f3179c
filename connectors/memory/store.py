"""A vector store in this process, with Weaviate's semantics, for unit tests, simulations and the contract suite.

It must never accept what Weaviate would refuse, use real time or start a thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol
from uuid import UUID

import numpy as np

from connectors import reserved
from connectors.errors import NotFound, Refused, Transient
from connectors.protocols import JSON, Condition, Head, Hit, SpaceObject, SpaceSpec, Vectors

Effect = Literal["lost", "applied", "late", "unindexed"]

PAGE = 2000


@dataclass(frozen=True, slots=True)
class Write:
    """One write as the faults see it: an upsert (`objects`), a delete (`uuids`) or a delete of chunks."""

    space: str
    verb: Literal["upsert", "delete", "erase", "delete_chunks"]
    objects: tuple[SpaceObject, ...] = ()
    uuids: tuple[UUID, ...] = ()
    doc_hashes: tuple[str, ...] = ()
    from_chunk: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls a write. `error` is raised by the call after its effect was lost, applied or put off (`late`).

    A late effect waits in `MemoryStore.late` until `MemoryStore.land` lets it happen, on whatever is stored then.
    `unindexed`: applied, but the store died before its index was written, as Weaviate may: the objects are in a scan
    and in searches, yet no filter finds them, also not when the same vector is written again.
    Without `error` the call is answered, and `objects` fail in it one by one: these are not stored.
    """

    error: Transient | None = None
    effect: Effect = "lost"
    objects: Mapping[UUID, Exception] = field(default_factory=dict)


class Faults(Protocol):
    """Consulted around every call. Each may await, to let other tasks of a simulation run in between."""

    async def before_read(self, space: str) -> None:
        """May raise a Transient: the read then failed."""
        ...

    async def before_write(self, write: Write) -> Fault | None:
        """None: the write goes well."""
        ...

    async def after_write(self, write: Write) -> None:
        """The effect is there, the answer not yet. May raise: the answer is then lost."""
        ...


class NoFaults:
    """Everything goes well."""

    async def before_read(self, space: str) -> None:
        return None

    async def before_write(self, write: Write) -> Fault | None:
        return None

    async def after_write(self, write: Write) -> None:
        return None


@dataclass(slots=True)
class _Held:
    """What one space holds; `by_doc` finds a document's objects without a scan."""

    spec: SpaceSpec
    types: Mapping[str, str]
    objects: dict[UUID, tuple[dict[str, JSON], Vectors]] = field(default_factory=dict)
    by_doc: dict[str, set[UUID]] = field(default_factory=dict)
    unindexed: set[UUID] = field(default_factory=set)

    def put(self, obj: SpaceObject) -> None:
        lost = obj.uuid in self.unindexed
        before = self.objects.get(obj.uuid)
        self.remove(obj.uuid)
        properties: dict[str, JSON] = {}
        for name, value in obj.properties.items():
            if self.types[name] == "date" and isinstance(value, str):
                properties[name] = reserved.date_as_stored(value)
            elif self.types[name] == "number" and isinstance(value, int):
                properties[name] = float(value)
            elif value is not None:
                properties[name] = value
        self.objects[obj.uuid] = (properties, obj.vector.copy())
        if lost and before is not None and np.array_equal(before[1], obj.vector):  # only what differs is indexed
            self.unindexed.add(obj.uuid)
        self.by_doc.setdefault(str(properties[reserved.DOC_HASH]), set()).add(obj.uuid)

    def remove(self, uuid: UUID) -> bool:
        stored = self.objects.pop(uuid, None)
        self.unindexed.discard(uuid)
        if stored is None:
            return False
        doc_hash = str(stored[0][reserved.DOC_HASH])
        self.by_doc[doc_hash].discard(uuid)
        if not self.by_doc[doc_hash]:
            del self.by_doc[doc_hash]
        return True

    def chunks_from(self, doc_hashes: Sequence[str], from_chunk: int) -> list[UUID]:
        found: list[UUID] = []
        for doc_hash in set(doc_hashes):
            for uuid in self.by_doc.get(doc_hash, set()) - self.unindexed:
                chunk = self.objects[uuid][0][reserved.CHUNK]
                if isinstance(chunk, int) and chunk >= from_chunk:
                    found.append(uuid)
        return found


class MemoryStore:
    """A `VectorStore`. `faults` may be replaced at any time; `late` holds the writes that have yet to land."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults: Faults = faults or NoFaults()
        self.late: list[Write] = []
        self._spaces: dict[str, _Held] = {}
        self._aliases: dict[str, str] = {}

    async def create_space(self, spec: SpaceSpec) -> None:
        reserved.check_spec(spec)
        if spec.name in self._aliases:
            raise Refused(f"{spec.name} is the name of an alias", next_step="name the space otherwise")
        held = self._spaces.get(spec.name)
        if held is None:
            self._spaces[spec.name] = _Held(spec, {**reserved.TYPES, **spec.properties})
        elif held.spec.description != spec.description:
            raise Refused(
                f"a space {spec.name} exists with another description",
                next_step="start a new build of the version: it gets a name of its own",
            )

    async def description(self, name: str) -> str | None:
        held = self._spaces.get(name)
        return held.spec.description if held else None

    async def properties(self, name: str) -> Mapping[str, str]:
        held = self._spaces.get(name)
        if held is None:
            raise reserved.gone(name)
        return dict(held.spec.properties)

    async def drop_space(self, name: str) -> None:
        self._spaces.pop(name, None)

    async def spaces(self) -> list[str]:
        return sorted(self._spaces)

    def space(self, name: str) -> MemorySpace:
        reserved.check_name(name)
        return MemorySpace(self, name)

    async def alias_target(self, alias: str) -> str | None:
        return self._aliases.get(alias)

    async def point_alias(self, alias: str, space: str) -> None:
        reserved.check_name(alias)
        if space not in self._spaces:
            raise NotFound(
                f"the space {space} does not exist", next_step="`crossfade status` lists the spaces there are"
            )
        if alias in self._spaces:
            raise Refused(f"{alias} is the name of a space", next_step="choose another name for the alias")
        self._aliases[alias] = space

    async def drop_alias(self, alias: str) -> None:
        self._aliases.pop(alias, None)

    async def close(self) -> None:
        return None

    def held(self, name: str) -> _Held:
        """What the space holds, for its `MemorySpace`. Raises IdentityChanged when there is no such space."""
        if name not in self._spaces:
            raise reserved.gone(name)
        return self._spaces[name]

    def land(self, write: Write) -> None:
        """Let one late write take effect now. A space dropped meanwhile stays dropped."""
        at = next(i for i, late in enumerate(self.late) if late is write)  # equal ones are different requests
        del self.late[at]
        if write.space in self._spaces:
            self.apply(write)

    def apply(self, write: Write) -> int:
        """Carry out, and return how many objects were stored or removed."""
        held = self.held(write.space)
        if write.verb == "upsert":
            for obj in write.objects:
                held.put(obj)
            return len(write.objects)
        doomed = held.chunks_from(write.doc_hashes, write.from_chunk) if write.verb == "delete_chunks" else write.uuids
        if write.verb == "delete":
            doomed = [uuid for uuid in doomed if uuid not in held.unindexed]
        return sum(held.remove(uuid) for uuid in doomed)


class MemorySpace:
    """A `Space` of a `MemoryStore`: exact search, everything else as Weaviate does it."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        self.name = name
        self._store = store

    async def _read(self) -> _Held:
        await self._store.faults.before_read(self.name)
        return self._store.held(self.name)

    async def _write(self, write: Write) -> tuple[int, Fault]:
        self._store.held(self.name)
        fault = await self._store.faults.before_write(write) or Fault()
        if fault.objects:
            write = Write(self.name, write.verb, objects=tuple(o for o in write.objects if o.uuid not in fault.objects))
        done = 0
        if fault.error is None or fault.effect in ("applied", "unindexed"):
            done = self._store.apply(write)
            if fault.effect == "unindexed":
                self._store.held(self.name).unindexed.update(obj.uuid for obj in write.objects)
        elif fault.effect == "late":
            self._store.late.append(write)
        if fault.error is not None:
            raise fault.error
        await self._store.faults.after_write(write)
        return done, fault

    async def heads(self, uuids: Sequence[UUID], *, vectors: bool = False) -> Mapping[UUID, Head]:
        held = await self._read()
        found: dict[UUID, Head] = {}
        for uuid in uuids:
            if uuid in held.objects and uuid not in held.unindexed:
                properties, vector = held.objects[uuid]
                found[uuid] = reserved.head_of(uuid, properties, vector.copy() if vectors else None)
        return found

    async def upsert(self, objects: Sequence[SpaceObject]) -> Mapping[UUID, Exception]:
        assert len({obj.uuid for obj in objects}) == len(objects), "one id twice in one call: which is newer?"
        held = self._store.held(self.name)
        failed: dict[UUID, Exception] = {}
        good: list[SpaceObject] = []
        for obj in objects:
            if wrong := reserved.check_object(obj, held.types, held.spec.dimensions):
                failed[obj.uuid] = wrong
            else:
                good.append(obj)
        if good:
            _, fault = await self._write(Write(self.name, "upsert", objects=tuple(good)))
            failed.update((uuid, error) for uuid, error in fault.objects.items())
        return failed

    async def delete(self, uuids: Sequence[UUID]) -> None:
        await self._write(Write(self.name, "delete", uuids=tuple(uuids)))

    async def erase(self, uuids: Sequence[UUID]) -> None:
        await self._write(Write(self.name, "erase", uuids=tuple(uuids)))

    async def delete_chunks(self, doc_hashes: Sequence[str], from_chunk: int) -> int:
        done, _ = await self._write(
            Write(self.name, "delete_chunks", doc_hashes=tuple(doc_hashes), from_chunk=from_chunk)
        )
        return done

    async def scan(self, page: int | None = None, share: float = 1.0) -> AsyncIterator[list[Head]]:
        after: UUID | None = None
        while True:
            objects = (await self._read()).objects
            uuids = sorted(uuid for uuid in objects if after is None or uuid > after)[: page or PAGE]
            if not uuids:
                return
            yield [reserved.head_of(uuid, objects[uuid][0]) for uuid in uuids]
            after = uuids[-1]

    async def count(self) -> int:
        return len((await self._read()).objects)

    async def properties(self, uuids: Sequence[UUID]) -> Mapping[UUID, Mapping[str, JSON]]:
        held = await self._read()
        return {u: dict(held.objects[u][0]) for u in uuids if u in held.objects and u not in held.unindexed}

    async def search(self, vector: Vectors, limit: int, filters: Sequence[Condition] = ()) -> list[Hit]:
        held = await self._read()
        if wrong := reserved.check_vector(vector, held.spec.dimensions):
            raise wrong
        reserved.check_conditions(filters, held.types)
        uuids = [u for u, (stored, _) in held.objects.items() if reserved.matches(stored, filters, held.types)]
        if limit < 1 or not uuids:
            return []
        distances = _distances(held.spec.metric, np.stack([held.objects[uuid][1] for uuid in uuids]), vector)
        shown = {*reserved.SHOWN, *held.spec.properties}
        hits: list[Hit] = []
        for at in np.argsort(distances, kind="stable")[:limit]:
            properties = held.objects[uuids[at]][0]
            head = reserved.head_of(uuids[at], properties)
            distance = float(distances[at])
            hits.append(
                Hit(
                    uuid=head.uuid,
                    doc_id=head.doc_id,
                    chunk=head.chunk,
                    score=reserved.score_of(held.spec.metric, distance),
                    distance=distance,
                    properties={name: value for name, value in properties.items() if name in shown},
                    offset=head.offset,
                )
            )
        return hits

    async def indexing_queue(self) -> int:
        await self._read()
        return 0


def _distances(metric: str, stored: Vectors, query: Vectors) -> Vectors:
    """float32[n], as Weaviate defines each metric: smaller is nearer."""
    match metric:
        case "cosine":
            lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(query)
            return np.asarray(1.0 - (stored @ query) / lengths, dtype=np.float32)
        case "dot":
            return np.asarray(-(stored @ query), dtype=np.float32)
        case _:
            return np.asarray(((stored - query) ** 2).sum(axis=1), dtype=np.float32)
