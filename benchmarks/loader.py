"""The loader against open_clip's webdataset pipeline: images a CPU second from the same shards, one process.

`python -m benchmarks.loader`; the peers: `pip install --no-deps open-clip-torch==3.3.0 timm==1.0.31
torchvision==0.28.0` beside webdataset. The shards are made here: 256-pixel JPEGs with texts, as img2dataset writes
them. Three jobs, each timed for both and checked:

- ordinary shards, resized again: ours resizes to the training size and crops, as the paper's only augmentation;
  open_clip's training transform is a random resized crop. Both resample every image and give 224 x 224.
- ordinary shards, same work: open_clip's pipeline with our very transform (bicubic resize of the short side, random
  crop, to float, normalise) in place of its own.
- shards written at training size (256 for 224): ours only crops; open_clip's transform has no such choice.

Open_clip's batches are normalised floats; ours are bytes that the device normalises.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import say, table
from model.clip import MEAN, STD
from model.data import Loader
from model.images import decode_pixels
from model.shards import Index, read_index
from model.tar_index import members
from model.tokenizer import Tokenizer
from pipeline.core.tars import Sample, write_shard

SIZE, STORED, LONG = 224, 256, 342
BATCH = 64


def photograph(number: int) -> bytes:
    """A JPEG that costs about what a photograph does: smooth areas, edges, some noise; about 36 kB."""
    draw = np.random.default_rng(number)
    coarse = draw.integers(0, 256, (18, 24, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((LONG, STORED), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth).astype(np.int16) + draw.normal(0, 9, (STORED, LONG, 3)).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def make_shards(folder: Path, images: int) -> list[str]:
    """Two tars of (jpg, txt, json) samples."""
    half = images // 2
    for shard in (0, 1):
        samples = [
            Sample(f"{i:09}", {"jpg": photograph(i), "txt": f"a photo of number {i}".encode(), "json": b"{}"})
            for i in range(shard * half, (shard + 1) * half)
        ]
        write_shard(str(folder / f"{shard:05}.tar"), samples)
    return [str(folder / f"{shard:05}.tar") for shard in (0, 1)]


def ours(index: Index, *, short_side: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Our loader's batches of one epoch: pixels uint8 [B, S, S, 3] and tokens."""
    loader = Loader(
        index, Tokenizer(), batch_size=BATCH, image_size=SIZE, short_side=short_side, seed=seed, cache_bytes=0,
        max_corrupt_share=0.0,
    )  # fmt: skip
    for _ in range(loader.steps_per_epoch):
        batch = loader.next_batch()
        yield batch.images, batch.tokens
    loader.close()


def open_clip_loader(shards: list[str], transform: Any) -> Iterator[tuple[Any, Any]]:
    """open_clip's own get_wds_dataset, without worker processes: one epoch of its training pipeline."""
    from open_clip import get_tokenizer
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.params import parse_args

    pattern = shards[0].replace("00000.tar", "{00000..00001}.tar")
    args = parse_args(
        ["--train-data", pattern, "--train-num-samples", str(len(shards) * 10**6), "--workers", "0",
         "--batch-size", str(BATCH), "--dataset-type", "webdataset"]
    )  # fmt: skip
    args.world_size, args.rank, args.distributed = 1, 0, False
    args.train_num_samples = sum(1 for s in shards for name, _, _ in members(s) if name.endswith(".jpg"))
    args.workers = 1  # what it divides by; the loader below runs in this process
    data = get_wds_dataset(args, transform, is_train=True, tokenizer=get_tokenizer("ViT-B-32"))
    yield from data.dataloader.pipeline[0].dataset


def training_transform() -> Any:
    """open_clip's image transform for training."""
    from open_clip.transform import image_transform

    return image_transform(SIZE, is_train=True, mean=MEAN, std=STD)


