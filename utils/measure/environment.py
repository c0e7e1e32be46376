"""Describe the environment of a measurement: machine, GPU, library versions, date."""

import contextlib
import datetime
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import cv2
import fvcore
import numpy
import psutil
import skimage
import torch

from utils.errors import HarnessError
from utils.files import project_version
from utils.record import Environment

# Names in /proc/cpuinfo on x86 and ARM, and names to show.
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX",
    "sve": "SVE",
    "bf16": "BF16",
}
BFLOAT16_SETS = {"AVX512-BF16", "AMX", "BF16"}
CPUINFO = Path("/proc/cpuinfo")
CGROUPS, CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
THREADS_SET_BY = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
LIBRARIES = {"torch": torch, "numpy": numpy, "opencv": cv2, "fvcore": fvcore, "scikit-image": skimage}


def choose_device(name: str = "auto", index: int = 0) -> torch.device:
    """Return the torch device for "auto", "cpu" or "cuda"; `index` is the GPU as torchrun counts.

    By default, PyTorch starts a thread for each core of the machine. Limit their number to `processors()`, unless the
    user has set it. Raise HarnessError if "cuda" is requested without a GPU, or with fewer GPUs than processes.
    """
    if not THREADS_SET_BY & os.environ.keys() and torch.get_num_threads() > (most := processors()):
        torch.set_num_threads(most)
    if name == "cuda" and not torch.cuda.is_available():
        raise HarnessError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if index >= (gpus := torch.cuda.device_count()):
        raise HarnessError(f"process {index + 1} finds {gpus} GPU(s) here; start torchrun with --nproc_per_node {gpus}")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def describe_environment(device: torch.device) -> Environment:
    """Return a description of the machine and its libraries, with the date (UTC)."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Environment(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=device.type,
        gpu=gpu,
        cuda=torch.version.cuda if gpu else None,
        cpu=cpu_name(),
        cores=psutil.cpu_count(),
        threads=torch.get_num_threads(),
        memory_gib=round(memory_bytes() / 2**30, 1),
        platform=platform.platform(),
        python=platform.python_version(),
        libraries={name: str(module.__version__) for name, module in LIBRARIES.items()},
        version=project_version(),
    )


def machine_line(environment: Environment) -> str:
    """Return the GPU's or else the CPU's name, and the number of threads."""
    return f"{environment.gpu or environment.cpu}, {environment.threads} threads"


def memory_bytes(cgroups: Path = CGROUPS, root: Path = CGROUP_ROOT) -> int:
    """Return the memory that this process may use [bytes]: the machine's, or the limit of a container or batch job.

    No library provides this or `processors`. psutil knows only the machine. Libraries that know quotas look at the root
    of the control groups, where a batch job has none.
    """
    limits = [psutil.virtual_memory().total]
    for group in _groups("memory", cgroups, root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                limits.append(int((group / name).read_text()))
    return min(limits)


def processors(cgroups: Path = CGROUPS, root: Path = CGROUP_ROOT) -> int:
    """Return how many processors this process may keep busy: those it is bound to, or a container's share.

    A container may have a share of the time of all processors, as with `docker run --cpus 4`. With more threads than
    that, all threads are stopped again and again until their next share.
    """
    counts = [len(os.sched_getaffinity(0))]
    for group in _groups("cpu", cgroups, root):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                quota, period = (int(word) for name in names for word in (group / name).read_text().split())
                if quota > 0:
                    counts.append(max(1, quota // period))
    return min(counts)


def _groups(controller: str, cgroups: Path, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups for `controller`, and their parent folders."""
    for line in cgroups.read_text().splitlines() if cgroups.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        tree = root / controller if controllers else root  # the second version of cgroups has one tree for all
        folder = tree / group.lstrip("/")
        yield from (folder, *folder.parents)  # a container sees its own group as the root


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the processor's name and the instruction sets that matter for speed.

    Linux does not name ARM processors. It gives numbers for maker and model: 0x41 and 0xd40 are ARM's Neoverse V1.
    """
    facts, name = _cpu_facts(cpuinfo), platform.processor() or platform.machine()
    if "CPU part" in facts:
        name += f" {facts.get('CPU implementer')}/{facts['CPU part']}"
    name, sets = facts.get("model name", name), _instruction_sets(facts)
    return f"{name} ({', '.join(sets)})" if sets else name


def has_bfloat16(device: torch.device, cpuinfo: Path = CPUINFO) -> bool:
    """Return whether a device supports bfloat16 natively. Elsewhere PyTorch emulates it, many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not BFLOAT16_SETS.isdisjoint(_instruction_sets(_cpu_facts(cpuinfo)))


def _cpu_facts(cpuinfo: Path) -> dict[str, str]:
    """Return {name: value} of what Linux says about the last processor."""
    if not cpuinfo.exists():
        return {}
    facts = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in facts.items()}


def _instruction_sets(facts: dict[str, str]) -> list[str]:
    flags = (facts.get("flags") or facts.get("Features", "")).split()
    return [shown for flag, shown in INSTRUCTION_SETS.items() if flag in flags]
