"""`wit fetch` beside img2dataset: the same photographs from the same loopback server, the same geometry.

Photographs are cut, at random places and zooms drawn from a seed, out of large ones in `--photos`; they are of 0.81
megapixels, JPEG quality 85, some 115 kB. Debian's packages of photographs serve well:

    apt-get download gnome-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds ukui-wallpapers
    mkdir photos && for f in *.deb; do dpkg -x "$f" photos; done

Both programs run as a user would start them; what they start with is measured by a run over eight images. Every
stored image is held against two references in floating point: the mean over each pixel's area, and Lanczos.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import measure
from benchmarks.measure import say
from pipeline.core.contracts import PAIRS, pair_id
from pipeline.core.fakes import fake_table, finished_folder

SHAPES = (4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3)
AREA = 811_000
SIZE = 256
LEAST_BYTES = 50_000
TRIES = 12
HOSTS = 16
START = 8  # images of the run that measures the start
KINDS = {".jpg", ".jpeg", ".png", ".webp"}
IMG2DATASET = """
import json, sys
from img2dataset import download
if __name__ == "__main__":
    download(**json.loads(sys.argv[1]))
"""


def large_photos(folder: Path) -> list[Path]:
    """Pictures of 1.5 megapixels and more, each file once, in the order of their names."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in KINDS and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError), Image.open(path) as image:
                if image.width * image.height >= 1_500_000:
                    found.append(path)
    return found


def make_photos(folder: Path, count: int, out: Path) -> None:
    """Writes `count` photographs cut out of those in a folder; sky and drawings, which hold little, are passed over."""
    sources = large_photos(folder)
    if not sources:
        sys.exit(f"{folder} holds no picture of 1.5 megapixels or more; see --help")
    out.mkdir(parents=True, exist_ok=True)
    draw, made, used = random.Random(0), 0, 0
    for number, source in enumerate(sources):
        share = -(-(count - made) // (len(sources) - number))
        with Image.open(source) as opened:
            picture = opened.convert("RGB")
        before = made
        for attempt in range(2 * share):
            if made == before + share or (made == before and attempt == TRIES):
                break
            cut = _cut(picture, draw)
            if len(cut) >= LEAST_BYTES:
                (out / f"{made:05d}.jpg").write_bytes(cut)
                made += 1
        used += made > before
    if made < count:
        sys.exit(f"{folder} gives {made:,} photographs, not {count:,}: add more, or set --count")
    say(f"{made:,} photographs out of {used}")


def _cut(picture: Image.Image, draw: random.Random) -> bytes:
    shape = draw.choice(SHAPES)
    width = round((AREA * shape) ** 0.5)
    height = round(width / shape)
    fits = min(picture.width / width, picture.height / height)
    zoom = draw.uniform(0.5, 1) * fits if fits > 1 else fits
    left = draw.uniform(0, picture.width - width * zoom)
    top = draw.uniform(0, picture.height - height * zoom)
    box = (left, top, left + width * zoom, top + height * zoom)
    buffer = io.BytesIO()
    cut = picture.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2)
    cut.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, folder: Path) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
            path = folder / head[1].decode().lstrip("/")
            found = path.suffix == ".jpg" and path.is_file()
            body = path.read_bytes() if found else b""
            status, kind = ("200 OK", "image/jpeg") if found else ("404 Not Found", "text/plain")
            head_out = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head_out.encode() + body)
            await writer.drain()
    writer.close()


