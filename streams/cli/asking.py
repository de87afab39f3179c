"""Questions at a terminal, from inside an event loop.

It must never echo a secret, nor let a Ctrl-C go unheard: asyncio's own handler only notes it while a prompt blocks.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click

from streams.cli.output import say

T = TypeVar("T")


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt at once, which click's prompts turn into its Abort."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ask(text: str, default: str | None = None) -> str:
    """One line, without white space around it. Raises click.Abort on Ctrl-C and at the end of input."""
    with interruptible():
        return str(click.prompt(text, default=default, type=str)).strip()


def ask_until(text: str, checked: Callable[[str], T], default: str | None = None) -> T:
    """Again until `checked` takes it; its ValueError says what is wanted, and must not repeat what was said."""
    while True:
        try:
            return checked(ask(text, default))
        except ValueError as error:
            say(f"wanted: {error}")


def ask_hidden(text: str) -> str:
    """Nothing of it is shown; "" for none."""
    with interruptible():
        return str(click.prompt(text, hide_input=True, default="", show_default=False)).strip()


def confirm(text: str) -> bool:
    """On stderr, so that stdout stays for the result; no by default."""
    with interruptible():
        return click.confirm(text, err=True)
