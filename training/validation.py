"""Validation during training: the fused network's PSNR over a data folder."""

import torch

from utils.data.datasets import read_fitting_hr
from utils.data.images import read_rgb, to_image, to_tensor
from utils.evaluate.metrics import psnr


@torch.no_grad()
def validation_psnr(model, dataset, device):
    """Mean PSNR [dB] of a training-form network on a dataset with HR images, fused, in float32."""
    fused = model.fuse().eval()
    results = []
    for pair in dataset.pairs:
        lr = read_rgb(pair.lr)
        results.append(psnr(to_image(fused(to_tensor(lr).to(device))), read_fitting_hr(pair, lr)))
    return sum(results) / len(results)
