"""How full Weaviate is, from pages of metrics as its nodes and their node exporters write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.protocols import Capacity
from connectors.weaviate.capacity import CapacitySettings, capacity, read_pages

WEAVIATE = """# HELP go_memstats_sys_bytes Number of bytes obtained from system.
# TYPE go_memstats_sys_bytes gauge
go_memstats_sys_bytes 5.0e+09
go_memstats_heap_released_bytes 1.0e+09
"""
UNLIMITED = WEAVIATE + "go_gc_gomemlimit_bytes 9.223372036854776e+18\n"  # as Weaviate 1.38 writes without GOMEMLIMIT
LIMITED = WEAVIATE + "go_gc_gomemlimit_bytes 8e+09\n"
NODE = """node_filesystem_avail_bytes{device="/dev/sda1",fstype="ext4",mountpoint="/"} 1e+10
node_filesystem_avail_bytes{device="/dev/sdb",fstype="ext4",mountpoint="/var/lib/weaviate"} 3e+10
node_filesystem_avail_bytes{device="tmpfs",fstype="tmpfs",mountpoint="/var/lib/weaviate-not"} 1
node_filesystem_size_bytes{device="/dev/sda1",fstype="ext4",mountpoint="/"} 1e+11
node_filesystem_size_bytes{device="/dev/sdb",fstype="ext4",mountpoint="/var/lib/weaviate"} 4e+10
node_filesystem_size_bytes{device="tmpfs",fstype="tmpfs",mountpoint="/var/lib/weaviate-not"} 2
node_memory_MemAvailable_bytes 4e+09
node_memory_MemTotal_bytes 1.6e+10
go_memstats_sys_bytes 3e+07
go_gc_gomemlimit_bytes 1e+08
"""
DATA = Path("/var/lib/weaviate/data")


def test_weaviates_own_limit_goes_before_the_machines() -> None:
    for pages in ([("http://w:2112/metrics", LIMITED), ("http://w:9100/metrics", NODE)],):
        for order in (pages, pages[::-1]):
            found = read_pages(order, DATA)
            assert (found.memory_used_bytes, found.memory_limit_bytes) == (4_000_000_000, 8_000_000_000)
            assert (found.disk_free_bytes, found.disk_total_bytes) == (30_000_000_000, 40_000_000_000)
            assert (found.disk_used, found.memory_used) == (0.25, 0.5)
            assert found.troubles == ()


@pytest.mark.parametrize("turn", [1, -1])
def test_without_a_limit_the_machines_memory_counts(turn: int) -> None:
    pages = [("http://w:2112/metrics", UNLIMITED), ("http://w:9100/metrics", NODE)][::turn]
    found = read_pages(pages, DATA)
    assert (found.memory_used_bytes, found.memory_limit_bytes) == (12_000_000_000, 16_000_000_000)


def test_weaviate_alone_says_neither_disk_nor_limit() -> None:
    found = read_pages([("http://w:2112/metrics", UNLIMITED)], DATA)
    assert found.memory_used_bytes == 4_000_000_000
    assert (found.memory_used, found.disk_used) == (None, None)
    assert [trouble.partition(":")[2].strip() for trouble in found.troubles] == [
        "add the node exporter's",
        "set GOMEMLIMIT for Weaviate, or add the node exporter",
    ]


def test_the_fullest_node_counts() -> None:
    fuller = NODE.replace("3e+10", "1e+09").replace("4e+09", "1e+09")
    found = read_pages([("http://a:9100/metrics", NODE), ("http://b:9100/metrics", fuller)], DATA)
    assert found.disk_free_bytes == 1_000_000_000
    assert found.memory_used == 15 / 16


def test_the_file_system_of_the_path_as_df_names_it() -> None:
    assert read_pages([("http://a/m", NODE)], Path("/srv")).disk_free_bytes == 10_000_000_000
    assert read_pages([("http://a/m", NODE)], Path("/var/lib/weaviate")).disk_free_bytes == 30_000_000_000
    unsaid = read_pages([("http://a/m", NODE)], None)
    assert unsaid.disk_free_bytes is None
    assert unsaid.troubles[0] == "the node exporter of a has 3 file systems: set weaviate.data_path"


async def test_a_path_of_this_machine(tmp_path: Path) -> None:
    found = await capacity(CapacitySettings(data_path=tmp_path))
    assert found.disk_free_bytes is not None
    assert found.disk_used is not None
    assert 0 <= found.disk_used <= 1
    assert found.memory_used is not None  # these tests run on Linux
    assert 0 < found.memory_used < 1


async def test_nothing_said_nothing_known() -> None:
    found = await capacity(CapacitySettings())
    assert found == Capacity(troubles=found.troubles)
    assert "weaviate.data_path" in found.troubles[0]
