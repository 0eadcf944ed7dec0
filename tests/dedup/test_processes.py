"""Two gloo processes: their sums, their gradients, and a training that equals one process's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from dedup.config import TrainConfig
from dedup.processes import Processes, blocks, device_of, working_together
from dedup.train import run
from pipeline.core.errors import UsageError
from pipeline.core.stage import RunOptions
from tests.model.test_distributed import torchrun

# Five pairs, so that the two processes' parts differ in size; the first three pairs are one picture.
GRADIENTS = """
import numpy as np, torch
from dedup.contrast import Arithmetic, backward
from dedup.detector import Architecture, Detector
from dedup.processes import working_together
shape = dict(image_px=32, stem_channels=8, stem_kernel=5, stem_pool=True, widths=(4, 8), depths=(1, 1))
torch.manual_seed(0)
detector = Detector(Architecture(**shape, learned=16, embedding=16))
first = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (5, 3, 32, 32), dtype=np.uint8))
first[1] = first[2] = first[0]
second, groups = first + 50, torch.tensor([7, 7, 7, 8, 9])

def gradients(how, rows, groups=groups):
    detector.zero_grad(set_to_none=True)
    given = (first[rows], second[rows], groups)
    loss, accuracy = backward(detector.learned, detector, given, how, how.scaler())
    return [p.grad.clone() for p in detector.parameters()], loss, accuracy

wanted, loss, accuracy = gradients(Arithmetic(), slice(None))
with working_together("cpu") as mine:
    assert mine.count == 2
    rows = mine.part(5)
    assert rows == (slice(0, 2), slice(2, 5))[mine.rank]
    assert mine.any(mine.rank == 1, False) == [True, False]
    assert mine.sum(torch.tensor([1.0, mine.rank])).tolist() == [2.0, 1.0]
    assert mine.agree(b"the same")
    assert not mine.agree(b"mine %d" % mine.rank)
    for chunk in (None, 1):
        found, whole, right = gradients(Arithmetic(processes=mine, chunk_size=chunk), rows)
        torch.testing.assert_close((whole, right), (loss, accuracy), atol=1e-6, rtol=0)
        for one, other in zip(found, wanted):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    _, apart, _ = gradients(Arithmetic(), rows, groups[rows])
    assert abs(apart - loss) > 0.01, "a part alone is not the whole"
"""

APART = """
from types import SimpleNamespace
import numpy as np
from dedup.config import TrainConfig
from dedup.contrast import Arithmetic
from dedup.detector import PRESETS, Detector
from dedup.fit import fit
from dedup.processes import working_together
from dedup.trainer import Trainer
from pipeline.core.errors import InputError, StageFailedError

with working_together("cpu") as mine:
    found = {"part": "network", "done": False, "place": "{}"} if mine.rank else None
    kept = SimpleNamespace(load=lambda decode: found)
    try:
        Trainer(Detector(PRESETS["small"]), ("network",), how=Arithmetic(processes=mine), snapshots=kept)
        raise SystemExit("went on from different snapshots")
    except StageFailedError as error:
        assert "different snapshots" in str(error)
    pictures = SimpleNamespace(keys=[b"first", bytes([mine.rank])])
    try:
        fit(TrainConfig(images=("x",)), pictures, np.arange(2), processes=mine, snapshots=None, quiet=True)
        raise SystemExit("trained on different pictures")
    except InputError as error:
        assert "different pictures" in str(error)
"""


@pytest.mark.parametrize(("length", "count"), [(5, 2), (8, 3), (2, 2), (1712, 8), (1, 3)])
def test_parts_and_blocks_cover_all_rows_once(length: int, count: int) -> None:
    everyone = [Processes(rank=rank, count=count) for rank in range(count)]
    rows = np.arange(length)
    assert np.concatenate([rows[p.part(length)] for p in everyone]).tolist() == rows.tolist()
    sizes = [len(rows[p.part(length)]) for p in everyone]
    assert max(sizes) - min(sizes) <= 1
    pieces = [rows[block].tolist() for p in everyone for block in blocks(length, 4, p)]
    assert sorted(pieces) == [rows[start : start + 4].tolist() for start in range(0, length, 4)]


def test_one_process_needs_no_others() -> None:
    with working_together("cpu") as alone:
        assert (alone.rank, alone.count, alone.device.type) == (0, 1, "cpu")
    tensor = torch.ones(3)
    assert alone.sum(tensor) is tensor
    assert alone.any(True, False) == [True, False]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="torch can use no GPU"), working_together("cuda"):
        pass


def test_two_processes_have_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    torchrun(str(script))


def test_processes_that_would_train_on_unlike_things_stop(tmp_path: Path) -> None:
    script = tmp_path / "apart.py"
    script.write_text(APART)
    torchrun(str(script))


@pytest.mark.slow
def test_two_processes_train_as_one(shards: str, tmp_path: Path) -> None:
    values = {"pairs": 60, "batch_size": 15, "joined_pictures": 40, "head_pairs": 512, "learning_rate": 1e-3}
    config = TrainConfig(images=(shards,), device="cpu", **values)  # type: ignore[arg-type]
    run(config, str(tmp_path / "one"), RunOptions(quiet=True))
    settings = [f"--set=dedup.train.{key}={value}" for key, value in values.items()]
    common = ["-m", "pipeline", "dedup", "train", "--images", shards, "--device", "cpu", *settings]
    torchrun(*common, "--chunk-size", "3", "--quiet", "--out", str(tmp_path / "two"))
    one, two = (safetensors.torch.load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        # The map over so few pictures has directions that rounding decides, and the head follows the map.
        if name.startswith(("stem", "blocks", "head")):
            # Adam divides by the gradient's size: where that is rounding error, so is the step.
            assert (two[name] - one[name]).abs().mean() < 2e-5, name
    curves = [
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    for mine, other in zip(*curves, strict=True):
        assert (mine.keys(), mine.get("pairs")) == (other.keys(), other.get("pairs"))
        if "loss" in mine:
            assert mine["loss"] == pytest.approx(
                other["loss"], abs=1e-4 if mine["part"] == "network" else 0.05
            )
    assert "already done" in torchrun(*common, "--out", str(tmp_path / "two"))


def test_a_gpu_computes_at_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert device_of("auto").type == "cuda"
    assert not torch.backends.cudnn.allow_tf32
