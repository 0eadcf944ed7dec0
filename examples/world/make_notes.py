"""Writes README.md with its table of every file, and LICENSES/."""

from __future__ import annotations

from pathlib import Path

from examples.world.sources import DESIGNERS, PACKAGES, WEB_DESIGNERS, Packages

LICENCES = ("CC-BY-SA-4.0", "CC-BY-4.0", "CC-BY-SA-3.0", "Apache-2.0", "Unicode-3.0")
FLUENT_LICENCE = """MIT License

Copyright (c) Microsoft Corporation.

"""
ATTRIBUTION = """# Who made what is in here

- **OpenMoji** (`pictures/openmoji.zip`, pictures in `web/openmoji/files.zip`): all emojis designed by
  OpenMoji, the open-source emoji and icon project. Licence: CC BY-SA 4.0 (`CC-BY-SA-4.0.txt`).
- **Twemoji** (`pictures/twemoji.zip`, pictures in `web/twemoji/files.zip`): copyright Twitter, Inc and other
  contributors; graphics licensed under CC BY 4.0 (`CC-BY-4.0.txt`).
- **Fluent Emoji, flat** (`pictures/fluent.zip`, pictures in `web/fluent/files.zip`): copyright Microsoft
  Corporation, MIT licence (`MIT-fluent-emoji.txt`).
- **Noto Emoji** (`pictures/noto.zip`; altered copies in the three `files.zip`, listed in `truth/leaks.tsv`):
  copyright Google LLC, Apache License 2.0 (`Apache-2.0.txt`).
- **Names and keywords** of the emoji (`pictures/concepts.tsv`, `eval/classnames.tsv`, all pages): Unicode
  CLDR, copyright Unicode, Inc. (`Unicode-3.0.txt`), as packaged by emojibase-data, copyright Miles Johnson,
  MIT licence (`MIT-emojibase.txt`).
- **Wikipedia** (`text/`): the editors of the English Wikipedia, CC BY-SA 3.0 (`CC-BY-SA-3.0.txt`).

Changes made: the drawings were rendered from SVG to WebP of 96 by 96 pixels. Some of them were also stored
in other formats, joined into an animation, turned, made grey or cut off; those in `truth/leaks.tsv` were
laid on a light ground, cropped, resized and compressed. The altered pictures stay under the licence of
their originals. Everything else (the pages' HTML and remarks, the scripts) is part of this project, under
its Apache-2.0 licence. No designer has anything to do with this project or endorses it.
"""
INTRODUCTION = """# The small world

A web small enough to live in a repository, and real enough to build a dataset from: three web sites, each
showing about 1,600 emoji by one designer with the texts that pages really have, a cut of Wikipedia, and a
fourth designer's drawings of the same things, which stand on no page and so serve to evaluate. `wit demo`
serves it on loopback and runs every stage on it.

| folder | what is inside |
|---|---|
| `pictures/` | `{designer}.zip` with `{hexcode}.webp`, 96 × 96, transparent; `concepts.tsv` names them |
| `web/{site}/` | HTML pages, `robots.txt`, `sitemap.txt` (the pages for a crawler), `_headers`, `files.zip` |
| `eval/` | class names and prompts for zero-shot classification of `pictures/noto.zip`; what of it is left out |
| `text/` | the Wikipedia cut and page views made for it (`text/SOURCE.md`) |
| `truth/` | what was planted where. **Only checks may read it.** |

Site number i of openmoji, twemoji, fluent is served at `http://127.0.0.1:{8731 + i}/`. `/p/{hexcode}.webp` comes
out of `pictures/{site}.zip`, any other path that is no file of the folder out of `files.zip`. `_headers` has
lines of path prefix, header name and value, divided by tabs: headers that the server adds to what is under it.

## What was planted
- About 5% of Noto's drawings stand on pages after all, altered as reposts are (`truth/leaks.tsv`).
- Nobody planted them, but some drawings are alike by nature, as two designers' plain orange squares. Nobody could
  say whether one is a copy of the other, so the evaluation set goes without them (`eval/left-out.tsv`).
- About a quarter of the img tags say nothing useful: decorative or empty alts, file names, camera settings,
  one caption repeated over and over, other languages (`truth/tags.tsv` counts them).
- Missing pictures, addresses that a careful fetcher refuses, half and empty and disguised files, and a
  decompression bomb (`truth/broken.tsv`, `truth/files.tsv`).
- Opt-outs: page marks, an `X-Robots-Tag` header, `/private/` and `/members/` in robots.txt.
- Wrongly declared encodings, malformed nesting, entities, `<base>`, lazy loading, `srcset`, hotlinks.

## How it was made
```
mkdir packages && cd packages
npm pack @iconify-json/openmoji@1.2.29 @iconify-json/twemoji@1.2.5 \\
  @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/noto@1.2.9 emojibase-data@17.0.0 spdx-license-list@6.12.0
pip download --no-deps --python-version 3.11 --only-binary :all: gensim==4.4.0
cd .. && pip install pillow==12.3.0 resvg-py==0.5.0
python -m examples.world.make_world --packages packages --out examples/world
```
The same packages give the same bytes. `--keep-pictures` does not render the pictures again.

## Every file
Licences: full texts and attribution in `LICENSES/`.

| file | made from | licence |
|---|---|---|
"""


