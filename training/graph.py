"""A training step as one CUDA graph."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from training.loop import Trainer

GUARD_EVERY = 100  # steps between checks of a graph's losses


class GraphedUpdate:
    """`Trainer.update` as one CUDA graph: the host only copies the batch, launches the graph and updates the average.

    The first steps run eagerly, since a capture needs a warm-up; they are ordinary steps. Losses stay on the device and
    are checked every `GUARD_EVERY` steps; the error names the first step that was not finite.
    """

    def __init__(self, trainer: "Trainer"):
        self.trainer = trainer
        self.graph: torch.cuda.CUDAGraph | None = None
        self.history: list[Tensor] = []
        self.eager_steps = 3

    def __call__(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        trainer = self.trainer
        if self.eager_steps:
            self.eager_steps -= 1
            side = torch.cuda.Stream()  # capture wants its warm-up on another stream
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), fastest_algorithms():
                result = trainer.update(lr, hr)
            torch.cuda.current_stream().wait_stream(side)
            return result
        if self.graph is None:
            self.lr, self.hr = lr.clone(), hr.clone()
            self.graph = torch.cuda.CUDAGraph()
            # Recorded, not run. "thread_local": the feed's threads may allocate pinned memory meanwhile.
            with fastest_algorithms(), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.loss, self.norm = trainer.gradients(self.lr, self.hr)
                trainer.apply()
        trainer.set_learning_rates()
        self.lr.copy_(lr)
        self.hr.copy_(hr)
        self.graph.replay()
        trainer.advance()  # not part of the graph: the average's share changes from step to step
        self.history.append(torch.stack([self.loss, self.norm]))
        if len(self.history) == GUARD_EVERY:
            self.check()
        return self.loss.clone(), self.norm.clone()

    def check(self) -> None:
        """Raise FloatingPointError if a step since the last check was not finite; set `step` back to that step."""
        first = self.trainer.step - len(self.history)
        history, self.history = self.history, []
        if history:
            for offset, (loss, norm) in enumerate(torch.stack(history).tolist()):
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    self.trainer.step = first + offset
                    raise FloatingPointError(f"loss {loss}, gradient norm {norm}")


@contextmanager
def fastest_algorithms() -> Iterator[None]:
    """Let cuDNN benchmark its algorithms for each new convolution shape, which pays off if shapes do not change."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
