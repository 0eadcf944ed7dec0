"""What turns pictures into vectors: a learned detector, or a perceptual hash for comparison.

A hash's bits become +1 and -1, scaled to length 1, so that the same search compares them: of two hashes of d bits
that differ in h, the similarity is 1 - 2 h / d.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from dedup import external, folder
from dedup.folder import Loaded
from dedup.processes import CPU, device_of
from pipeline.core.errors import UsageError


class Backend(Protocol):
    """Embeds pictures; in two steps, so that one that fails is known before its batch is embedded."""

    @property
    def dimension(self) -> int:
        """Length of an embedding."""

    @property
    def threshold(self) -> float | None:
        """Similarity from which on a pair counts as a copy, if it is known."""

    @property
    def sha256(self) -> str:
        """Identity: equal ones give equal embeddings."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """What an embedding is made from."""

    def embed(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N, dimension], rows of length 1."""


@dataclass(frozen=True)
class Learned:
    """A detector of ``wit dedup train``."""

    loaded: Loaded
    device: torch.device = CPU

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.loaded.detector.dimension

    @property
    def threshold(self) -> float | None:
        """The calibrated one."""
        return self.loaded.threshold

    @property
    def sha256(self) -> str:
        """Weights and architecture."""
        return self.loaded.sha256

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The detector's looks at a picture."""
        return self.loaded.detector.looks(image)

    def embed(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N, dimension], rows of length 1."""
        if not prepared:
            return np.zeros((0, self.dimension), np.float32)
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(prepared)).to(self.device)
            return np.asarray(self.loaded.detector(pixels).cpu().numpy())


@dataclass(frozen=True)
class Hash:
    """A perceptual hash of an optional package.

    Attributes:
        name: As given to ``--detector``.
        package: Distribution and module that make it.
        dimension: Bits.
        most_differing: Bits by which the hashes of copies differ at most, as its makers advise.
        bits: Picture to bool [dimension], given the module.
    """

    name: str
    package: str
    dimension: int
    most_differing: int
    bits: Callable[[Any, Image.Image], np.ndarray]

    @property
    def threshold(self) -> float:
        """The similarity of two hashes that differ by the makers' advice."""
        return 1 - 2 * self.most_differing / self.dimension

    @property
    def sha256(self) -> str:
        """Name and version of the package."""
        told = f"{self.name} {self.package} {metadata.version(self.package)}"
        return hashlib.sha256(told.encode()).hexdigest()

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The hash as bool [dimension]."""
        return self.bits(importlib.import_module(self.package), image)

    def embed(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N, dimension], rows of length 1."""
        held = np.array(prepared, bool).reshape(len(prepared), self.dimension)
        return np.where(held, 1, -1).astype(np.float32) / np.float32(self.dimension**0.5)


def _phash(imagehash: Any, image: Image.Image) -> np.ndarray:
    return np.asarray(imagehash.phash(image).hash, bool).reshape(-1)


def _pdq(pdqhash: Any, image: Image.Image) -> np.ndarray:
    found, _ = pdqhash.compute(np.asarray(image))
    return np.asarray(found, bool)


HASHES = {
    "phash": Hash("phash", "imagehash", 64, 10, _phash),
    "pdq": Hash("pdq", "pdqhash", 256, 31, _pdq),
}


def stand_in(name: str, backend: Backend) -> str:
    """What stands in a configuration for a detector: not its path, and more than the size of what lies there.

    Args:
        name: A hash's name, a path, or ``module:function``, which may give other weights another time.
        backend: What it opened as.
    """
    if name in HASHES:
        return name
    digest = backend.sha256[:16]
    return f"{name} {digest}" if external.is_function(name) else digest


def files_of(name: str, input_file: str | None) -> list[str]:
    """The paths that a detector is read from; they are inputs of whatever embeds with it."""
    if name in HASHES:
        return []
    if external.is_function(name):
        return [external.input_file(name, input_file)]
    return [name, external.input_file(name, input_file)] if external.is_file(name) else [name]


def open_backend(name: str, *, input_file: str | None = None, device: str = "cpu") -> Backend:
    """The hash of a name, another program's network, or the detector of a folder.

    Args:
        name: ``phash`` or ``pdq``, a file or ``module:function`` as in :mod:`dedup.external`, or a folder.
        input_file: What another program's network expects of a picture; default: the JSON file beside it.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UsageError: The hash's package is not installed, or there is no such GPU; InputError: there is no such detector.
    """
    found = HASHES.get(name)
    foreign = found is None and (external.is_file(name) or external.is_function(name))
    if input_file is not None and not foreign:
        raise UsageError(
            "--detector-input belongs to an ONNX or TorchScript file or module:function",
            found=f"--detector {name}",
        )
    if foreign:
        return external.open_external(name, input_file, device_of(device))
    if found is None:
        loaded = folder.load(name)
        loaded.detector.to(device_of(device))
        return Learned(loaded, device_of(device))
    try:
        importlib.import_module(found.package)
    except ImportError as error:
        raise UsageError(
            f"--detector {name} needs the package {found.package}",
            found=str(error),
            hint="pip install 'webimagetext[hashes]'",
        ) from error
    return found
