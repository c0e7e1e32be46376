"""Let a machine without a GPU stand in for one: `.cuda()`, `.to("cuda")` and `device="cuda"` give the CPU."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

QUIET = ("synchronize", "empty_cache", "set_device", "reset_peak_memory_stats", "manual_seed_all", "manual_seed")
COMPLAINTS = ("CUDA enabled", "NVIDIA driver", "CUDA driver", "cuda", "CUDA")


class CudaOnCpu(TorchFunctionMode):
    """A mode in which torch functions that ask for a GPU run on the CPU. `used` says whether any did."""

    def __init__(self) -> None:
        super().__init__()
        self.used = False
        self._originals: dict[str, Any] = {}

    def __enter__(self) -> "CudaOnCpu":
        self._originals = {name: getattr(torch.cuda, name) for name in QUIET}
        for name in QUIET:
            setattr(torch.cuda, name, self._nothing)
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for name, original in self._originals.items():
            setattr(torch.cuda, name, original)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            self.used = True
            return args[0]
        if _is_cuda(kwargs.get("device")):
            kwargs["device"], self.used = "cpu", True
        if any(map(_is_cuda, args)):
            args, self.used = tuple("cpu" if _is_cuda(value) else value for value in args), True
        return func(*args, **kwargs)

    def _nothing(self, *_arguments: object, **_named: object) -> None:
        self.used = True


def _is_cuda(value: object) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.partition(":")[0] == "cuda"


def asks_for_cuda(error: BaseException) -> bool:
    """Return whether torch raised an exception because there is no GPU."""
    return any(complaint in str(error) for complaint in COMPLAINTS)
