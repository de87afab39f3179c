"""What the demo plays on: a folder with its own services, its own configuration file and its own worker process.

It must never touch services or workers of another folder, nor end a process that it did not start.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import streams
from connectors import services
from connectors.errors import ConfigurationError, Terminal
from connectors.services import Addresses
from connectors.services.state import Process, alive, locked, log_file, spawn, stop

FOLDER = Path(".crossfade/demo")
_ROOT = Path(streams.__file__).parents[1]
_TEMPLATE = _ROOT / "config" / "demo.yaml"
_ADDED_LATER = "      # --- from here on the demo adds to the file while everything runs ---\n"


@dataclass(slots=True)
class Stage:
    """Blocking calls only; seconds each, or minutes for the services' first start."""

    folder: Path
    say: Callable[[str], None]

    @property
    def config(self) -> Path:
        return self.folder / "crossfade.yaml"

    @property
    def logs(self) -> Path:
        return self.worker_log.parent

    @property
    def worker_log(self) -> Path:
        return log_file(self.folder, "worker")

    def clear(self) -> bool:
        """End and remove what a demo left here. True when anything of it still ran."""
        worker = self.stop_worker()
        running = services.down(self.folder, say=lambda _: None, remove_data=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        return worker or running

    def only_one(self) -> AbstractContextManager[None]:
        """Hold the folder: two demos at once would clear each other away."""
        return locked(
            self.folder.with_suffix(".lock"), self.say, busy="another demo runs in this folder; waiting for it"
        )

    def start_services(self) -> Addresses:
        """Raises what `connectors.services.up` raises."""
        return services.up(self.folder, say=self.say)

    def stop(self) -> None:
        """End worker and services, and leave their logs and data for whoever looks for the reason."""
        self.stop_worker()
        services.down(self.folder, say=lambda _: None)

    def write_config(self, addresses: Addresses, *, whole: bool) -> None:
        """The demo's configuration with these addresses; not `whole`: without what the demo adds later.

        Raises ConfigurationError where the file that comes with the checkout is not there.
        """
        try:
            text = _TEMPLATE.read_text()
        except OSError as error:
            raise ConfigurationError(
                f"{_TEMPLATE} cannot be read: {error.strerror}", next_step="run the demo from a checkout of Crossfade"
            ) from error
        before, _, later = text.partition(_ADDED_LATER)
        text = before + later if whole else before
        for name, address in (
            ("KAFKA", addresses.kafka),
            ("WEAVIATE_HTTP", addresses.weaviate_http),
            ("WEAVIATE_GRPC", addresses.weaviate_grpc),
        ):
            text = text.replace(f"${{CROSSFADE_DEMO_{name}}}", address)
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.config.with_suffix(".new")
        new.write_text(text)
        new.replace(self.config)  # at once: the worker reads the file whenever it changes

    def start_worker(self) -> Process:
        """`crossfade worker` as a process of its own, which `--keep` may leave behind."""
        command = [sys.executable, "-c", "from streams.cli import main; main()"]
        path = os.pathsep.join(part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part)
        worker = spawn(
            [*command, "--config", str(self.config), "worker"],
            log=self.worker_log,
            env=os.environ | {"PYTHONPATH": path},
            cwd=self.folder,
        )
        self._worker_file.write_text(json.dumps(asdict(worker)) + "\n")
        return worker

    def check_worker(self) -> None:
        """Raises Terminal with the end of its log when the worker has ended."""
        worker = self._worker()
        if worker is None or not alive(worker):
            lines = self.worker_log.read_text(errors="replace").splitlines()[-5:] if self.worker_log.exists() else []
            raise Terminal(
                "the demo's worker has ended:\n" + "\n".join(lines), next_step=f"read {self.worker_log}, then run again"
            )

    def stop_worker(self) -> bool:
        """True when it was still running; returns when it has drained and left."""
        worker = self._worker()
        stopped = worker is not None and stop(worker)
        self._worker_file.unlink(missing_ok=True)
        return stopped

    @property
    def _worker_file(self) -> Path:
        return self.folder / "worker.json"

    def _worker(self) -> Process | None:
        try:
            return Process(**json.loads(self._worker_file.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{self._worker_file} does not name a process",
                next_step="end what is left of that worker by hand, then delete the file",
            ) from error
