"""What `init` asks about the embedding model, and what its endpoint says of itself when it is probed.

It sends an endpoint four short texts of our own, never a document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import click
from pydantic import ValidationError

from connectors.embedders.probe import probe
from connectors.errors import ConfigurationError, CrossfadeError
from connectors.protocols import ModelFacts
from streams.cli.asking import ask, ask_until
from streams.cli.guide_answers import Given, Secrets, one_of, unfit
from streams.cli.output import plain, say
from streams.config_embedders import Version
from streams.setup import Model, prefixes
from streams.wiring import make_embedders

PROVIDERS = ("hashing", "tei", "openai")
_HASHING_DIMENSIONS = 256
_URLS = {
    "tei": "Address of the endpoint, without its path",
    "openai": "Address of the endpoint, up to before /embeddings (mostly ending in /v1)",
}


@dataclass(frozen=True, slots=True)
class ModelQuestions:
    """Asks for what was not given; without a terminal, the endpoint is the only one to ask."""

    given: Given
    secrets: Secrets
    terminal: bool

    async def model(self) -> Model:
        given = self.given
        provider = given.provider or ask_until(
            f"Embedding model, served by ({', '.join(PROVIDERS)}; hashing needs no model and no network)",
            one_of(PROVIDERS),
            "hashing",
        )
        if provider == "hashing":
            return Model(provider, given.dimensions or self._dimensions(_HASHING_DIMENSIONS))
        url = given.url
        while True:
            address = url or ask(_URLS[provider], "http://127.0.0.1:8080" if provider == "tei" else None)
            name = given.model or ("" if provider == "tei" else ask("Model, as the endpoint calls it", None))
            variable = "TEI_API_KEY" if provider == "tei" else "OPENAI_API_KEY"
            key = self.secrets.reference(given.api_key, "--api-key", "the endpoint", variable)
            try:
                dimensions, facts = await self._probe(provider, address, name, key)
                break
            except CrossfadeError as error:
                if not self.terminal or url is not None:
                    raise
                say(f"error: {error.message}\n  next: {error.next_step}; asking again")
        if given.dimensions is not None and given.dimensions != dimensions:
            raise ConfigurationError(
                f"the endpoint's vectors have {dimensions} dimensions, --dimensions says {given.dimensions}",
                next_step=f"leave --dimensions out, or --dimensions {dimensions}",
            )
        return self._described(Model(provider, dimensions, address, name, api_key=key), facts)

    def _described(self, model: Model, facts: ModelFacts) -> Model:
        """With what the endpoint says of itself, and what only a person knows."""
        given = self.given
        name = model.model or (ask("Model that it serves", facts.model) if self.terminal else facts.model or "")
        if not name:
            raise ConfigurationError("the endpoint does not say which model it serves", next_step="add --model NAME")
        revision = given.revision if given.revision is not None else facts.revision or ""
        known_document, known_query = prefixes(name)
        document, query, price = given.document_prefix, given.query_prefix, given.price
        if document is None:
            document = self._prefix("documents", known_document)
        if query is None:
            query = self._prefix("queries", known_query)
        if price is None and self.terminal:
            price = ask_until("Price, USD for a million tokens (0 for a machine of your own)", _price, "0")
        default_batch = 32 if model.provider == "tei" else 128
        batch = facts.max_batch if facts.max_batch is not None and facts.max_batch < default_batch else None
        return replace(
            model,
            model=name,
            revision=revision,
            document_prefix=document,
            query_prefix=query,
            price=price,
            max_batch=batch,
            max_tokens=facts.max_input_tokens,
        )

    def _prefix(self, of: str, known: str) -> str:
        if not self.terminal:
            return known
        said = ask(f"Prefix the model wants before {of} (none for none)", known.strip() or "none")
        return "" if said == "none" else f"{said.strip()} "

    def _dimensions(self, proposed: int) -> int:
        if not self.terminal:
            return proposed
        return ask_until("Dimensions", _dimensions, str(proposed))

    async def _probe(self, provider: str, url: str, model: str, key: str) -> tuple[int, ModelFacts]:
        """Asks with four short texts. Raises what the endpoint does."""
        raw: dict[str, object] = {"provider": provider, "url": url, "model": model or "asked"}
        if key:
            raw["api_key"] = self.secrets.value(key)
        try:
            version = Version.model_validate({"embedder": raw, "dimensions": 1})
        except ValidationError as error:
            raise unfit(error, "--url, --model or --api-key") from None
        ((name, embedder),) = make_embedders(version)
        say(f"asking {name} for its vectors, with four short texts")
        try:
            vectors = await probe(embedder)
            facts = await embedder.facts()
        finally:
            await embedder.close()
        dimensions = int(vectors.shape[1])
        known = (("model", facts.model), ("revision", facts.revision))
        said = "".join(f", {what} {plain(one)}" for what, one in known if one)
        click.echo(f"{name}: {dimensions} dimensions{said}")
        return dimensions, facts


def _dimensions(said: str) -> int:
    if not said.isdecimal() or not 1 <= int(said) <= 65535:
        raise ValueError("a whole number from 1 to 65535")
    return int(said)


def _price(said: str) -> float:
    wanted = "a number of USD, at least 0"
    try:
        price = float(said)
    except ValueError:
        raise ValueError(wanted) from None
    if not 0 <= price < 1e9:
        raise ValueError(wanted)
    return price
