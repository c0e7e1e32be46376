"""A run's log.csv, TensorBoard events and curves.png. The CSV is the record; the others are views of it."""

import csv
import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from utils.files import LOG_FILE, write_text, writing

FIELDS = ("step", "loss", "gradient_norm", "learning_rate", "validation_psnr", "seconds", "precision", "kernels")


class TrainingLog:
    """Appends rows to `folder`/log.csv. Rows past `step`, left by a run killed after its last checkpoint, are removed.

    `first_loss` is the loss of the run's first row, or a value that the caller sets before there is one. All methods
    that write raise HarnessError if the disk is full. `precision` and `kernels` are those of the coming steps; they may
    change on another machine.
    """

    def __init__(self, folder: Path | str, step: int, precision: str = "", kernels: str = ""):
        self.path, self.precision, self.kernels = Path(folder) / LOG_FILE, precision, kernels
        rows = [row for row in read_log(self.path) if row["step"] <= step] if step else []
        kept = io.StringIO()
        writer = csv.DictWriter(kept, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, kept.getvalue())  # whole or not at all: these rows are of hours that are gone
        self.first_loss = float(rows[0]["loss"]) if rows else None
        with self._writing():
            self.file = open(self.path, "a", newline="", encoding="utf-8")
            self.events = SummaryWriter(str(Path(folder) / "events"), purge_step=step + 1)
        self.writer = csv.DictWriter(self.file, FIELDS, lineterminator="\n")

    def write(
        self,
        step: int,
        loss: float,
        gradient_norm: float,
        learning_rate: float,
        seconds: float,
        validation_psnr: float | None = None,
    ) -> None:
        """Add one row; `loss` is the mean since the row before, `validation_psnr` [dB] may be missing."""
        row: dict[str, Any] = {
            "step": step,
            "loss": f"{loss:.6f}",
            "gradient_norm": f"{gradient_norm:.4f}",
            "learning_rate": f"{learning_rate:.3e}",
            "validation_psnr": "" if validation_psnr is None else f"{validation_psnr:.4f}",
            "seconds": f"{seconds:.1f}",
            "precision": self.precision,
            "kernels": self.kernels,
        }
        self.first_loss = loss if self.first_loss is None else self.first_loss
        with self._writing():
            self.writer.writerow(row)
            self.file.flush()
            for key in FIELDS[1:-2]:
                if row[key]:
                    self.events.add_scalar(key, float(row[key]), step)

    def close(self) -> None:
        """Finish the files and draw curves.png."""
        with self._writing():
            self.file.close()
            self.events.close()
            rows = read_log(self.path)
            if rows:
                plot_curves(rows, self.path.with_name("curves.png"))

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self.path.parent, "choose another --run_dir")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log.csv as dicts, `step` as int and the other values as text; [] if there is no file.

    A last row that a full disk cut short is left out.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            whole = [line for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []
    return [{**row, "step": int(row["step"])} for row in csv.DictReader(whole)]


def plot_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw training loss and validation PSNR over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot([row["step"] for row in rows], [float(row["loss"]) for row in rows], linewidth=0.8)
    left.set(xlabel="step", ylabel="loss, images in [0, 1]", yscale="log", title="training loss")
    validated = [(row["step"], float(row["validation_psnr"])) for row in rows if row["validation_psnr"]]
    right.plot(*(zip(*validated, strict=True) if validated else ([], [])), marker=".")
    right.set(xlabel="step", ylabel="PSNR [dB], RGB", title="validation")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
