import os

from abyssal.machine import memory_bytes, processor_name


def test_memory_is_the_machines_where_no_limit_is_set(tmp_path):
    assert memory_bytes(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_containers_limit_counts(tmp_path):
    folder = tmp_path / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("123456789\n")
    assert memory_bytes(tmp_path) == 123456789


def test_no_limit_is_no_limit(tmp_path):
    folder = tmp_path / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == memory_bytes(tmp_path / "elsewhere")


def test_the_processor_is_named_as_the_system_names_it(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor: 0\nmodel name\t: A Processor 9000\n")
    assert processor_name(tmp_path) == "A Processor 9000"
    assert processor_name(tmp_path / "elsewhere")
