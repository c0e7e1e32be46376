"""utils/measure/environment.py: what a figure was measured on is told apart from other machines."""

import platform

import psutil
import pytest
import torch

from utils.errors import HarnessError
from utils.measure.environment import choose_device, cpu_name, memory_bytes

XEON = """processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 amx_bf16 amx_tile
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
    if cgroups is not None:
        (tmp_path / "cgroup").write_text(cgroups)
    for name, limit in limits.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(limit)
    expected = expected or psutil.virtual_memory().total
    assert memory_bytes(tmp_path / "cgroup", tmp_path / "sys") == expected


def test_more_processes_than_gpus_cost_a_line(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("auto", 1) == torch.device("cuda", 1) == chosen[0]
    with pytest.raises(HarnessError, match=r"process 3 finds 2 GPU.*--nproc_per_node 2"):
        choose_device("auto", 2)
