"""A Weaviate server as a process of this machine: found, fetched or built once, its settings, its start.

Must never run a fetched program whose checksum nobody gave, nor take settings from the caller's environment.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import httpx

from connectors.errors import ConfigurationError
from connectors.services.cache import cache_folder, download, filling, run_with_progress
from connectors.services.state import Process, Say, log_file, spawn

VERSION = "1.38.11"
MODULE = "github.com/weaviate/weaviate"
# Weaviate lets its HTTP address be chosen, but listens with these on all interfaces, without a setting.
LISTENERS = (
    "adapters/handlers/grpc/server.go",
    "adapters/handlers/rest/clusterapi/grpc/server.go",
    "adapters/handlers/rest/clusterapi/serve.go",
)
PORTS = (
    "weaviate_http",
    "weaviate_grpc",
    "weaviate_gossip",
    "weaviate_data",
    "weaviate_raft",
    "weaviate_raft_rpc",
    "weaviate_profiling",
    "weaviate_metrics",
)
SETTINGS = {
    "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
    "AUTOSCHEMA_ENABLED": "false",
    "CLUSTER_HOSTNAME": "node1",
    "DEFAULT_VECTORIZER_MODULE": "none",
    "DISABLE_TELEMETRY": "true",
    "LOG_LEVEL": "warning",
    "RAFT_BOOTSTRAP_EXPECT": "1",
}


def _target() -> Path:
    return cache_folder() / f"weaviate-{VERSION}" / "weaviate-server"


def _installed() -> str | None:
    return shutil.which("weaviate") or shutil.which("weaviate-server")


def missing() -> str | None:
    """What keeps the server from being had, or None when it is there or there is a way."""
    if _target().exists() or _installed() or os.environ.get("CROSSFADE_WEAVIATE_BINARY_URL") or shutil.which("go"):
        return None
    return (
        f"Weaviate {VERSION}: no `weaviate` or `weaviate-server` on PATH, no Go to build it, and no address to fetch "
        "it from (install Go, or set CROSSFADE_WEAVIATE_BINARY_URL and CROSSFADE_WEAVIATE_BINARY_SHA256)"
    )


def binary(say: Say) -> str:
    """The path of a Weaviate server, fetched or built first where needed.

    Order: cache, PATH, the address in CROSSFADE_WEAVIATE_BINARY_URL, Go. Raises ConfigurationError (what is missing).
    """
    target = _target()
    if target.exists():
        return str(target)
    if installed := _installed():
        say(f"using {installed}; a server that was not built here opens its gRPC port on all interfaces")
        return installed
    with filling(cache_folder(), say) as scratch:
        if target.exists():
            return str(target)
        if os.environ.get("CROSSFADE_WEAVIATE_BINARY_URL"):
            _by_http(scratch, say)
        elif shutil.which("go"):
            _by_go(scratch, say)
        else:
            raise ConfigurationError(missing() or "")
        target.parent.mkdir(exist_ok=True)
        (scratch / "weaviate-server").rename(target)
    return str(target)


def _by_go(scratch: Path, say: Say) -> None:
    """Build from the module's source, with its remaining listeners put on loopback."""
    say(f"building Weaviate {VERSION} with Go (about 6 minutes on two cores, once)")
    fetch = ["go", "mod", "download", "-json", f"{MODULE}@v{VERSION}"]
    module = json.loads(run_with_progress(fetch, say, what="fetching Weaviate's source"))
    with zipfile.ZipFile(module["Zip"]) as archive:
        archive.extractall(scratch)
    source = scratch / f"{MODULE}@v{VERSION}"
    bind_to_loopback(source)
    build = ["go", "build", "-C", str(source), "-o", str(scratch / "weaviate-server"), "./cmd/weaviate-server"]
    run_with_progress(build, say, what="building Weaviate", environment=os.environ | {"CGO_ENABLED": "0"})


def bind_to_loopback(source: Path) -> None:
    """Change the listeners that have no setting of their own. Raises ConfigurationError where they are not found."""
    for name in LISTENERS:
        code = (source / name).read_text()
        if code.count('":%d"') != 1:
            raise ConfigurationError(
                f"{name} of Weaviate {VERSION} does not listen where we know it to",
                next_step="use Docker, or put a Weaviate server on PATH",
            )
        (source / name).write_text(code.replace('":%d"', '"127.0.0.1:%d"'))


def _by_http(scratch: Path, say: Say) -> None:
    address = os.environ["CROSSFADE_WEAVIATE_BINARY_URL"]
    checksum = os.environ.get("CROSSFADE_WEAVIATE_BINARY_SHA256")
    if not checksum:
        raise ConfigurationError(
            "CROSSFADE_WEAVIATE_BINARY_URL is set, but CROSSFADE_WEAVIATE_BINARY_SHA256 is not",
            next_step="set it to the SHA-256 (hex) of the file at that address",
        )
    say("fetching the Weaviate server from CROSSFADE_WEAVIATE_BINARY_URL (once)")
    fetched, server = scratch / "fetched", scratch / "weaviate-server"
    with httpx.Client(timeout=60, follow_redirects=True) as client:
        download(client, address, fetched, checksum, name="the Weaviate server")
    if tarfile.is_tarfile(fetched):
        with tarfile.open(fetched) as archive:
            member = next(
                (m for m in archive if m.isfile() and Path(m.name).name in ("weaviate", "weaviate-server")), None
            )
            packed = archive.extractfile(member) if member else None
            if packed is None:
                raise ConfigurationError(
                    "the archive at CROSSFADE_WEAVIATE_BINARY_URL holds no `weaviate` file",
                    next_step="give the address of a published server archive, or of the bare program",
                )
            with server.open("wb") as out:
                shutil.copyfileobj(packed, out)
    else:
        fetched.rename(server)
    server.chmod(0o755)


def environment(data: Path, at: Mapping[str, int]) -> dict[str, str]:
    """The environment of a single Weaviate node; docker-compose.yml gives its node the same."""
    return {
        **SETTINGS,
        "PERSISTENCE_DATA_PATH": str(data),
        "CLUSTER_BIND_ADDR": "127.0.0.1",
        "CLUSTER_ADVERTISE_ADDR": "127.0.0.1",
        "CLUSTER_GOSSIP_BIND_PORT": str(at["weaviate_gossip"]),
        "CLUSTER_DATA_BIND_PORT": str(at["weaviate_data"]),
        "RAFT_PORT": str(at["weaviate_raft"]),
        "RAFT_INTERNAL_RPC_PORT": str(at["weaviate_raft_rpc"]),
        # The node finds its own log again when it comes back on other ports.
        "RAFT_ENABLE_ONE_NODE_RECOVERY": "true",
        "GRPC_PORT": str(at["weaviate_grpc"]),
        "GO_PROFILING_DISABLE": "true",
        "GO_PROFILING_PORT": str(at["weaviate_profiling"]),
        "PROMETHEUS_MONITORING_PORT": str(at["weaviate_metrics"]),
    }


def start(folder: Path, binary: str, at: Mapping[str, int]) -> Process:
    """Start the server; its data are below `folder`."""
    log = log_file(folder, "weaviate")
    # Of the caller's environment only what a program needs to run: a stray Weaviate setting would change ours.
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    return spawn(
        [binary, "--scheme", "http", "--host", "127.0.0.1", "--port", str(at["weaviate_http"])],
        log=log,
        env=inherited | environment(folder / "weaviate", at),
        cwd=folder,
    )
