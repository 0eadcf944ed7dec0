"""Marks in a picture's own metadata that reserve it from data mining or machine learning.

Three kinds are in use: IPTC's data-mining property of PLUS (XMP), the training-and-mining assertion of C2PA and of
its successor CAWG, and the TDM reservation protocol's property. They are found by their fixed words in the raw
bytes, in time linear in the body, whatever container holds them. What is compressed (PNG's zTXt and iTXt may be)
or split over two JPEG segments is not seen.
"""

from __future__ import annotations

import re

_PLUS = re.compile(rb"(?:plus:DataMining|ldf/vocab/)[^A-Za-z0-9]{0,4}(?:[a-z:/.]{0,40}/)?(DMI-[A-Z-]{2,60})")
# An entry and its use stand beside each other, as CBOR or as JSON; never past the next entry.
_C2PA = re.compile(
    rb"(?:c2pa|cawg)\.(ai_generative_training|ai_training|ai_inference|data_mining)"
    rb"(?:(?!c2pa\.|cawg\.).){0,300}?(notAllowed|constrained|allowed)",
    re.DOTALL,
)
_TDM = re.compile(rb"tdm:reservation(?:\s*=\s*[\"']|>)\s*1\b")
_MOST_MARKS = 16


def marks(body: bytes) -> tuple[str, ...]:
    """The marks of a file, sorted: ``plus:DMI-…``, ``c2pa.ENTRY=USE`` and ``tdm:reservation=1``."""
    found: set[str] = set()
    # Looking for a fixed word first is many times faster than the expressions, and nearly always all there is to do.
    if b"DMI-" in body:
        found.update(f"plus:{m[1].decode()}" for m in _PLUS.finditer(body))
    if b"training-mining" in body:
        found.update(f"c2pa.{m[1].decode()}={m[2].decode()}" for m in _C2PA.finditer(body))
    if b"tdm:reservation" in body and _TDM.search(body):
        found.add("tdm:reservation=1")
    return tuple(sorted(found)[:_MOST_MARKS])


def reserving(found: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the marks that forbid, or allow only under terms, what this project is for.

    ``ai_inference`` is about use by a trained model and reserves nothing here.
    """
    return tuple(
        m
        for m in found
        if m.startswith("plus:DMI-PROHIBITED")
        or m == "tdm:reservation=1"
        or (m.endswith(("=notAllowed", "=constrained")) and "ai_inference" not in m)
    )
