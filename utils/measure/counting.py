"""Count what a network computes as torch's dispatcher sees it, to complement the protocol's counters.

fvcore counts a trace, and hooks count calls of modules. A network may notice that it is traced, hold values that are
not parameters, or compute by other means than modules. The dispatcher sees every operator of an ordinary pass, the
tensors that it reads, and the time between two operators.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from utils.typed import Amount, Count, Texts

CALIBRATION_CALLS = 200
NAMED = 5  # values and operators that an answer names
OWN_OPERATORS = ("aten", "prims", "prim", "profiler", "c10d")  # namespaces of PyTorch's operators
CONVOLUTIONS = {"convolution", "_convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution"}
PRODUCTS = {"mul", "mul_", "div", "div_", "addcmul", "addcmul_"}  # element by element
SUMS = {"sum", "mean", "cumsum", "nansum", "avg_pool2d", "_adaptive_avg_pool2d"}
ADDITIONS = {"add", "add_", "sub", "sub_"}
UNPACKING = {  # operators that make several numbers out of one
    "bitwise_and", "bitwise_right_shift", "bitwise_left_shift", "__rshift__", "__lshift__", "__and__",
    "floor", "trunc", "frac", "round", "remainder", "fmod", "floor_divide",
}  # fmt: skip
# Operators that multiply but are not in PyTorch's registry: multiply-accumulates follow from their tensors.
MATRIX_PRODUCTS = {"_int_mm", "_weight_int8pack_mm", "mkldnn_linear", "_mkldnn_linear_pointwise"}
VECTOR_PRODUCTS = {"mv", "addmv", "dot", "vdot", "ger", "addr", "outer"}
STATISTICS = {
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
}
SPARSE = {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
WEIGHTED = {*CONVOLUTIONS, "mm", "addmm", "bmm", "baddbmm"}


class Watched(Struct, kw_only=True):
    """Counts of one pass.

    `macs` are multiply-accumulates without `summed_products`, which are element-wise products that are summed up
    afterwards. `convs` and `activations` count convolutions and their outputs, whether they are modules or not.
    `hidden_values` are numbers read that are neither parameters nor statistics of a batch norm; `hidden` names some of
    them. `made_weights` are weights of convolutions and matrix products that come from neither parameters, hidden
    values nor the image. `unpacked_weights` are weights that come from parameters holding several numbers each.
    `unknown` names operators that no counter knows, with the sizes of their tensors.
    """

    macs: Count = 0
    summed_products: Count = 0
    convs: Count = 0
    activations: Count = 0
    hidden_values: Count = 0
    hidden: Texts = []
    made_weights: Count = 0
    unpacked_weights: Count = 0
    unknown: Texts = []
    operators_ms: Amount = 0.0
    outside_ms: Amount = 0.0  # without the time for watching


# Where a tensor's values come from.
PARAMETER, IMAGE, HIDDEN, CONSTANT, UNPACKED = 1, 2, 4, 8, 16


class OperatorWatch(TorchDispatchMode):
    """A context that watches the operators run in it. `watching_s` is the time spent here, operators included."""

    def __init__(self, device: torch.device, model: nn.Module | None = None, lr: Tensor | None = None):
        super().__init__()
        self.device = torch.device(device)
        self.seen = Watched(hidden=[], unknown=[])
        self.flops, self.calls, self.operators_s, self.watching_s = 0, 0, 0.0, 0.0
        self.origins: dict[int, int] = {}  # of each storage, a sum of the flags above
        self.products: dict[int, int] = {}  # storages of element-wise products: how many there are
        self.sums: set[int] = set()  # storages to which products have been added
        self.names: dict[int, str] = {}
        self.hidden: list[tuple[int, str]] = []  # how many numbers, and what holds them
        self.known: dict[int, StorageWeakRef] = {}  # while a reference is kept, no other storage gets its address
        if model is not None:
            for parameter in model.parameters():
                self._note(parameter, PARAMETER)
            for name, buffer in model.named_buffers():
                self.names[self._address(buffer)] = f"buffer {name}"
        if lr is not None:
            self._note(lr, IMAGE)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        entered, kwargs = time.perf_counter(), kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            with self:
                composed = func.decompose(*args, **kwargs)
            if composed is not NotImplemented:
                return composed  # its operators have been seen
        start = time.perf_counter()
        output = func(*args, **kwargs)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        end = time.perf_counter()
        self.operators_s += end - start
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=output)
        self._look(func, args, kwargs, output)
        self.calls += 1
        self.watching_s += time.perf_counter() - entered
        return output

    def _look(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        name = func._overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        statistics = set(map(id, inputs[3:])) if name in STATISTICS else set()
        origin = 0
        for tensor in inputs:
            if id(tensor) not in statistics:
                origin |= self._origin(tensor)
        if name in WEIGHTED and len(inputs) > 1:
            self._weigh(inputs[1 if name in CONVOLUTIONS else -1])
        if name in CONVOLUTIONS and outputs:
            self.seen.convs += 1
            self.seen.activations += outputs[0].numel()
        sparse = any(tensor.layout in SPARSE for tensor in inputs) and func._overloadpacket not in flop_registry
        if (func.namespace not in OWN_OPERATORS or sparse) and len(self.seen.unknown) < NAMED:
            sizes = [" -> ".join(", ".join(map(_size, group)) for group in (inputs, outputs))]
            line = f"{func.namespace}::{name} ({sizes[0]})"
            if line not in self.seen.unknown:
                self.seen.unknown.append(line)
        if name in VECTOR_PRODUCTS:
            self.flops += 2 * max(tensor.numel() for tensor in [*inputs, *outputs])
        if name in MATRIX_PRODUCTS and outputs:
            self.flops += 2 * inputs[0].numel() * outputs[0].shape[-1]
        if name == "im2col":
            self.seen.convs += 1  # its products are counted as those of matrices
        if "fft" in name and outputs:
            numbers = max(tensor.numel() for tensor in [*inputs, *outputs])
            self.flops += 2 * int(2.5 * numbers * math.log2(max(numbers, 2)))  # 5 n log2 n operations
        self._follow_products(name, inputs, outputs)
        recast = name == "view" and bool(outputs) and outputs[0].dtype != inputs[0].dtype
        if origin & PARAMETER and not origin & IMAGE and (recast or name in UNPACKING):
            origin |= UNPACKED
        before = {self._address(tensor) for tensor in inputs}
        for tensor in outputs:
            address = self._address(tensor)
            shared = self.origins.get(address, 0) if address in before else 0  # a view, or in place
            self.origins[address] = shared | origin or CONSTANT

    def _weigh(self, weight: Tensor) -> None:
        """Count unpacked weights, and weights that come from neither parameters, hidden values nor the image."""
        origin = self._origin(weight)
        if not origin & (PARAMETER | IMAGE | HIDDEN):
            self.seen.made_weights += weight.numel()
        if origin & UNPACKED and not origin & IMAGE:
            self.seen.unpacked_weights += weight.numel()

    def _follow_products(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Count element-wise products of two tensors when they are summed, even through views.

        A single product added to something is a residual or an attention. From the second product on, it is a sum.
        """
        if name in PRODUCTS and len(inputs) > 1 and min(tensor.numel() for tensor in inputs[:2]) > 1:
            for tensor in outputs:
                self.products[self._address(tensor)] = tensor.numel()
                if name.startswith("addc"):
                    self._add_products([self._address(tensor) for tensor in inputs[:1]], [tensor])
            return
        addresses = [self._address(tensor) for tensor in inputs]
        if name in ADDITIONS and len(inputs) > 1:
            self._add_products(addresses, outputs)
            return
        if name in SUMS and addresses and addresses[0] in self.products:
            self.seen.summed_products += self.products.pop(addresses[0])
        elif len(inputs) == 1 and len(outputs) == 1 and outputs[0].numel() == inputs[0].numel():
            found = self.products.get(addresses[0])  # a copy in another order, or with another sign
            if found:
                self.products[self._address(outputs[0])] = found

    def _add_products(self, addresses: list[int], outputs: list[Tensor]) -> None:
        """Follow an addition of the storages at `addresses`. Count its products unless they are the first of a sum."""
        target = self._address(outputs[0])
        added = sum(self.products.pop(address, 0) for address in {*addresses, target})
        summed = any(address in self.sums for address in addresses) or (
            len(addresses) > 1 and added > outputs[0].numel()
        )
        self.sums.discard(target)
        if added:
            self.seen.summed_products += added if summed else 0
            self.sums.add(target)

    def _origin(self, tensor: Tensor) -> int:
        """Return where a tensor's values come from. If the origin is unknown, count them as hidden."""
        address = self._address(tensor)
        origin = self.origins.get(address)
        if origin is None:
            values = tensor.numel() * (2 if tensor.is_complex() else 1)
            self.seen.hidden_values += values
            name = self.names.get(address, "a tensor that is in no state dict")
            self.hidden.append((values, f"{name} ({_size(tensor)})"))
            self._note(tensor, HIDDEN)
            return HIDDEN
        return origin

    def _note(self, tensor: Tensor, origin: int) -> None:
        self.origins[self._address(tensor)] = origin

    def _address(self, tensor: Tensor) -> int:
        if tensor.layout != torch.strided or tensor.is_quantized:
            return id(tensor)
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return id(tensor)
        address = storage._cdata
        if address not in self.known:
            self.known[address] = StorageWeakRef(storage)
        return address


