"""The engine ``img2dataset``: its Downloader and Resizer, driven in a guarded process of their own.

``python -m pipeline.fetch.img2dataset_child`` speaks as :mod:`pipeline.fetch.decode_child` does. The Downloader asks
for images through its function ``download_image_with_retry`` and hands results to its writer class: both are ours
here. So it fetches nothing, it is given the bodies that our client has fetched under our rules; the pictures are
img2dataset's to the byte. Its Resizer redirects the process's own standard streams and must run in one thread.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import warnings
from typing import Any

import fsspec
import pyarrow as pa
from img2dataset import downloader
from img2dataset.resizer import Resizer
from PIL import Image

from pipeline.fetch.config import FetchConfig
from pipeline.fetch.decode_child import Parent, greet, settle
from pipeline.fetch.images import OUT_OF_MEMORY, Admitted, Stored, admit, perceptual_hash
from pipeline.fetch.policy import Refusal
from pipeline.fetch.wire import packed, receive, send

_ROWS = 1_000  # of one call of the Downloader; it then goes on with the next
_INPUT = "memory://input.feather"
_REASONS = {
    "image too small": "too_small",
    "image area too large": "too_many_pixels",
    "aspect ratio too large": "aspect_ratio",
}


class Bodies:
    """What the Downloader calls: the source of its images and the writer of its results.

    One image is on its way at a time: the parent sends the next when it has this one's result.
    """

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._admitted: Admitted | Refusal | None = None

    def fetch(self, row: tuple[int, str], **_: Any) -> tuple[int, io.BytesIO | None, str | None]:
        """In place of ``download_image_with_retry``: the next body, if its header is allowed."""
        body = receive(self._parent.requests)
        if body is None:
            os._exit(0)  # the parent needs no more; this may be the Downloader's thread
        signal.setitimer(signal.ITIMER_PROF, self._parent.config.decode_timeout_s)
        self._admitted = admit(body, self._parent.config)
        if isinstance(self._admitted, Refusal):
            return row[0], None, self._admitted.reason
        return row[0], io.BytesIO(body), None

    def writer(self, *_: Any) -> Bodies:
        """In place of a writer class."""
        return self

    def write(self, image: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """Sends one result to the parent."""
        assert self._admitted is not None
        found = result(self._admitted, image, meta)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(self._parent.answers, packed(found))

    def close(self) -> None:
        """Nothing: results have been sent."""


def result(admitted: Admitted | Refusal, image: bytes | None, meta: dict[str, Any]) -> Stored | Refusal:
    """What img2dataset says of one image, in our terms."""
    if isinstance(admitted, Refusal):
        return admitted
    error = meta["error_message"]
    if image is None or error is not None:
        if error in _REASONS:
            return Refusal(_REASONS[error], f"{admitted.image.width}x{admitted.image.height}")
        memory = "memory" in str(error).lower() or "allocate" in str(error).lower()
        return Refusal("decode_error", OUT_OF_MEMORY if memory else f"{admitted.format} img2dataset")
    size = (meta["width"], meta["height"], meta["original_width"], meta["original_height"])
    with Image.open(io.BytesIO(image), formats=["JPEG"]) as picture:
        return Stored(image, *size, meta["exif"] or "{}", perceptual_hash(picture), admitted.rights)


def make_downloader(bodies: Bodies, config: FetchConfig) -> downloader.Downloader:
    """img2dataset's Downloader with its own Resizer, our settings, and one thread."""
    resizer = Resizer(
        image_size=config.image_size,
        resize_mode=config.resize_mode,
        resize_only_if_bigger=config.resize_only_if_bigger,
        upscale_interpolation=config.upscale_interpolation,
        downscale_interpolation=config.downscale_interpolation,
        encode_quality=config.encode_quality,
        encode_format="jpg",
        min_image_size=config.min_image_size,
        max_image_area=config.max_image_area,
        max_aspect_ratio=config.max_aspect_ratio,
    )
    return downloader.Downloader(
        sample_writer_class=bodies.writer,
        resizer=resizer,
        thread_count=1,
        save_caption=False,
        extract_exif=True,
        output_folder="memory://output",
        column_list=["url"],
        timeout=config.deadline_s,
        number_sample_per_shard=_ROWS,
        oom_shard_count=5,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=None,
    )


def write_input() -> None:
    """The Downloader's list of URLs, which it deletes when it is through; nobody asks for them."""
    table = pa.table({"url": [str(n) for n in range(_ROWS)]})
    with fsspec.open(_INPUT, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def main() -> None:
    """Answers each body with its result, until no more come."""
    warnings.simplefilter("ignore")
    parent = greet()
    bodies = Bodies(parent)
    downloader.download_image_with_retry = bodies.fetch
    engine = make_downloader(bodies, parent.config)
    fsspec.filesystem("memory").makedirs("/output", exist_ok=True)
    settle(parent)
    succeeded = True
    while succeeded:
        write_input()
        succeeded, _ = engine((0, _INPUT))
    os._exit(1)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
