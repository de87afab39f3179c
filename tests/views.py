"""What the views of the state and progress topics would hold, as plain values: for whatever only reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from streams.progress import ProgressRecord
from streams.state import BuildState, CollectionState, unknown


@dataclass
class Views:
    """A StateView and a ProgressView in one."""

    collections: dict[str, CollectionState] = field(default_factory=dict)
    builds: dict[str, BuildState] = field(default_factory=dict)
    records: list[ProgressRecord] = field(default_factory=list)

    def collection(self, name: str) -> CollectionState:
        if name not in self.collections:
            raise unknown("collection", name, self.collections)
        return self.collections[name]

    def build(self, collection: str, version: str) -> BuildState:
        if f"{collection}/{version}" not in self.builds:
            raise unknown("version", version, self.builds)
        return self.builds[f"{collection}/{version}"]

    def builds_of(self, collection: str) -> list[BuildState]:
        return [build for build in self.builds.values() if build.collection == collection]

    def partitions(self, build: BuildState) -> list[ProgressRecord]:
        return self.records

    def serve(self, version: str | None) -> None:
        self.collections["docs"] = CollectionState(collection="docs", alias="Docs", topic="docs", serving=version)