def stored_values(model: nn.Module) -> int:
    """Return how many 32-bit numbers the parameters hold. A complex64 or 64-bit parameter holds two.

    A parameter of less than 32 bits counts as one number, as in the protocol.
    """
    return sum(parameter.numel() * max(1, 8 * parameter.element_size() // 32) for parameter in model.parameters())


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


@torch.no_grad()
def watched_pass(model: Callable[[Tensor], Any], lr: Tensor) -> tuple[Watched, Any]:
    """Run a network on 1 x 3 x H x W, on its device; return what torch's dispatcher saw, and the output."""
    tiny = torch.zeros(1)
    calibration, calibration_s, _ = _watch(lambda _: [tiny.neg() for _ in range(CALIBRATION_CALLS)], tiny)
    per_call_s = (calibration_s - calibration.watching_s) / CALIBRATION_CALLS
    watch, total_s, output = _watch(model, lr)
    seen = watch.seen
    seen.macs = watch.flops // 2
    seen.hidden = [name for _, name in sorted(watch.hidden, reverse=True)[:NAMED]]
    seen.operators_ms = 1000 * watch.operators_s
    seen.outside_ms = 1000 * max(total_s - watch.watching_s - per_call_s * watch.calls, 0.0)
    return seen, output


def _watch(function: Callable[[Tensor], Any], lr: Tensor) -> tuple[OperatorWatch, float, Any]:
    watch = OperatorWatch(lr.device, function if isinstance(function, nn.Module) else None, lr)
    start = time.perf_counter()
    with watch:
        output = function(lr)
    return watch, time.perf_counter() - start, output
