"""Validation during training: the plain network's PSNR over a data folder."""

import torch
from torch import nn

from training.forms import fused
from utils.data.datasets import Dataset, read_fitting_hr
from utils.evaluate.evaluation import restore
from utils.evaluate.metrics import psnr
from utils.evaluate.runner import Runner
from utils.record import WeightsInfo
from utils.zoo.registry import LoadedModel, ModelEntry


@torch.no_grad()
def validation_psnr(model: nn.Module, entry: ModelEntry, dataset: Dataset, device: torch.device) -> float:
    """Return the mean PSNR [dB] of an entry's network on images with HR, in float32; a training form is fused.

    Raise HarnessError, naming the entry's file, where the network fails or gives no image of four times the size.
    """
    plain = fused(model)
    training = plain.training
    runner = Runner(LoadedModel(plain.eval(), entry, WeightsInfo(sha256=None, provenance=entry.provenance)), device)
    results = []
    for pair in dataset.pairs:
        lr = pair.read_lr()
        results.append(psnr(restore(runner, lr).sr, read_fitting_hr(pair, lr)))
    plain.train(training)
    return sum(results) / len(results)
