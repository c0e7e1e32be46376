"""The protocol's PSNR over a benchmark folder, written from its definition for golden-number tests."""

import numpy as np
import torch

from utils.data.images import read_rgb


@torch.no_grad()
def benchmark_psnr(model, shared, benchmark):
    """Mean PSNR [dB] of a network with range [0, 1] on `shared`/benchmarks/`benchmark`."""
    results = []
    for hr_path in sorted((shared / "benchmarks" / benchmark / "HR").glob("*.png")):
        lr = torch.from_numpy(read_rgb(hr_path.parents[1] / "LR" / f"{hr_path.stem}x4.png"))
        sr = model(lr.permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
        sr = (sr.clamp(0, 1) * 255).round().double().numpy()
        hr = read_rgb(hr_path)[: sr.shape[0], : sr.shape[1]].astype(np.float64)
        mse = np.mean((sr - hr)[4:-4, 4:-4] ** 2)
        results.append(10 * np.log10(255**2 / mse))
    return np.mean(results)
