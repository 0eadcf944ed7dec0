"""What a picture says without learning: low-resolution copies, edge directions, colours, and the best view of them.

Small networks trained for minutes see gross shape and colour; these features see fine detail, and a linear map found
in closed form weighs both by how much of them survives the augmentations (generalised eigenvectors of the scatter of
pictures against the scatter of their altered copies: Fisher's discriminant with every picture as its own class).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

COPY_PX, FRAMED_COPY_PX, EDGE_PX, DIRECTIONS = 8, 16, 8, 8
COLOUR_CELLS, COLOUR_LEVELS = 2, 6
DIMENSION = (
    3 * COPY_PX**2 + 3 * FRAMED_COPY_PX**2 + 3 * DIRECTIONS * EDGE_PX**2 + COLOUR_CELLS**2 * COLOUR_LEVELS**3
)
# Shares of the noise's mean variance added to each direction: little-seen directions must not be trusted.
RIDGE = 0.1
_FRAME_STEP = 24


def framed(pixels: np.ndarray) -> np.ndarray:
    """The picture without its border of one colour, stretched to the same size.

    A copy is often cropped or padded inside such a border, which then moves everything else.

    Args:
        pixels: uint8 [3, S, S].

    Returns:
        uint8 [3, S, S]; the picture itself where there is no border or nothing within it.
    """
    edges = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    ground = np.median(edges, axis=1).astype(np.int16)
    ink = (np.abs(pixels.astype(np.int16) - ground[:, None, None]) > _FRAME_STEP).any(axis=0)
    rows, columns = np.flatnonzero(ink.sum(axis=1) > 1), np.flatnonzero(ink.sum(axis=0) > 1)
    side = pixels.shape[1]
    if len(rows) < side // 8 or len(columns) < side // 8:
        return pixels
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def describe(whole: Tensor, inner: Tensor) -> Tensor:
    """Copies and edge directions of pictures and of what their borders frame.

    Args:
        whole: float32 [N, 3, S, S] in [-1, 1].
        inner: The same pictures without borders.

    Returns:
        float32 [N, DIMENSION].
    """
    inner_edges = edges(inner)
    parts = [
        2 * F.adaptive_avg_pool2d(whole, COPY_PX),
        2 * F.adaptive_avg_pool2d(inner, FRAMED_COPY_PX),
        2 * F.adaptive_avg_pool2d(edges(whole), EDGE_PX),
        2 * F.adaptive_avg_pool2d(inner_edges, EDGE_PX),
        # The strongest edge of a cell stays when the picture moves a little; the mean does not.
        F.adaptive_max_pool2d(F.avg_pool2d(inner_edges, 3, stride=1, padding=1), EDGE_PX),
        2 * colours(inner),
    ]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def edges(x: Tensor) -> Tensor:
    """Strength of edges by direction: [N, 3, S, S] -> [N, DIRECTIONS, 4 * EDGE_PX, 4 * EDGE_PX]."""
    grey = F.adaptive_avg_pool2d(x, 4 * EDGE_PX).mean(dim=1, keepdim=True)
    across = F.pad(grey[..., 2:] - grey[..., :-2], (1, 1))
    down = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    strength = (across**2 + down**2 + 1e-9).sqrt()
    angles = torch.arange(DIRECTIONS, device=x.device) * (2 * torch.pi / DIRECTIONS)
    towards = across * angles.cos()[:, None, None] + down * angles.sin()[:, None, None]
    # The square root keeps faint edges beside strong ones.
    return strength.sqrt() * (towards / strength).clamp_min(0) ** 2


def colours(x: Tensor) -> Tensor:
    """Roots of soft colour histograms of each quarter: [N, 3, S, S] -> [N, COLOUR_CELLS**2, COLOUR_LEVELS**3]."""
    small = F.adaptive_avg_pool2d(x, 4 * EDGE_PX)
    side = small.shape[-1] // COLOUR_CELLS
    cells = small.unfold(2, side, side).unfold(3, side, side).reshape(len(x), 3, COLOUR_CELLS**2, side * side)
    levels = torch.linspace(-1, 1, COLOUR_LEVELS, device=x.device)
    step = 2 / (COLOUR_LEVELS - 1)
    near = (1 - (cells[..., None, :] - levels[:, None]).abs() / step).clamp_min(
        0
    )  # [N, 3, cells, levels, pixels]
    red, green, blue = near.unbind(1)
    pairs = (red[..., :, None, :] * green[..., None, :, :]).flatten(2, 3)  # [N, cells, levels**2, pixels]
    return (pairs @ blue.transpose(-1, -2) / side**2).flatten(2).sqrt()


def soft_hash(x: Tensor, side: int) -> Tensor:
    """A perceptual hash whose bits are not cut: low frequencies of the brightness, each between -1 and 1.

    Like pHash it does not change with brightness and contrast; what lies near 0, where a bit would be chance, weighs
    little.

    Args:
        x: float32 [N, 3, S, S].
        side: Frequencies along each side, from the second on.

    Returns:
        float32 [N, side * side], rows of length 1, or 0 for pictures of one colour.
    """
    count = x.shape[-1]
    places = (torch.arange(count, device=x.device) + 0.5) * (torch.pi / count)
    frequencies = torch.arange(1, side + 1, device=x.device)
    waves = torch.cos(frequencies[:, None] * places)  # the discrete cosine transform's rows
    found = (waves @ x.mean(dim=1) @ waves.T).flatten(1)
    middle = found.abs().median(dim=1, keepdim=True).values
    bits = torch.tanh(0.5 * found / middle.clamp_min(1e-6))
    # Rounding errors of a flat picture are no frequencies.
    return F.normalize(bits * (middle > 1e-4), dim=1)


def discriminant(
    clean: np.ndarray, altered: Sequence[np.ndarray], dimension: int
) -> tuple[np.ndarray, np.ndarray]:
    """The linear map that keeps what tells pictures apart and survives alterations.

    Args:
        clean: float [N, D], features of pictures.
        altered: Several float [N, D], features of altered copies of them.
        dimension: Directions to keep, at most D.

    Returns:
        Centre [D] and projection [dimension, D]; projected features have about unit variance in each direction,
        directions beyond the number of pictures are zeros.
    """
    from scipy.linalg import cholesky, eigh, solve_triangular

    count, total = clean.shape
    centre = clean.mean(axis=0)
    noise = np.zeros((total, total))
    for copy in altered:
        change = (copy - clean).astype(np.float64)
        noise += change.T @ change / (len(altered) * count)
    noise += np.eye(total) * (RIDGE * np.trace(noise) / total + 1e-9)
    root = cholesky(noise, lower=True)
    # With the noise whitened the problem is an ordinary one, on the smaller of its two sides.
    whitened = solve_triangular(root, (clean - centre).T.astype(np.float64), lower=True) / count**0.5
    if count < total:
        values, small = eigh(whitened.T @ whitened, subset_by_index=(max(0, count - dimension), count - 1))
        vectors = whitened @ small / np.sqrt(np.maximum(values, 1e-12))
    else:
        values, vectors = eigh(whitened @ whitened.T, subset_by_index=(total - dimension, total - 1))
    directions = solve_triangular(root, vectors, lower=True, trans="T")
    # A direction's value is its signal over its noise: below 1 it fades instead of being blown up.
    weights = 1 / np.sqrt(np.maximum(values[::-1], 0) + 1)
    projection = np.zeros((dimension, total))
    projection[: len(values)] = (directions[:, ::-1] * weights).T
    return centre.astype(np.float32), np.ascontiguousarray(projection, np.float32)
