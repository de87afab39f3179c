"""The verb `worker`: one process that hosts agents and, by group membership, the controller.

It adds nothing to `streams.app.Worker` but a way in.
"""

from __future__ import annotations

import click

from streams.app import Worker
from streams.cli import Options
from streams.cli.session import read_settings, run
from streams.garbage import collect_seldom


@click.command()
@click.pass_obj
def worker(options: Options) -> None:
    """Host the embedding agents of every version in the configuration, and the controller; runs until stopped.

    More workers share the partitions. SIGTERM or Ctrl-C drains, commits and leaves; a new version in the
    configuration file is started within seconds, at once on SIGHUP.

    Example: crossfade worker
    """
    path, settings = read_settings(options)
    collect_seldom()
    run(Worker(path, settings).run())
