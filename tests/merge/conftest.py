"""Simulated trouble is not worth a line in the report: the story of a failing seed says more."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = logging.getLogger("streams").level
    logging.getLogger("streams").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("streams").setLevel(before)
