"""Prompt templates and the zero-shot classifier made from them (paper 3.1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import torch
from torch import Tensor
from torch.nn import functional as F

from model.clip import CLIP
from model.tokenizer import Tokenizer, trim
from pipeline.core import paths
from pipeline.core.errors import InputError


def _lines(path: str) -> list[str]:
    try:
        text = paths.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("not a UTF-8 text file", where=path, found=str(error)) from error
    return text.splitlines()


def read_templates(path: str) -> tuple[str, ...]:
    """Templates of a file: one a line, ``{}`` or ``{label}`` for the class name; empty lines and ``#`` are skipped.

    Raises:
        InputError: The file is missing, holds no template, or a line has no place for the name.
    """
    found: list[str] = []
    for number, line in enumerate(_lines(path), start=1):
        template = line.strip().replace("{label}", "{}")
        if not template or template.startswith("#"):
            continue
        if "{}" not in template:
            raise InputError(
                "the prompt has no place for the class name",
                where=f"{path}:{number}",
                expected="{}",
                found=repr(line[:80]),
            )
        found.append(template)
    if not found:
        raise InputError("the file holds no prompt", where=path, hint="write one template a line, with {}")
    return tuple(found)


def read_class_names(path: str) -> dict[str, str]:
    """Folder to class name, from lines of ``folder<TAB>name``; a first line ``folder<TAB>…`` is a heading.

    Raises:
        InputError: The file is missing or a line has no tab, or a folder stands there twice.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        folder, tab, name = line.strip().partition("\t")
        if not tab or not name:
            raise InputError(
                "not a class name",
                where=f"{path}:{number}",
                expected="folder<TAB>name",
                found=repr(line[:80]),
            )
        if number == 1 and folder == "folder":
            continue
        if folder.strip() in names:
            raise InputError("the folder stands there twice", where=f"{path}:{number}", found=folder)
        names[folder.strip()] = name.partition("\t")[0].strip()
    return names


def class_name(folder: str) -> str:
    """A folder's name as words."""
    return PurePosixPath(folder).name.replace("_", " ")


@torch.inference_mode()
def classifier(
    model: CLIP, tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str], *, device: torch.device
) -> Tensor:
    """One L2-normalised vector per class, [C, E]: the normalised mean of its prompts' normalised embeddings."""
    total: Tensor | None = None
    for template in templates:
        rows = []
        for first in range(0, len(names), 1024):
            texts = [template.replace("{}", n) for n in names[first : first + 1024]]
            tokens = torch.from_numpy(trim(tokenizer(texts))).to(device)
            rows.append(F.normalize(model.encode_text(tokens), dim=-1))
        stacked = torch.cat(rows)
        total = stacked if total is None else total + stacked
    assert total is not None
    return F.normalize(total, dim=-1)
