"""Reading and writing 8-bit RGB images, conversion to network tensors, and MATLAB's bicubic downscaling."""

import contextlib
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch

from utils.errors import HarnessError, one_line
from utils.files import writing
from utils.protocol import SCALE

STRIP_BYTES = 1 << 20  # of float32 grey levels that are rounded at once, so that they stay in the cache
JPEG_SIGNATURE, PNG_SIGNATURE = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"


def image_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return a folder's files with one of the suffixes (".png", in any case), sorted and without hidden files.

    A copy from macOS has a hidden `._NAME.png` beside every image, which is not an image.
    """
    files = (path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    return sorted(path for path in files if not path.name.startswith("."))


def read_rgb(path: Path | str) -> np.ndarray:
    """Read an 8-bit PNG or JPEG as H x W x 3 uint8 RGB; a grey image gives three equal channels.

    Raise HarnessError if the file is missing, unreadable, truncated, not 8-bit, or has an alpha channel.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    # OpenCV fills the missing part of a damaged file with grey and says so only on stderr.
    if data.startswith(PNG_SIGNATURE) and not _png_is_whole(data):
        raise HarnessError(f"{path}: truncated PNG; copy or download it again")
    image = _decode_jpeg(data, path) if data.startswith(JPEG_SIGNATURE) else None
    if image is not None:
        return image
    if data:
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise HarnessError(f"{path}: not a readable image; replace it by an 8-bit PNG")
    if image.dtype != np.uint8:
        raise HarnessError(f"{path}: {image.dtype.itemsize * 8}-bit image, the protocol needs 8 bits; convert it")
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] != 3:
        raise HarnessError(f"{path}: has an alpha channel; save it as RGB without transparency")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _png_is_whole(data: bytes) -> bool:
    """Return whether a PNG has all its chunks up to IEND. Data after that chunk is ignored."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):  # a chunk: length, type, data, check sum
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        at += 12 + length
        if kind == b"IEND":
            return at <= len(data)
    return False


def _decode_jpeg(data: bytes, path: Path) -> np.ndarray | None:
    """Return a JPEG as H x W x 3 uint8 RGB; None for one in CMYK, which OpenCV converts.

    Raise HarnessError if libjpeg warns about missing or damaged data. OpenCV does not pass on these warnings.
    """
    try:
        in_cmyk = simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK")
        image = simplejpeg.decode_jpeg(data, colorspace="CMYK" if in_cmyk else "RGB", strict=True)
        return None if in_cmyk else image
    except ValueError as error:
        reason = one_line(str(error), 100)
        raise HarnessError(f"{path}: damaged JPEG ({reason}); copy or download it again") from error


def write_png(path: Path | str, image: np.ndarray) -> None:
    """Write H x W x 3 uint8 RGB as PNG, creating the folder. Raise HarnessError if that fails."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))


def encode_png(image: np.ndarray) -> bytes:
    """Return H x W x 3 uint8 RGB as the bytes of a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def to_tensor(image: np.ndarray, data_range: float = 1.0) -> torch.Tensor:
    """Turn H x W x 3 uint8 into 1 x 3 x H x W float32 in [0, data_range]."""
    chw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return chw.unsqueeze(0).float() / 255 * data_range


def to_image(tensor: torch.Tensor, data_range: float = 1.0) -> np.ndarray:
    """Turn 1 x 3 x H x W in [0, data_range] (clamped to it) into H x W x 3 uint8, rounded as the protocol does.

    NaN becomes 0, as in NumPy's conversion on most processors.
    """
    chw = tensor.detach().squeeze(0)
    _, height, width = chw.shape
    image = np.empty((height, width, 3), np.uint8)
    rows = height if chw.device.type == "cuda" else max(1, STRIP_BYTES // (12 * width))
    for top in range(0, height, rows):
        grey_levels = chw[:, top : top + rows].float().clamp(0, data_range).mul_(255).div_(data_range).round_()
        planes = grey_levels.nan_to_num_().to(torch.uint8).cpu().contiguous().numpy()
        cv2.merge([*planes], image[top : top + rows])  # several times as fast as a permutation
    return image


def crop_to_multiple(image: np.ndarray, multiple: int = SCALE) -> np.ndarray:
    """Cut rows and columns at the bottom and right so that both sides are multiples of `multiple`."""
    height, width = image.shape[0] // multiple * multiple, image.shape[1] // multiple * multiple
    return image[:height, :width]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return Keys' cubic convolution kernel with a = -0.5, support [-2, 2]."""
    x = np.abs(x)
    return np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0))


def bicubic_weights(scale: int = SCALE) -> np.ndarray:
    """Return the weights of the 4 x scale pixels that `bicubic_downscale` makes one of, float32 with a sum of 1."""
    taps = 4 * scale
    weights = _cubic((np.arange(taps) - (taps - 1) / 2) / scale)
    return (weights / weights.sum()).astype(np.float32)


def _shrink_rows(image: np.ndarray, scale: int) -> np.ndarray:
    """Do one pass of MATLAB's imresize along the first axis: the antialiased kernel, mirrored borders, uint8 result."""
    weights = bicubic_weights(scale)
    margin = (len(weights) - scale) // 2
    padded = np.pad(image, [(margin, margin)] + [(0, 0)] * (image.ndim - 1), mode="symmetric").astype(np.float32)
    rows = image.shape[0] // scale
    total = np.zeros((rows, *image.shape[1:]), np.float32)
    for tap, weight in enumerate(weights):
        total += weight * padded[tap : tap + scale * rows : scale]
    return np.clip(np.floor(total + 0.5), 0, 255).astype(np.uint8)


def bicubic_downscale(image: np.ndarray, scale: int = SCALE) -> np.ndarray:
    """Shrink H x W x 3 uint8 by 1/scale as MATLAB's `imresize(image, 1/scale)` does, bit for bit at scale 4.

    Antialiased cubic kernel (a = -0.5), mirrored borders, the vertical pass first, rounding half up to uint8 after
    each pass. At scale 4 every weight is a multiple of 2**-12, which makes float32 sums exact in any order.
    Raise ValueError if a side is not a multiple of `scale` or is shorter than its border.
    """
    if image.shape[0] % scale or image.shape[1] % scale:
        raise ValueError(f"shape {image.shape[:2]} is not a multiple of {scale}")
    return _shrink_rows(_shrink_rows(image, scale).swapaxes(0, 1), scale).swapaxes(0, 1)
