"""A training step against open_clip's and transformers' models: same tensors, same weights, same optimiser, one run.

`python -m benchmarks.step`; the peers: `pip install --no-deps open-clip-torch==3.3.0 timm==1.0.31 torchvision==0.28.0`
beside transformers. A step is forward, symmetric cross-entropy, backward and fused AdamW, in float32 on the CPU; texts
are 77 tokens long for all. "Short texts" is ours with the columns cut off that no text of the batch reaches, which
the loader does: captions of 20 tokens, and the result is the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.measure import say, table
from model.clip import CLIP
from model.interchange import to_transformers, transformers_config
from model.loss import contrastive_loss
from model.optim import adamw
from model.presets import PAPER

LENGTH = 20
Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def inputs(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """Normalised images and 77 columns of tokens whose texts are 20 long."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.zeros(batch, 77, dtype=torch.long)
    tokens[:, :LENGTH] = torch.randint(1, 49_000, (batch, LENGTH), generator=draw)
    tokens[:, 0], tokens[:, LENGTH - 1] = 49_406, 49_407
    return torch.randn(batch, 3, size, size, generator=draw), tokens


def open_clip_model(name: str, ours: CLIP) -> tuple[Any, Forward]:
    """open_clip's model with our weights."""
    import open_clip

    model = open_clip.create_model(name.replace("/", "-") + "-quickgelu")
    model.load_state_dict(ours.state_dict())

    def forward(images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = model(images, tokens)
        return found

    return model, forward


def transformers_model(ours: CLIP) -> tuple[Any, Forward]:
    """transformers' CLIPModel with our weights."""
    from transformers import CLIPConfig, CLIPModel

    model: Any = CLIPModel(CLIPConfig(**transformers_config(ours.config)))
    model.load_state_dict(to_transformers(ours.state_dict()), strict=False)

    def forward(images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image = model.get_image_features(pixel_values=images).pooler_output
        text = model.get_text_features(input_ids=tokens).pooler_output
        return normalize(image, dim=-1), normalize(text, dim=-1), model.logit_scale.exp()

    return model, forward


def step(model: Any, forward: Forward, optimiser: Any, images: Tensor, tokens: Tensor) -> tuple[float, float]:
    """CPU seconds of one step, and its loss."""
    started = time.process_time()
    loss = contrastive_loss(*forward(images, tokens))
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return time.process_time() - started, loss.item()


def main() -> None:
    """Measures and checks that the first losses agree."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--batch", type=int, default=8)
    given.add_argument("--rounds", type=int, default=5)
    given.add_argument("--threads", type=int, default=1)
    given.add_argument("--models", nargs="+", default=["ViT-B/32", "RN50"])
    args = given.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.models:
        rows: list[tuple[object, ...]] = []
        torch.manual_seed(0)
        ours = CLIP(PAPER[name].config).train()
        ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images, tokens = inputs(args.batch, ours.config.vision_cfg.image_size)
        runs: dict[str, tuple[Any, Forward, Tensor]] = {
            "ours": (ours, ours, tokens),
            "open_clip": (*open_clip_model(name, ours), tokens),
        }
        if name.startswith("ViT"):
            runs["transformers"] = (*transformers_model(ours), tokens)
        short = CLIP(PAPER[name].config).train()
        short.load_state_dict(ours.state_dict())
        short.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        runs["ours, short texts"] = (short, short, tokens[:, :LENGTH])
        optimisers = {}
        for who, (model, _, _) in runs.items():
            model.train()
            made = adamw(model, weight_decay=0.2, beta1=0.9, beta2=0.98, epsilon=1e-6)
            for group in made.param_groups:
                group["lr"] = 1e-5
            optimisers[who] = made
        seconds: dict[str, list[float]] = {who: [] for who in runs}
        losses: dict[str, float] = {}
        for number in range(args.rounds + 1):  # the first warms up
            say(f"{name}: round {number} of {args.rounds}")
            for who, (model, forward, texts) in runs.items():
                taken, loss = step(model, forward, optimisers[who], images, texts)
                losses.setdefault(who, loss)
                if number:
                    seconds[who].append(taken)
        spread = max(losses.values()) - min(losses.values())
        print(f"- {name}: first losses agree to {spread:.1e} ({losses['ours']:.4f})")
        base = statistics.median(seconds["ours"])
        for who, values in seconds.items():
            middle = statistics.median(values)
            rows.append((f"{name}: {who}", f"{args.batch / middle:.2f}", f"{middle / base:.2f}"))
        print("\n" + table(("what", "images per CPU s", "time: ours ×"), rows) + "\n", flush=True)


if __name__ == "__main__":
    main()
