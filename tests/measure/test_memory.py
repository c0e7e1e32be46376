"""utils/measure/memory.py: the peak is what is in use at once, whatever was in use before, in every process."""

import pytest

from tests.helpers import write_model
from utils.measure.memory import cpu_peak_mib
from utils.zoo.registry import entry_from_file


def test_peak_is_not_that_of_the_past(tmp_path):
    """A network that runs a large image in its constructor takes no more than one that does not."""
    peaks = []
    for name, warm in (("cold", "pass"), ("warm", "with torch.no_grad(): self.conv(torch.ones(1, 3, 512, 512))")):
        file, weights = write_model(tmp_path / name, constructor=warm)
        peaks.append(cpu_peak_mib(entry_from_file(file, "Net", [], weights), (1, 3, 64, 64)))
    assert peaks[1] == pytest.approx(peaks[0], abs=3)


@pytest.mark.slow
def test_peak_is_what_is_in_use_at_once(tmp_path):
    forward = (
        "for mib in (8, 24, 12, 32, 20, 28) if x.shape[2] > 16 else ():\n"
        "            torch.ones(mib * 2**18), torch.ones(1000)\n"
        "        return F.interpolate(x, scale_factor=4)"
    )
    file, weights = write_model(tmp_path, forward=forward)
    entry = entry_from_file(file, "Net", [], weights)
    peaks = [cpu_peak_mib(entry, (1, 3, 64, 64)) for _ in range(2)]
    assert peaks == pytest.approx([32, 32], abs=2)
