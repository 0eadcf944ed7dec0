"""Several detectors as one: their embeddings side by side.

Each member's embedding, of length 1, is scaled by the square root of its share. The whole is one vector of length 1,
and the similarity of two is the mean of the members' similarities, weighted by their shares: whatever searches, audits
and reviews one detector's embeddings does so with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dedup.detector import Architecture, Detector
from pipeline.core import config as configuration
from pipeline.core.errors import ContractError

# Shares are kept to as many digits as a float has; earlier folders keep nine.
ROUNDING = 1e-8


class Fused(nn.Module):
    """Maps pictures to the members' embeddings side by side.

    Args:
        members: Detectors; the members of one that is fused itself become members.
        shares: Above 0; those of a similarity that are each member's, brought to a sum of 1. Those that have it, but
            for rounding, stay as they are: a loaded detector's are those that were saved.

    Raises:
        ValueError: There are fewer than two members, not one share for each, or one that is nothing or all.
    """

    members: Sequence[Detector]

    def __init__(self, members: Sequence[Detector | Fused], shares: Sequence[float]) -> None:
        super().__init__()
        if len(members) < 2 or len(members) != len(shares):
            raise ValueError(
                f"two members or more and a share for each, not {len(members)} and {len(shares)}"
            )
        if not all(share > 0 for share in shares):
            raise ValueError(f"shares must be above 0, are {list(shares)}")
        total = sum(shares)
        if abs(total - 1) < ROUNDING:
            total = 1.0
        flat: list[tuple[Detector, float]] = []
        for member, share in zip(members, shares, strict=True):
            own = (
                [(member, 1.0)]
                if isinstance(member, Detector)
                else zip(member.members, member.shares, strict=True)
            )
            flat += [(one, of * (share / total)) for one, of in own]
        self.members = cast("Sequence[Detector]", nn.ModuleList([one for one, _ in flat]))
        self.shares: tuple[float, ...] = tuple(of for _, of in flat)
        if not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"each share must be more than nothing and less than all, not {list(shares)}")

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return sum(member.dimension for member in self.members)

    def looks(self, image: Image.Image) -> np.ndarray:
        """What an embedding is made from: uint8 [P], what the members look at, one after another, nothing twice."""
        kinds = {member.sight: member for member in self.members}
        return np.concatenate([member.looks(image).reshape(-1) for member in kinds.values()])

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeds prepared pictures.

        Args:
            pixels: uint8 [N, P] of :meth:`looks`.

        Returns:
            float32 [N, dimension], rows of length 1.
        """
        seen: dict[tuple[int, int, int], Tensor] = {}
        place = 0
        for sight in (member.sight for member in self.members):
            if sight not in seen:
                size = sight[0] * sight[1] * sight[2]
                seen[sight] = pixels[:, place : place + size].reshape(-1, *sight)
                place += size
        shared = zip(self.members, self.shares, strict=True)
        return torch.cat([member(seen[member.sight]) * share**0.5 for member, share in shared], dim=1)

    def described(self) -> dict[str, Any]:
        """Its shape, as its folder's configuration keeps it."""
        shared = zip(self.members, self.shares, strict=True)
        return {"members": [{**member.described(), "share": share} for member, share in shared]}


@torch.inference_mode()
def embed(detector: Detector | Fused, pixels: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
    """Embeds prepared pictures in batches: uint8 [N, …] of looks -> float32 [N, d]."""
    detector.eval()
    found = [
        detector(torch.from_numpy(pixels[i : i + batch_size])).numpy()
        for i in range(0, len(pixels), batch_size)
    ]
    if not found:
        return np.zeros((0, detector.dimension), np.float32)
    return np.concatenate(found)


def fuse(members: list[Any], *, where: str) -> Fused:
    """A fused detector with fresh weights, from what :meth:`Fused.described` gave.

    Raises:
        ContractError: It is something else; ConfigError: a member's architecture is wrong.
    """
    try:
        shapes, shares = zip(*((m["architecture"], float(m["share"])) for m in members), strict=True)
        made = [Detector(configuration.from_table(Architecture, shape, where=where)) for shape in shapes]
        return Fused(made, shares)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ContractError("not a detector's configuration", where=where, found=repr(error)) from error
