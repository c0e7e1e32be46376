"""Validation during training: the plain network's PSNR over a data folder."""

import torch

from training.forms import fused
from utils.data.datasets import read_fitting_hr
from utils.data.images import read_rgb, to_image, to_tensor
from utils.evaluate.metrics import psnr


@torch.no_grad()
def validation_psnr(model, dataset, device, data_range=1.0):
    """Mean PSNR [dB] of a network on a dataset with HR images, in float32; a training form is fused."""
    plain = fused(model)
    training = plain.training
    plain.eval()
    results = []
    for pair in dataset.pairs:
        lr = read_rgb(pair.lr)
        sr = to_image(plain(to_tensor(lr, data_range).to(device)), data_range)
        results.append(psnr(sr, read_fitting_hr(pair, lr)))
    plain.train(training)
    return sum(results) / len(results)
