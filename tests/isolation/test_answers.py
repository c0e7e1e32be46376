"""utils/isolation/answers.py: whatever a worker answers, it ends the worker at most."""

import json
from typing import Any

import msgspec
import pytest

from tests.helpers import QUICK, stored
from utils.errors import HarnessError
from utils.isolation.answers import checked

SOUND: dict[str, Any] = {
    "prepare": None,
    "load": {"sha256": "ab", "provenance": "trained", "missing_weights": None, "ignored": None, "notes": []},
    "load_from_repository": {"name": "07_Net", "data_range": 255.0, "files": ["/a/b\u00a0c d\u3000é.py"], "notes": []},
    "forward": {"runtime_ms": 1.5, "tile": None, "gpu_peak_mib": 3},
    "count": {"params": 1, "flops": 2, "activations": 3, "convs": 0},
    "watch": {"macs": 5, "operators_ms": 0.0, "outside_ms": 1.0, "plain_ms": 2},
    "changed": ["sys.path"],
    "peak": 7,
    "reach": 7,
}
WRONG: tuple[Any, ...] = (
    None,
    5,
    -1,
    1.5,
    True,
    "text",
    "\x1b[2J",
    "\0",
    "\ud800",
    "x" * 5000,
    [],
    [1],
    {},
    [["deep"]],
    1 << 70,
)
FIT: dict[str, Any] = {  # of the wrong ones, those that are right here
    "sha256": (None, "text"), "missing_weights": (None, "text"), "ignored": (None, "text"), "provenance": ("text",),
    "name": ("text",), "data_range": (5, 1.5), "files": ([],), "notes": ([],),
    "runtime_ms": (5, 1.5), "tile": (None, 5), "gpu_peak_mib": (None, 5, 1.5),
    "operators_ms": (5, 1.5), "outside_ms": (5, 1.5), "plain_ms": (5, 1.5),
    "changed": ([],), "prepare": (None,),
}  # fmt: skip


@pytest.mark.parametrize("do", SOUND)
def test_answer_as_it_should_be_is_taken(do):
    taken = msgspec.to_builtins(checked(do, json.loads(json.dumps(SOUND[do]))))
    assert taken == SOUND[do] if not isinstance(taken, dict) else SOUND[do].items() <= taken.items()


def test_peak_of_gpu_memory_is_there_on_a_gpu():
    assert is_taken("forward", SOUND["forward"], on_gpu=True)
    assert not is_taken("forward", SOUND["forward"] | {"gpu_peak_mib": None}, on_gpu=True)


def is_taken(do, answer, on_gpu=False):
    try:
        checked(do, answer, on_gpu)
    except HarnessError:
        return False
    return True


@pytest.mark.parametrize("do", SOUND)
def test_anything_else_is_not(do):
    if not isinstance(SOUND[do], dict):
        taken = [wrong for wrong in WRONG if is_taken(do, wrong)]
        assert taken == list(FIT.get(do, (5,)))
        return
    for name in SOUND[do]:
        taken = [wrong for wrong in WRONG if is_taken(do, SOUND[do] | {name: wrong})]
        assert taken == list(FIT.get(name, (5,))), name
        assert not is_taken(do, {key: value for key, value in SOUND[do].items() if key != name})
    assert not is_taken(do, SOUND[do] | {"more": 1})
    assert not is_taken(do, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_time_is_finite(value):
    assert not is_taken("forward", SOUND["forward"] | {"runtime_ms": value})


REWRITTEN = """
from utils.worker.channel import Channel
def send(self, message):
    {body}
Channel.send = send
"""


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("self.connection.send_bytes(b'[' * 900000)", "its process sent an invalid reply"),
        slow("self.connection.send_bytes(b'[1]')", "its process sent an invalid reply"),
        slow(
            "self.connection.send_bytes(b'{\"number\": %d, \"answer\": 7}' % message['number'])",
            "its process sent an invalid reply to 'load'",
        ),
        slow(
            'self.connection.send_bytes(b\'{"number": %d, "error": "\\\\u001b[2J"}\' % message[\'number\'])',
            "error: ?[2J",
        ),
    ],
)
def test_host_outlives_a_process_that_is_rewritten(command, submission, pairs, tmp_path, body, reason):
    words = submission(top=REWRITTEN.format(body=body))
    result = command("eval.py", *QUICK, "--data_dir", pairs, *words, cwd=tmp_path)
    assert result.returncode in (1, 2), result.stderr
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("top", "forward", "reason"),
    [
        # two images, then the counted pass of the steady time
        (
            "calls = []",
            "calls.append(1)\n        1 / (len(calls) - 3)",
            "fails on an LR image of 24 x 16 (line 17: ZeroDivision",
        ),
        # the first pass of the fresh process by which memory is measured
        pytest.param(
            "",
            "1 / (x.shape[2:] != (64, 64))",
            "ZeroDivisionError",
            marks=[pytest.mark.real_process, pytest.mark.slow],
            id="memory",
        ),
        ("sys.modules['__main__'].Worker.reset_peak = lambda self: 1 / 0", "pass", "ZeroDivisionError"),
    ],
    ids=["steady", None, "peak"],
)
def test_failure_at_any_moment_costs_the_result(command, submission, pairs, tmp_path, top, forward, reason):
    words = submission(top=top, forward=forward)
    result = command("eval.py", *QUICK, "--data_dir", pairs, *words, cwd=tmp_path)
    assert result.returncode == 2
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert reason in stored(tmp_path / "results", "incomplete")["Net"]["reason"]


def test_log_has_the_traceback_of_a_failure(command, submission, pairs, tmp_path):
    result = command("eval.py", *QUICK, "--data_dir", pairs, *submission(forward="x.relu_is_no_method()"), cwd=tmp_path)
    assert result.returncode == 2
    assert "AttributeError: 'Tensor' object has no attribute 'relu_is_no_method') (its output: " in result.stderr
    (log,) = (tmp_path / "results" / "logs").glob("*.log")
    assert log.read_text().count("Traceback (most recent call last)") == 1
    assert "x.relu_is_no_method()" in log.read_text()
