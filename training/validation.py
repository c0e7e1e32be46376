"""Validation during training: the plain network's PSNR over a data folder."""

import torch

from training.forms import fused
from utils.data.datasets import read_fitting_hr
from utils.evaluate.evaluation import restore
from utils.evaluate.metrics import psnr
from utils.evaluate.runner import Runner
from utils.zoo.registry import LoadedModel


@torch.no_grad()
def validation_psnr(model, entry, dataset, device):
    """Mean PSNR [dB] of an entry's network on a dataset with HR images, in float32; a training form is fused.

    Raises HarnessError, naming the entry's file, where the network fails or gives no image of four times the size.
    """
    plain = fused(model)
    training = plain.training
    runner = Runner(LoadedModel(plain.eval(), entry, None, None), device)
    results = []
    for pair in dataset.pairs:
        lr = pair.read_lr()
        results.append(psnr(restore(runner, lr)[0], read_fitting_hr(pair, lr)))
    plain.train(training)
    return sum(results) / len(results)