def package(name: str) -> str:
    """A package's name and version as a reader knows them."""
    return (
        PACKAGES[name].removesuffix(".tgz").removesuffix("-*.whl").replace("iconify-json-", "@iconify-json/")
    )


def table(out: Path) -> list[tuple[str, str, str]]:
    """File or folder of pages, source, licence."""
    spdx = {"openmoji": "CC-BY-SA-4.0", "twemoji": "CC-BY-4.0", "fluent": "MIT", "noto": "Apache-2.0"}
    names = f"{package('emojibase')} (Unicode CLDR)"
    own = "this project"
    rows = [(f"pictures/{d}.zip", package(d), spdx[d]) for d in DESIGNERS]
    rows.append(("pictures/concepts.tsv", names, "MIT and Unicode-3.0"))
    rows.append(("eval/classnames.tsv", names, "MIT and Unicode-3.0"))
    rows.extend((f"eval/{name}", own, "Apache-2.0") for name in ("left-out.tsv", "prompts.txt"))
    for site in WEB_DESIGNERS:
        both = f"{package(site)}; leaks: {package('noto')}"
        rows.append((f"web/{site}/files.zip", both, f"{spdx[site]}; leaks: Apache-2.0"))
        rows.extend(
            (f"web/{site}/{name}", own, "Apache-2.0") for name in ("_headers", "robots.txt", "sitemap.txt")
        )
        rows.append((f"web/{site}/**/*.html", f"{own}; names: {names}", "Apache-2.0; names: Unicode-3.0"))
    rows.append(("text/enwiki-cut.xml.bz2", f"{package('gensim')} (English Wikipedia, 2016)", "CC-BY-SA-3.0"))
    rows.append(("text/pageviews-201604-user.bz2", "made from the cut's links", "CC-BY-SA-3.0"))
    rows.append(("text/SOURCE.md", own, "Apache-2.0"))
    rows.extend((f"truth/{path.name}", own, "Apache-2.0") for path in sorted((out / "truth").iterdir()))
    rows.extend(
        (f"LICENSES/{path.name}", "the licences themselves", "-")
        for path in sorted((out / "LICENSES").iterdir())
    )
    rows.extend((path.name, own, "Apache-2.0") for path in sorted(out.glob("*.py")))
    rows.append(("README.md", own, "Apache-2.0"))
    return rows


def make_notes(packages: Packages, out: Path) -> None:
    """Writes LICENSES/ and README.md; the rest must be there already."""
    folder = out / "LICENSES"
    folder.mkdir(parents=True, exist_ok=True)
    for name in LICENCES:
        text = packages.read_json("licences", f"licenses/{name}.json")["licenseText"]
        (folder / f"{name}.txt").write_text(text.rstrip() + "\n", encoding="utf-8")
    emojibase = packages.read("emojibase", "LICENSE").decode()
    (folder / "MIT-emojibase.txt").write_text(emojibase, encoding="utf-8")
    terms = emojibase[emojibase.index("Permission is hereby") :]
    (folder / "MIT-fluent-emoji.txt").write_text(FLUENT_LICENCE + terms, encoding="utf-8")
    (folder / "ATTRIBUTION.md").write_text(ATTRIBUTION, encoding="utf-8")
    rows = "".join(f"| `{name}` | {source} | {licence} |\n" for name, source, licence in table(out))
    (out / "README.md").write_text(INTRODUCTION + rows, encoding="utf-8")
