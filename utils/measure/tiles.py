"""Run a network in overlapping tiles, joined without a seam, if GPU memory runs out on a whole image."""

import torch
from torch import Tensor, nn

from utils.measure.runtime import Pass, timed_forward
from utils.protocol import SCALE

SIDES = (512, 256, 128, 64)  # of the tiles tried [LR pixels]
# The border of a tile that is thrown away [LR pixels]. A pixel of NanoSR's output depends on 27 pixels around it, one
# for each 3x3 convolution in a row. With at least as wide a border, tiles give the same result as the whole image.
OVERLAP = 32
REACH_SIDE = 129  # of the image on which a network's reach is measured [LR pixels]


@torch.no_grad()
def reach(model: nn.Module, device: torch.device, data_range: float = 1.0, side: int = REACH_SIDE) -> int:
    """Return how far an LR pixel affects a network's output [LR pixels], up to about half of `side`.

    Change one pixel in the middle of a random image, and take the distance of the farthest output that differs.
    """
    lr = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device) * data_range
    middle, other = side // 2, lr.clone()
    other[:, :, middle, middle] = data_range - other[:, :, middle, middle]
    changed = (model(lr) != model(other)).any(dim=1)[0].nonzero() // SCALE
    return int((changed - middle).abs().max()) if len(changed) else 0


def forward_within_memory(model: nn.Module, lr: Tensor) -> Pass:
    """Run a network on 1 x 3 x H x W: the whole image at once, or the largest tiles that fit.

    `tile` is None for the whole image. The runtime of tiles is their sum. Raise torch.OutOfMemoryError if not even
    the smallest tiles fit.
    """
    try:
        return timed_forward(model, lr)
    except torch.OutOfMemoryError:
        pass  # the failed pass's tensors are freed only once its exception is gone
    sides = [side for side in SIDES if side < max(lr.shape[2:])]
    for side in sides:
        if lr.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return forward_in_tiles(model, lr, side)
        except torch.OutOfMemoryError:
            if side == sides[-1]:
                raise
    raise torch.OutOfMemoryError(f"an image of {lr.shape[3]} x {lr.shape[2]} does not fit, and no tile is smaller")


def forward_in_tiles(model: nn.Module, lr: Tensor, side: int, overlap: int = OVERLAP) -> Pass:
    """Run a network on 1 x 3 x H x W in tiles of at most `side` x `side`, with `overlap` LR pixels around each."""
    height, width = lr.shape[2:]
    sr = lr.new_empty(1, 3, SCALE * height, SCALE * width, dtype=torch.float32, device="cpu")
    runtime_ms = 0.0
    for top in range(0, height, side):
        for left in range(0, width, side):
            bottom, right = min(top + side, height), min(left + side, width)
            outer_top, outer_left = max(top - overlap, 0), max(left - overlap, 0)
            patch = lr[:, :, outer_top : bottom + overlap, outer_left : right + overlap]
            output, tile_ms, _ = timed_forward(model, patch)
            runtime_ms += tile_ms
            inner_top, inner_left = SCALE * (top - outer_top), SCALE * (left - outer_left)
            target = sr[:, :, SCALE * top : SCALE * bottom, SCALE * left : SCALE * right]
            target.copy_(
                output[:, :, inner_top : inner_top + target.shape[2], inner_left : inner_left + target.shape[3]]
            )
    return Pass(sr, runtime_ms, side)
