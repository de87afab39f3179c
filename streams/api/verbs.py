"""Every operator verb that changes something, as a resource; each sends the command that the command line would send.

The controller decides and refuses; nothing here writes the state, a space or an alias.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import JsonValue

from streams.api.asking import MAY_WAIT, Asker, Asking
from streams.api.models import (
    Change,
    Cutover,
    Ending,
    Outcome,
    Pause,
    Rollback,
    Said,
    Start,
    VersionName,
)
from streams.api.problems import Answered, problem
from streams.config import envelope_of
from streams.controls import CONTROLS

routes = APIRouter(tags=["verbs"])
NO_REASON = Said()
OF_VERSION = "/collections/{collection}/versions/{version}"


@routes.post(f"{OF_VERSION}/start")
async def start(version: VersionName, asker: Asking, asked: Annotated[Start, Body()]) -> Outcome:
    """Begin building a version: its own space, written live from now on, its history replayed beside."""
    configured = asker.backend.current.collection(asker.collection)
    args: dict[str, JsonValue] = {"fingerprint": envelope_of(configured, configured.version(version)).fingerprint}
    if asked.replay_rate is not None:
        args["replay_rate"] = asked.replay_rate
    done = await asker.ask("start", version, args, asked.why)
    return asker.answer(done, f"GET /collections/{asker.collection}/versions/{version}")


@routes.post(f"{OF_VERSION}/pause")
async def pause(version: VersionName, asker: Asking, asked: Annotated[Pause, Body()]) -> Outcome:
    """Hold the replay until `resume`; live events are still written, unless `all`."""
    asker.build(version)
    args: dict[str, JsonValue] = {"all": asked.all}
    done = await asker.ask("pause", version, args, asked.why)
    return asker.answer(done, f"POST /collections/{asker.collection}/versions/{version}/resume")


@routes.post(f"{OF_VERSION}/resume")
async def resume(version: VersionName, asker: Asking, asked: Annotated[Said, Body()]) -> Outcome:
    """Let a version go on after `pause`, or after it stopped for a cause that has been removed."""
    asker.build(version)
    done = await asker.ask("resume", version, {}, asked.why)
    return asker.answer(done, f"GET /collections/{asker.collection}/versions/{version}")


@routes.post(f"{OF_VERSION}/set")
async def set_(version: VersionName, asker: Asking, asked: Annotated[Change, Body()]) -> Outcome:
    """Change a build while it runs: `replay_rate`, `budget_usd`, `concurrency`, `tiers`, and the throttle's bounds."""
    asker.build(version)
    unknown = [name for name in asked.changes if name not in CONTROLS]
    if unknown:
        raise Answered(
            problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"{len(unknown)} of the changes are of nothing that can be set",
                f"known: {', '.join(CONTROLS)}",
                kind="invalid",
                title="The request does not fit",
            )
        )
    args = {name: CONTROLS[name].check(value) for name, value in asked.changes.items()}
    done = await asker.ask("set", version, args, asked.why)
    return asker.answer(done, f"GET /collections/{asker.collection}/versions/{version}")


@routes.post(f"{OF_VERSION}/abort")
async def abort(version: VersionName, asker: Asking, asked: Annotated[Ending, Body()]) -> Outcome:
    """Give up a build and delete its space. Refused for the version that serves."""
    asker.build(version)
    args: dict[str, JsonValue] = {"confirm": asked.confirm}
    done = await asker.ask("abort", version, args, asked.why)
    return asker.answer(done, f"POST /collections/{asker.collection}/versions/{version}/start")


@routes.post(f"{OF_VERSION}/retire")
async def retire(version: VersionName, asker: Asking, asked: Annotated[Ending, Body()]) -> Outcome:
    """Stop writing a version and delete its space; nothing can go back to it. Refused for the version that serves."""
    asker.build(version)
    args: dict[str, JsonValue] = {"confirm": asked.confirm}
    done = await asker.ask("retire", version, args, asked.why)
    return asker.answer(done, f"GET /collections/{asker.collection}")


@routes.post(f"{OF_VERSION}/cutover", responses=MAY_WAIT)
async def cutover(version: VersionName, asker: Asking, asked: Annotated[Cutover, Body()]) -> Outcome:
    """Move search to a version, atomically, once a sweep has found its space equal to the log and the gate lets it
    pass; 202 when it then waits, for somebody's approval or a file. `check` only reports. `data` says what was found;
    `data.answers` whether the proof after it went well."""
    asker.build(version)
    given = asked.model_dump(exclude={"why"}, exclude_defaults=True)
    seen: dict[str, JsonValue] = {}
    if not (asked.approve or asked.cancel):
        seen["from"] = asker.backend.state.collection(
            asker.collection
        ).serving  # refused if somebody swaps before it arrives
    done = await asker.ask("cutover", version, given, asked.why, seen=seen)
    unmoved = asked.check or asked.cancel
    then = f"POST {OF_VERSION}/cutover".format(collection=asker.collection, version=version)
    return asker.answer(
        done, then if unmoved else f"POST /collections/{asker.collection}/rollback, if anything is wrong"
    )


@routes.post("/collections/{collection}/rollback")
async def rollback(asker: Asking, asked: Annotated[Rollback, Body()]) -> Outcome:
    """Move search back to the previous version, which was kept current. Refused when something else serves by the time
    it arrives than when it was asked, or when somebody has just rolled back already."""
    serving = asker.backend.state.collection(asker.collection).serving
    args: dict[str, JsonValue] = asked.model_dump(exclude={"why", "from_version"}, exclude_defaults=True)
    seen: dict[str, JsonValue] = {"from": asked.from_version or serving, "named": asked.from_version is not None}
    bound = f"rollback {asked.model_dump_json(exclude={'why'})}"
    done = await asker.ask("rollback", None, args, asked.why, seen=seen, asked=bound)
    return asker.answer(done, f"GET /collections/{asker.collection}")


@routes.post("/collections/{collection}/rollout/raise")
async def raise_rollout(asker: Asking, asked: Annotated[Said, Body()] = NO_REASON) -> Outcome:
    """Let the version that comes answer the next larger share of the callers, at every server; also after a failed
    bound. Refused when it stands elsewhere by the time it arrives than when it was asked."""
    return await _roll(asker, "raise", asked.why)


@routes.post("/collections/{collection}/rollout/end")
async def end_rollout(asker: Asking, asked: Annotated[Said, Body()] = NO_REASON) -> Outcome:
    """Back to nobody, at every server, until somebody raises it or the configuration says another share."""
    return await _roll(asker, "end", asked.why)


async def _roll(asker: Asker, action: str, why: str) -> Outcome:
    build = asker.backend.state.coming(asker.collection)
    step = build.rollout.step if build is not None and build.rollout is not None else 0
    seen: dict[str, JsonValue] = {"step": step} if action == "raise" else {}
    version = build.version if build is not None else None
    done = await asker.ask("rollout", version, {"action": action}, why, seen=seen, asked=f"rollout {action}")
    return asker.answer(done, f"GET /collections/{asker.collection}/rollout")
