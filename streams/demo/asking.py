"""Questions to the search router, and the proof that an answer comes whole from the one space its route names.

It must never repair, retry or filter what the router answers.
"""

from __future__ import annotations

from connectors import reserved
from streams.search.answer import Answer
from streams.search.encoders import Outside
from streams.search.router import Router
from streams.views import StateView


class Asker:
    """Asks one collection for `depth` documents. Errors are the router's. `close` when done."""

    def __init__(self, outside: Outside, state: StateView, collection: str, depth: int) -> None:
        self._router = Router(outside, state)
        self._state = state
        self._collection = collection
        self._depth = depth

    async def ranked(self, query: str, version: str) -> list[str]:
        """The ids of the documents one version finds, best first."""
        answer = await self._router.search(self._collection, query, self._depth, version)
        return [hit.doc_id for hit in answer.hits]

    async def serving(self, query: str) -> tuple[str, str]:
        """Ask whatever version serves. The space its route resolved to, and what is mixed in the answer, or "".

        A query vector of another model's dimensions is refused by the space, and so counts as failed.
        """
        answer = await self._router.search(self._collection, query, self._depth)
        return answer.space, mixed(answer, [build.space for build in self._state.builds_of(self._collection)])

    async def close(self) -> None:
        await self._router.close()


def mixed(answer: Answer, spaces: list[str]) -> str:
    """What names another space than the answer's own, or "": its version's mark must be stored with every hit.

    Both versions write the same documents under the same ids, so that mark alone says whose vector a query has met.
    """
    if answer.space not in spaces:
        return f"{answer.space} is no version's space"
    marks = {str(hit.properties.get(reserved.SPACE)) for hit in answer.hits}
    if marks == {f"{answer.version}@{answer.fingerprint}"} and answer.space.endswith(answer.fingerprint):
        return ""
    return f"an answer of {answer.space} holds hits of {', '.join(sorted(marks)) or 'nothing'}"
