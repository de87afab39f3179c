"""Whether topic, space and settings are still the ones a build began with (rules 1 and 2): every fail-stop cause.

Pure: it compares what was stored at the start with what is there now, and never looks for itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from connectors.errors import ConfigurationError, IdentityChanged
from connectors.protocols import Bounds, TopicFacts
from streams.state import BuildState
from streams.versions import Envelope, Stage, alias_of_space


def _rebuild(build: BuildState) -> str:
    """The commands that build this version anew from where it stands; search never goes without a space."""
    collection, version = build.collection, build.version
    start = f"crossfade start {collection} {version}"
    if build.stage is Stage.PREVIOUS:
        return f"crossfade retire {collection} {version} --confirm {version}, then {start}"
    if build.stage is Stage.SERVING:
        return (
            f"go back where a previous version is sound: crossfade rollback {collection}; else give {version} another "
            f"name in the configuration (it is then built anew beside this one), crossfade cutover {collection} NAME, "
            f"and crossfade retire {collection} {version} --confirm {version}"
        )
    return f"crossfade abort {collection} {version} --confirm {version}, then {start}"


def topic_gone(build: BuildState) -> IdentityChanged:
    """The cause when there is no topic of that name any more."""
    return IdentityChanged(
        f"topic {build.topic} of {build.key} is gone: somebody deleted it",
        next_step=f"create it and produce every document again, then {_rebuild(build)}",
    )


def check_topic(build: BuildState, facts: TopicFacts) -> None:
    """Raises IdentityChanged when the topic was recreated or its partitions were changed."""
    if facts.topic_id != build.topic_id:
        raise IdentityChanged(
            f"topic {build.topic} was deleted and created anew since {build.key} began: its offsets mean nothing now",
            next_step=_rebuild(build),
        )
    if facts.partitions != build.partitions:
        raise IdentityChanged(
            f"topic {build.topic} has {facts.partitions} partitions, {build.partitions} when {build.key} began: "
            "keys may have moved between partitions, and their order is lost",
            next_step=_rebuild(build),
        )


def check_position(build: BuildState, partition: int, position: int, bounds: Bounds) -> None:
    """Raises IdentityChanged when the log no longer holds what comes next, or ends before what was read."""
    if position < bounds.earliest:
        raise IdentityChanged(
            f"partition {partition} of {build.topic} begins at {bounds.earliest}, but {build.key} has still to read "
            f"from {position}: records were removed before they were read",
            next_step=_rebuild(build),
        )
    if position > bounds.stable:
        raise IdentityChanged(
            f"partition {partition} of {build.topic} ends at {bounds.stable}, but {build.key} has read up to "
            f"{position}: the log was truncated",
            next_step=_rebuild(build),
        )


def check_space(build: BuildState, description: str | None) -> None:
    """`description`: of the space as it is now, None when there is none. Raises IdentityChanged when it is not the
    space this build made: nothing may be written into it, and it is never created again."""
    if description is None:
        raise IdentityChanged(
            f"the space {build.space} of {build.key} is gone: somebody dropped it, or this is not the Weaviate it was "
            "built in (two deployments with one kafka.topic_prefix?); it is never created again behind your back",
            next_step=f"if weaviate.http is wrong, correct it, then crossfade resume {build.collection} "
            f"{build.version}; else {_rebuild(build)}",
        )
    try:
        found = Envelope.from_json(description).fingerprint
    except ConfigurationError as error:
        raise IdentityChanged(
            f"the space {build.space} of {build.key} was altered: its description is no longer Crossfade's",
            next_step=_rebuild(build),
        ) from error
    if found != build.fingerprint:
        raise IdentityChanged(
            f"the space {build.space} now says that it holds vectors of model {found}, {build.key} is "
            f"{build.fingerprint}",
            next_step=_rebuild(build),
        )


def check_properties(build: BuildState, configured: Mapping[str, str], stored: Mapping[str, str]) -> list[str]:
    """Names and types in the configuration and in the space. Returns the configured names the space does not have:
    they were declared after it was built. Raises IdentityChanged where a type was changed."""
    for name, kind in configured.items():
        if stored.get(name, kind) != kind:
            raise IdentityChanged(
                f"property {name} is {kind} in the configuration, but {stored[name]} in the space {build.space}: "
                f"{build.key} cannot store it",
                next_step=f"set it back to {stored[name]}, then crossfade resume {build.collection} {build.version}; "
                "for another type declare another name",
            )
    return [name for name in configured if name not in stored]


def check_model(build: BuildState, fingerprint: str) -> None:
    """Raises IdentityChanged when the configuration means another model by this version's name (rule 10)."""
    if fingerprint != build.fingerprint:
        raise IdentityChanged(
            f"{build.key} was built as model {build.fingerprint}, the configuration now says {fingerprint} under the "
            "same name: their vectors must not be mixed",
            next_step=f"put {build.version} back as it was and give the changed model a name of its own, then "
            f"crossfade resume {build.collection} {build.version}",
        )


def check_source(build: BuildState, topic: str) -> None:
    """Raises IdentityChanged when the configuration reads this collection from another topic."""
    if topic != build.topic:
        raise IdentityChanged(
            f"{build.key} is built from topic {build.topic}, the configuration says {topic}: two deployments with one "
            "kafka.topic_prefix, or a changed topic",
            next_step=f"give each deployment a kafka.topic_prefix of its own, or put the topic back, then crossfade "
            f"resume {build.collection} {build.version}; another topic is another collection",
        )


def check_state_topic(name: str, known: str, topic_id: str | None) -> None:
    """`topic_id`: None when the topic does not exist. Raises IdentityChanged unless it is the one that was read."""
    if topic_id != known:
        raise IdentityChanged(
            f"topic {name} was {'created anew' if topic_id else 'deleted'} while it was followed: it holds all that "
            "is known of the versions",
            next_step="restore it from a copy, then start the workers again: crossfade worker",
        )


def check_state_kept(
    prefix: str, *, state_is_empty: bool, aliases: Collection[str], spaces: Iterable[str], groups: Iterable[str]
) -> None:
    """Refuse to begin from nothing where something was built before. Raises IdentityChanged.

    `spaces`, `groups`: all there are, listed before the state was read (state is written before either exists).
    """
    if not state_is_empty:
        return
    ours = sorted(s for s in spaces if alias_of_space(s, aliases) is not None)
    lanes = sorted(
        g for g in groups if g.startswith(f"{prefix}.") and g.endswith((".live", ".replay")) and g.count(".") >= 4
    )
    if ours or lanes:
        found = " and ".join(
            f"{what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            for what, names in (("spaces", ours), ("consumer groups", lanes))
            if names
        )
        raise IdentityChanged(
            f"the state topic {prefix}.state holds nothing, but there are {found}: the state was lost, or another "
            "deployment uses these names",
            next_step="restore the state topic from a copy; or begin anew beside what there is, with a "
            "kafka.topic_prefix and aliases of your own: the old spaces go on answering until you drop them",
        )
