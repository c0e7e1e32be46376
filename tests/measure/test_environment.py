"""utils/measure/environment.py: what a figure was measured on is told apart from other machines."""

import os
import platform

import psutil
import pytest
import torch

from utils.errors import HarnessError
from utils.measure import environment
from utils.measure.environment import choose_device, cpu_name, has_bfloat16, memory_bytes, processors

XEON = """processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 amx_bf16 amx_tile
"""
ZEN3 = """processor\t: 1
model name\t: AMD EPYC 7543 32-Core Processor
flags\t\t: fpu sse2 avx2 f16c
"""
GRAVITON3 = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd sve svebf16 bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (XEON, "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz (AVX2, AVX-512, AVX512-BF16, AMX)"),
        (GRAVITON3, "aarch64 0x41/0xd40 (SVE, BF16)"),
        ("processor: 0\n", "aarch64"),
        (None, "aarch64"),
    ],
)
def test_processor_is_named_by_what_linux_knows_of_it(tmp_path, monkeypatch, cpuinfo, expected):
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert cpu_name(tmp_path / "cpuinfo") == expected


@pytest.mark.parametrize(
    ("cpuinfo", "expected"), [(XEON, True), (GRAVITON3, True), (ZEN3, False), ("processor: 0\n", False), (None, False)]
)
def test_bfloat16_is_a_matter_of_instructions(tmp_path, cpuinfo, expected):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert has_bfloat16(torch.device("cpu"), tmp_path / "cpuinfo") is expected


def write_groups(folder, cgroups, limits):
    """Write what Linux says of control groups, as /proc/self/cgroup and the files of /sys/fs/cgroup."""
    if cgroups is not None:
        (folder / "cgroup").write_text(cgroups)
    for name, limit in limits.items():
        (folder / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "sys" / name).write_text(limit)


@pytest.mark.parametrize(
    ("cgroups", "limits", "expected"),
    [
        ("0::/job/step\n", {"job/memory.max": "4096\n", "job/step/memory.max": "max\n"}, 4096),
        ("0::/\n", {"memory.max": "2048\n"}, 2048),  # what a container sees
        ("4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "1024\n"}, 1024),
        ("4:memory:/docker/0a1b\n", {"memory/memory.limit_in_bytes": "512\n"}, 512),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),  # no limit
        ("0::/\n", {}, None),
        (None, {}, None),
    ],
)
def test_memory_is_what_the_container_has(tmp_path, cgroups, limits, expected):
    write_groups(tmp_path, cgroups, limits)
    expected = expected or psutil.virtual_memory().total
    assert memory_bytes(tmp_path / "cgroup", tmp_path / "sys") == expected


@pytest.mark.parametrize(
    ("cgroups", "limits", "expected"),
    [
        ("0::/job/step\n", {"job/cpu.max": "200000 100000\n", "job/step/cpu.max": "max 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "350000 100000\n"}, 3),  # of a fourth there is half
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "99900000 100000\n"}, 64),
        ("3:cpu,cpuacct:/job\n", {"cpu/job/cpu.cfs_quota_us": "400000\n", "cpu/job/cpu.cfs_period_us": "200000\n"}, 2),
        ("3:cpu:/docker/0a1b\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),  # no limit
        ("3:cpuset:/\n", {"cpu.max": "100000 100000\n"}, 64),
        (None, {}, 64),
    ],
)
def test_processors_are_what_the_container_has(tmp_path, monkeypatch, cgroups, limits, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    write_groups(tmp_path, cgroups, limits)
    assert processors(tmp_path / "cgroup", tmp_path / "sys") == expected


@pytest.mark.parametrize(("set_by_user", "threads"), [({}, 3), ({"OMP_NUM_THREADS": "5"}, 5)])
def test_torch_has_no_more_threads_than_there_are_processors(monkeypatch, set_by_user, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    for name, value in set_by_user.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "processors", lambda: 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        environment.choose_device("cpu")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_more_processes_than_gpus_cost_a_line(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("auto", 1) == torch.device("cuda", 1) == chosen[0]
    with pytest.raises(HarnessError, match=r"process 3 finds 2 GPU.*--nproc_per_node 2"):
        choose_device("auto", 2)
