"""The reference that speed is compared with: the protocol as the organizers run it, written plainly.

Eager PyTorch, float32, contiguous memory, one image after the other, metrics in between in a single thread, SSIM by
full 11 x 11 filters over all three channels once for each channel, so three times the needed work.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn


@torch.no_grad()
def reference_evaluation(
    model: nn.Module, pairs: list[tuple[Path, Path]], save_dir: Path | str
) -> list[tuple[float, float]]:
    """Return a list of (PSNR [dB], SSIM) of a network with range [0, 1] over (LR path, HR path) pairs; save each SR."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    results = []
    for lr_path, hr_path in pairs:
        lr = _read(lr_path)
        x = torch.from_numpy(np.ascontiguousarray(lr.transpose(2, 0, 1))).float().div(255).unsqueeze(0)
        y = model(x.to(next(model.parameters()).device)).squeeze(0).float().cpu().clamp(0, 1).numpy()
        sr = (y.transpose(1, 2, 0) * 255.0).round().astype(np.uint8)
        hr = _read(hr_path)
        hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
        cv2.imwrite(str(Path(save_dir) / hr_path.name), cv2.cvtColor(sr, cv2.COLOR_RGB2BGR))
        sr, hr = sr[4:-4, 4:-4].astype(np.float64), hr[4:-4, 4:-4].astype(np.float64)
        psnr = 20 * np.log10(255.0 / np.sqrt(np.mean((sr - hr) ** 2)))
        results.append((float(psnr), float(np.mean([_ssim_of_all_channels(sr, hr) for _ in range(3)]))))
    cv2.setNumThreads(threads)
    return results


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _ssim_of_all_channels(x: np.ndarray, y: np.ndarray) -> float:
    kernel = cv2.getGaussianKernel(11, 1.5)
    window = kernel @ kernel.T
    mu_x, mu_y = (cv2.filter2D(image, -1, window)[5:-5, 5:-5] for image in (x, y))
    var_x = cv2.filter2D(x**2, -1, window)[5:-5, 5:-5] - mu_x**2
    var_y = cv2.filter2D(y**2, -1, window)[5:-5, 5:-5] - mu_y**2
    covariance = cv2.filter2D(x * y, -1, window)[5:-5, 5:-5] - mu_x * mu_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        np.mean((2 * mu_x * mu_y + c1) * (2 * covariance + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2)))
    )