def serve(folder: Path, port: int) -> None:
    """A web server on all loopback addresses, until it is ended."""

    async def main() -> None:
        server = await asyncio.start_server(lambda r, w: _answer(r, w, folder), "127.0.0.1", port)
        sockets = [(f"127.0.0.{host}", port) for host in range(2, HOSTS + 1)]
        more = [await asyncio.start_server(lambda r, w: _answer(r, w, folder), *s) for s in sockets]
        await asyncio.gather(server.serve_forever(), *(s.serve_forever() for s in more))

    asyncio.run(main())


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    """The server in a process of its own, whose time is nobody's; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.fetch", "--serve", str(folder), str(port)]
    process = subprocess.Popen(command)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection((f"127.0.0.{HOSTS}", port)):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def write_lists(scratch: Path, port: int, count: int) -> None:
    """The same URLs as a folder of pairs and as img2dataset's list."""
    urls = [f"http://127.0.0.{1 + n % HOSTS}:{port}/{n:05d}.jpg" for n in range(count)]
    rows = fake_table(PAIRS, count).to_pylist()
    for row, url in zip(rows, urls, strict=True):
        row |= {"url": url, "rights": [], "pair_id": pair_id(url, row["text"])}
    table = PAIRS.conform(pa.Table.from_pylist(rows, schema=PAIRS.schema))
    finished_folder(str(scratch / f"pairs-{count}"), PAIRS, table)
    captions = pa.table({"url": urls, "caption": [row["text"] for row in rows]})
    pq.write_table(captions, scratch / f"urls-{count}.parquet")


def ours(scratch: Path, count: int, mode: str, engine: str, rows: int) -> list[str]:
    """The command line of `wit fetch`."""
    return [
        sys.executable, "-m", "pipeline", "fetch", "--pairs", str(scratch / f"pairs-{count}"),
        "--out", str(scratch / f"{engine}-{count}"), "--allow-address", "127.0.0.0/8", "--host-gap-s", "0",
        "--host-concurrency", "8", "--image-size", str(SIZE), "--resize-mode", mode, "--engine", engine,
        "--rows-per-shard", str(rows), "--set", "fetch.resize_only_if_bigger=false",
    ]  # fmt: skip


def theirs(scratch: Path, count: int, mode: str, rows: int, python: str) -> list[str]:
    """img2dataset as its README starts it: two processes, each with many threads, WebDataset shards."""
    options = {
        "url_list": str(scratch / f"urls-{count}.parquet"), "input_format": "parquet", "url_col": "url",
        "caption_col": "caption", "output_format": "webdataset",
        "output_folder": str(scratch / f"theirs-{count}"), "processes_count": 2, "thread_count": 32,
        "image_size": SIZE, "resize_mode": mode, "number_sample_per_shard": rows, "enable_wandb": False,
    }  # fmt: skip
    return [python, "-c", IMG2DATASET, json.dumps(options)]