def same_transform(short_side: int) -> Any:
    """Our own augmentation out of torchvision's parts."""
    from torchvision import transforms as t

    return t.Compose(
        [
            t.Lambda(lambda image: image.convert("RGB")),
            t.Resize(short_side, interpolation=t.InterpolationMode.BICUBIC),
            t.RandomCrop(SIZE),
            t.ToTensor(),
            t.Normalize(MEAN, STD),
        ]
    )


def cpu_seconds(batches: Callable[[], Iterator[tuple[Any, Any]]]) -> tuple[int, float]:
    """Images delivered and the process's CPU seconds for them."""
    started, count = time.process_time(), 0
    for images, _ in batches():
        count += len(images)
    return count, time.process_time() - started


def check(index: Index, shards: list[str]) -> None:
    """Both read the same images: every one of ours is, crop for crop, part of what Pillow decodes."""
    from PIL import Image as Pillow

    loader = Loader(
        index, Tokenizer(), batch_size=BATCH, image_size=SIZE, short_side=STORED, seed=0, cache_bytes=0,
        max_corrupt_share=0.0,
    )  # fmt: skip
    seen: set[int] = set()
    exact = 0
    for _ in range(loader.steps_per_epoch):
        batch = loader.next_batch()
        seen.update(int(s) for s in batch.samples)
        sample, image = int(batch.samples[0]), batch.images[0]
        with open(index.tars[index.shard[sample]], "rb") as file:
            file.seek(int(index.offset[sample]))
            data = file.read(int(index.size[sample]))
        whole = np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB"))
        windows = np.lib.stride_tricks.sliding_window_view(whole, (SIZE, SIZE, 3))[:, :, 0]
        exact += bool((windows[:, :, 0, 0] == image[0, 0]).all(-1).any()) and any(
            np.array_equal(windows[y, x], image)
            for y, x in np.argwhere((windows[:, :, 0, 0] == image[0, 0]).all(-1))
        )
    steps = loader.steps_per_epoch
    print(
        f"- an epoch holds every image once: {'yes' if len(seen) == steps * BATCH else 'NO'} ({len(seen):,})"
    )
    print(f"- crops are windows of what Pillow decodes: {exact} of {steps} looked at")
    theirs: set[tuple[int, ...]] = set()
    count = 0
    for _, tokens in open_clip_loader(shards, training_transform()):
        theirs.update(tuple(row.tolist()) for row in tokens)
        count += len(tokens)
    texts = {tuple(r.tolist()) for r in Tokenizer()(index.captions.to_pylist())}
    print(
        f"- open_clip's loader reads our shards, same texts and ids: {'yes' if theirs <= texts else 'NO'} ({count:,})"
    )
    data = photograph(0)
    one, other = (decode_pixels(data, short_side=SIZE, decoder=r) for r in ("fast", "pillow"))
    off = int(np.abs(one.astype(int) - other).max())
    print(f"- our resize against Pillow's bicubic: off by at most {off} level")


def main() -> None:
    """Checks and measures."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--images", type=int, default=1_280)
    given.add_argument("--rounds", type=int, default=5)
    args = given.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), args.images)
        index = read_index(shards)
        check(index, shards)
        runs: dict[str, Callable[[], Iterator[tuple[Any, Any]]]] = {
            "open_clip, its training transform": lambda: open_clip_loader(shards, training_transform()),
            "open_clip, our augmentation": lambda: open_clip_loader(shards, same_transform(240)),
            "ours, ordinary shards: resize to 240, crop, uint8": lambda: ours(index, short_side=240),
            "ours, shards at training size: crop, uint8": lambda: ours(index, short_side=STORED),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            for name, batches in runs.items():
                count, seconds = cpu_seconds(batches)
                rates[name].append(count / seconds)
    median = {name: statistics.median(values) for name, values in rates.items()}
    first, second, *_ = median.values()
    rows = [(n, f"{r:,.0f}", f"{r / first:.1f}", f"{r / second:.1f}") for n, r in median.items()]
    head = ("what", "images per CPU s", "× its training transform", "× it with our augmentation")
    print("\n" + table(head, rows))


if __name__ == "__main__":
    main()
