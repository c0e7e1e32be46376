"""The built-in sample: six photographs that ship inside scikit-image, in the challenge's folder layout.

It lets a newcomer see the harness at work. It is not DIV2K_LSDIR_valid, and its label says so everywhere.
"""

from pathlib import Path

import skimage

from utils.data.datasets import LABEL_FILE, challenge_folders
from utils.data.images import bicubic_downscale, crop_to_multiple, read_rgb, write_png
from utils.errors import HarnessError, exit_on_harness_error
from utils.files import ROOT, write_json
from utils.options import command_line
from utils.protocol import SCALE

SAMPLE_DIR = ROOT / "data" / "sample"
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
LABEL = f"sample ({len(PHOTOGRAPHS)} photographs from scikit-image, not DIV2K_LSDIR_valid)"


def make_sample(folder: Path = SAMPLE_DIR) -> Path:
    """Write the sample's HR and LR images and its label below `folder`; the label comes last and marks it complete.

    Raise HarnessError if scikit-image's files are not where its wheel puts them, or if the folder cannot be written.
    """
    folder = Path(folder)
    source = Path(skimage.__file__).parent / "data"
    hr_dir, lr_dir = challenge_folders(folder, "valid")
    for name in PHOTOGRAPHS:
        if not (source / name).is_file():
            raise HarnessError(f"{source / name}: not in this scikit-image; install the release in requirements.txt")
        hr = crop_to_multiple(read_rgb(source / name))
        stem = Path(name).stem
        write_png(hr_dir / f"{stem}.png", hr)
        write_png(lr_dir / f"{stem}x{SCALE}.png", bicubic_downscale(hr))
    write_json(folder / LABEL_FILE, {"label": LABEL})
    return folder


def ensure_sample(folder: Path = SAMPLE_DIR) -> Path:
    """Make the sample unless it is there already; return its folder."""
    return folder if (Path(folder) / LABEL_FILE).is_file() else make_sample(folder)


def default_data_dir() -> Path:
    """Return `../`, the organizers' default, if the challenge's data is there; else the sample, made if needed."""
    parent = Path("..")
    return parent if challenge_folders(parent, "valid")[1].is_dir() else ensure_sample()


def main() -> None:
    command_line("-m utils.data.sample", "Make the built-in sample, six photographs of scikit-image.", "").parse_args()
    print(f"sample: {ensure_sample()}")


if __name__ == "__main__":
    exit_on_harness_error(main)