def stored(folder: Path) -> dict[str, bytes]:
    """Images of shards by the name of the photograph."""
    urls: dict[str, str] = {}
    for file in sorted(folder.glob("[0-9]*.parquet")):
        for row in pq.read_table(file, columns=["key", "url", "status"]).to_pylist():
            if row["status"] == "success":
                urls[row["key"]] = row["url"].rsplit("/", 1)[1]
    found: dict[str, bytes] = {}
    for file in sorted(folder.glob("[0-9]*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                if kind == "jpg":
                    content = tar.extractfile(member)
                    assert content is not None
                    found[urls[key]] = content.read()
    return found


def reference(path: Path, size: tuple[int, int], mode: str, way: Image.Resampling) -> np.ndarray:
    """A photograph decoded whole and resized in floating point, float64[height, width, 3]."""
    with Image.open(path) as image:
        scale = SIZE / (min if mode == "keep_ratio" else max)(image.size)
        inner = (int(image.width * scale + 0.5), int(image.height * scale + 0.5))
        planes = np.asarray(image, dtype=np.float32)
    bands = [np.asarray(Image.fromarray(planes[:, :, b]).resize(inner, way)) for b in range(3)]
    ground = np.full((size[1], size[0], 3), 255.0)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    ground[top : top + inner[1], left : left + inner[0]] = np.clip(np.stack(bands, axis=2), 0, 255)
    return ground


def quality(photos: Path, images: dict[str, bytes], mode: str) -> list[str]:
    """Mean and 5th percentile of the PSNR against both references, and mean bytes."""
    found: dict[Image.Resampling, list[float]] = {Image.Resampling.BOX: [], Image.Resampling.LANCZOS: []}
    for name, jpeg in sorted(images.items())[::5]:
        with Image.open(io.BytesIO(jpeg)) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=float)
        for way, values in found.items():
            error = ((pixels - reference(photos / name, pixels.shape[1::-1], mode, way)) ** 2).mean()
            values.append(10 * np.log10(255**2 / max(error, 1e-9)))
    numbers = [f(v) for v in found.values() for f in (np.mean, lambda v: np.percentile(v, 5))]
    size = sum(map(len, images.values())) / max(1, len(images))
    return [*(f"{n:.1f}" for n in numbers), f"{size:,.0f}"]


def main() -> None:
    """Measures everything and prints tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="folder of large photographs")
    parser.add_argument("--count", type=int, default=5_000)
    parser.add_argument("--resize-mode", choices=["keep_ratio", "border"], default="keep_ratio")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="of an environment with img2dataset alone: beside torch it takes more",
    )
    parser.add_argument("--engine", action="store_true", help="also measure our engine img2dataset")
    parser.add_argument("--made", type=Path, help="folder to keep the made photographs in, for a next run")
    parser.add_argument("--serve", nargs=2, metavar=("DIR", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve[0]), int(options.serve[1]))
        return
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        photos = options.made or scratch / "photos"
        if not (photos / f"{options.count - 1:05d}.jpg").exists():
            make_photos(options.photos, options.count, photos)
        with serving(photos) as port:
            compare(photos, scratch, port, options)


def compare(photos: Path, scratch: Path, port: int, options: argparse.Namespace) -> None:
    """Runs each program over a few images and over all, and prints how they did."""
    count, mode = options.count, options.resize_mode
    rows = max(START, -(-count // 4))
    for n in (START, count):
        write_lists(scratch, port, n)
    engines = ["native", "img2dataset"] if options.engine else ["native"]
    commands = {
        f"wit fetch, engine {e}": [ours(scratch, n, mode, e, rows) for n in (START, count)] for e in engines
    }
    commands["img2dataset 1.47"] = [theirs(scratch, n, mode, rows, options.python) for n in (START, count)]
    folders = [*engines, "theirs"]
    results: list[tuple[str, measure.Measured, measure.Measured, dict[str, bytes]]] = []
    for (name, (few, all_of_them)), folder in zip(commands.items(), folders, strict=True):
        say(f"{name} …")
        start, taken = measure.run(few), measure.run(all_of_them)
        results.append((name, start, taken, stored(scratch / f"{folder}-{count}")))
    sizes = [path.stat().st_size for path in sorted(photos.glob("*.jpg"))[:count]]
    print(
        f"\n{count:,} photographs of 0.81 megapixels, {sum(sizes) / len(sizes) / 1e3:.0f} kB, {mode} {SIZE}; "
        f"{os.cpu_count()} CPUs\n"
    )
    print(measure.table(
        ("what", "stored", "wall s", "CPU s", "of it start", "images per CPU s", "without start", "peak MB"),
        [
            (name, f"{len(images):,}", f"{m.wall_s:.0f}", f"{m.cpu_s:.1f}", f"{s.cpu_s:.1f}",
             f"{len(images) / m.cpu_s:.0f}", f"{(len(images) - START) / (m.cpu_s - s.cpu_s):.0f}", f"{m.peak_mb:,.0f}")
            for name, s, m, images in results
        ],
    ))  # fmt: skip
    heads = ("what", "PSNR to area", "5th percentile", "to Lanczos", "5th percentile", "bytes")
    body: list[list[Any]] = [[name, *quality(photos, images, mode)] for name, _, _, images in results]
    print(f"\nPictures, every fifth, decibels\n\n{measure.table(heads, body)}")
    first, last = results[0], results[-1]
    ratio = (len(first[3]) / first[2].cpu_s) / (len(last[3]) / last[2].cpu_s)
    print(f"\nImages per CPU second, start included: {ratio:.2f} times img2dataset's.")


if __name__ == "__main__":
    main()
