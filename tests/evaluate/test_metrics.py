"""utils/evaluate/metrics.py against scikit-image and arithmetic on paper."""

import math

import numpy as np
import pytest
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kernels.ssim import similarity_in_c
from tests.helpers import photograph
from utils.evaluate.metrics import luma, luma_psnr, luma_ssim, psnr, ssim


def noisy_pair(height=40, width=33):
    hr = photograph(height, width)
    noise = np.random.default_rng(1).normal(0, 12, hr.shape)
    return np.clip(hr + noise, 0, 255).astype(np.uint8), hr


def scikit_ssim(sr, hr):
    return structural_similarity(
        hr[4:-4, 4:-4],
        sr[4:-4, 4:-4],
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2,
    )


def test_psnr_of_a_constant_difference_is_what_paper_gives():
    hr = np.full((20, 20, 3), 100, np.uint8)
    assert psnr(hr + 5, hr) == pytest.approx(20 * math.log10(255 / 5), abs=1e-12)


def test_psnr_agrees_with_scikit_image():
    sr, hr = noisy_pair()
    expected = peak_signal_noise_ratio(hr[4:-4, 4:-4], sr[4:-4, 4:-4], data_range=255)
    assert psnr(sr, hr) == pytest.approx(expected, abs=1e-9)


def test_psnr_does_not_mind_how_images_lie_in_memory():
    sr, hr = noisy_pair()
    assert psnr(sr[:, ::-1], np.ascontiguousarray(hr[:, ::-1])) == psnr(sr, hr)
    assert psnr(np.asfortranarray(sr), hr) == psnr(sr, hr)


def test_psnr_leaves_four_pixels_out_at_each_side():
    hr = photograph(24, 24)
    sr = hr.copy()
    for border in (np.s_[:4], np.s_[-4:], np.s_[:, :4], np.s_[:, -4:]):
        sr[border] = 255 - sr[border]
    assert psnr(sr, hr) == math.inf
    sr[4, 4, 0] ^= 1
    assert psnr(sr, hr) == pytest.approx(10 * math.log10(255**2 * 16 * 16 * 3), abs=1e-9)


@pytest.mark.parametrize("height", [40, 19, 18 + 32, 18 + 33, 120])  # one strip, exact strips, a rest of one row
def test_ssim_agrees_with_scikit_image(height):
    sr, hr = noisy_pair(height)
    expected = scikit_ssim(sr, hr)
    assert ssim(sr, hr) == pytest.approx(expected, abs=1e-9)
    assert expected < 0.99


@pytest.mark.parametrize("size", [(19, 19), (31, 20), (64, 83)])
def test_compiled_ssim_agrees_with_scikit_image(size, monkeypatch):
    sr, hr = noisy_pair(*size)
    if similarity_in_c(sr, hr, 11, 1.5, 1.0, 1.0) is None:
        pytest.skip("no C compiler here")
    expected = ssim(sr, hr)
    monkeypatch.setattr("utils.evaluate.metrics.COMPILED_PIXELS", 0)
    monkeypatch.setattr("utils.evaluate.metrics._similarity_in_strips", None)
    assert ssim(sr, hr) == pytest.approx(expected, abs=1e-12)
    assert ssim(sr, hr) == pytest.approx(scikit_ssim(sr, hr), abs=1e-9)
    assert ssim(np.asfortranarray(sr), hr) == ssim(sr, hr)
    assert ssim(sr[::-1], hr[::-1]) == pytest.approx(expected, abs=1e-12)


def test_ssim_of_an_image_with_itself_is_one():
    _, hr = noisy_pair()
    assert ssim(hr, hr) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_unequal_shapes_other_types_and_tiny_images_are_refused(metric):
    image = photograph(24, 24)
    with pytest.raises(ValueError, match="shapes"):
        metric(image, image[:20])
    with pytest.raises(ValueError, match="uint8"):
        metric(image.astype(np.float32), image)
    with pytest.raises(ValueError, match="border"):
        metric(image[:8], image[:8])


def test_ssim_needs_a_whole_window_inside_the_border():
    with pytest.raises(ValueError, match="window"):
        ssim(photograph(18, 40), photograph(18, 40))


def test_luma_of_the_primaries_is_that_of_bt_601():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luma(colours) == pytest.approx(np.array([[16, 235, 81.481, 144.553, 40.966]]), abs=1e-9)


def test_figures_on_luma_agree_with_scikit_image():
    sr, hr = noisy_pair(60, 41)
    y, x = (rgb2ycbcr(image)[4:-4, 4:-4, 0] for image in (sr, hr))
    assert luma_psnr(sr, hr) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=255), abs=1e-9)
    expected = structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert luma_ssim(sr, hr) == pytest.approx(expected, abs=1e-9)
    assert luma_psnr(hr, hr) == math.inf


def test_figures_on_luma_refuse_what_those_on_rgb_refuse():
    image = photograph(18, 40)
    with pytest.raises(ValueError, match="smaller than the 11 x 11 window"):
        luma_ssim(image, image)
    with pytest.raises(ValueError, match="uint8 is needed"):
        luma_psnr(image / 255.0, image / 255.0)
