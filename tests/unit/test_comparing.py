"""What `compare` says it will spend, before it spends anything."""

from __future__ import annotations

import pytest

from streams.comparing import Cut, forecast
from streams.config import Settings

CUT = Cut(texts=["a"], owner=[0], tokens=[1_000_000], exact=True, query_tokens=500_000)


def settings(own: dict[str, object], other: dict[str, object]) -> Settings:
    """Documents go to an endpoint of our own, queries and live events to another one."""
    model = {"provider": "openai", "model": "m"}
    version = {
        "dimensions": 8,
        "embedder": {**model, "url": "http://127.0.0.1:1/v1", "lanes": ["replay"], **own},
        "fallbacks": [{**model, "url": "http://127.0.0.1:2/v1", "lanes": ["live", "query"], **other}],
    }
    one = {"topic": "docs", "text": {"fields": ["text"]}, "versions": {"v1": version}}
    return Settings.model_validate({"collections": {"docs": one}})


@pytest.mark.parametrize(
    ("own", "other", "usd"),
    [
        (0, 0, 0.0),
        (0, 2, 1.0),  # else it would begin without asking, and the queries would cost money
        (2, 0, 2.0),
        (2, 4, 4.0),
        (0, None, None),
        (None, 0, None),
    ],
)
def test_each_lane_is_forecast_at_the_price_of_who_serves_it(
    own: float | None, other: float | None, usd: float | None
) -> None:
    priced: list[dict[str, object]] = [
        {} if price is None else {"price_per_million_tokens": price} for price in (own, other)
    ]
    of = settings(*priced)
    found = forecast("v1", of.collection("docs").version("v1"), CUT, of)
    assert (found.tokens, found.usd) == (1_500_000, usd)
