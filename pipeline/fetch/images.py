"""A downloaded body becomes a stored JPEG, or a reason why not.

The format is told by content, the size read from the header before anything is decoded. Orientation, colour
profile, 16 bits, CMYK, palettes and transparency are resolved here, once, so that every reader of a shard sees
the picture as a browser shows it. Resize modes follow img2dataset's ``Resizer``.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from PIL import ExifTags, GifImagePlugin, Image, ImageCms, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from pipeline.core.pictures import opaque
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import Refusal
from pipeline.fetch.rights import marks, reserving

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"\0\0\1\0", "ico"),
    (0, b"8BPS", "psd"),
    (4, b"ftypavif", "avif"),
    (4, b"ftypheic", "heic"),
    (4, b"ftypmif1", "heif"),
    (0, b"\0\0\0\x0cJXL ", "jxl"),
    (0, b"\xff\x0a", "jxl"),
    (0, b"\0\0\0\x0cjP  ", "jpeg2000"),
    (0, b"%!PS", "postscript"),
    (0, b"%PDF", "pdf"),
)
# The classes themselves, not ``Image.open``: no other format can be reached, and no global limit is involved.
_READERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Scaled decoding: the factor, and how many times smaller the picture must become for it.
_DECODED_AT = ((8, 16.0), (4, 6.0), (2, 2.75))
# img2dataset's names. "area" is the mean over a pixel's area only where that is wide enough to be even; Hamming costs
# little more and has no uneven edges.
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "linear": Image.Resampling.BILINEAR,
    "cubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
_BOX_FROM, _BOX_TO = 2, 4  # times smaller; from there on Pillow takes means of whole pixels first
_MAX_PROFILE_BYTES = 4 * 2**20
_JPEG_LIMIT = 65_500  # libjpeg's own longest side
_EXIF_TAGS = 100
_EXIF_CHARACTERS = 200
_EXIF_ITEMS = 16
OUT_OF_MEMORY = "killed: memory"


@dataclass(frozen=True)
class Stored:
    """An image as it goes into a shard.

    Attributes:
        jpeg: The file.
        width: Of the stored image, in pixels.
        height: Of the stored image.
        original_width: As a browser shows the original, that is after its orientation mark.
        original_height: As above.
        exif: Tags as a JSON object of strings.
        phash: See :func:`perceptual_hash`.
        rights: Marks in its metadata that speak of data mining, sorted; see :mod:`pipeline.fetch.rights`.
        score: What ``image_scorer`` gives it; ``None`` without one.
    """

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    exif: str
    phash: str = ""
    rights: tuple[str, ...] = ()
    score: float | None = None


class _RefusedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, detail)


def sniff(body: bytes) -> str | None:
    """The image format by the first bytes; ``None`` if it is no image."""
    for offset, magic, name in _SIGNATURES:
        if body.startswith(magic, offset):
            return name
    head = body[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "svg"
    return None


def process(body: bytes, config: FetchConfig) -> Stored | Refusal:
    """Decodes, checks, resizes and encodes one image.

    Whatever its bytes do to the decoder is this image's own ``decode_error``; a shard never fails for one image. A
    file that is cut short is one too: half of its picture would be grey, and its text speaks of the whole.
    """
    admitted = admit(body, config)
    if isinstance(admitted, Refusal):
        return admitted
    try:
        return _process(admitted, config)
    except Exception as error:
        return decode_error(admitted.format, error)


@dataclass(frozen=True)
class Admitted:
    """An image that may be decoded: its format, size and marks are known and allowed.

    Attributes:
        image: Opened, not decoded.
        format: As :func:`sniff` names it.
        rights: Marks that speak of data mining.
    """

    image: Image.Image
    format: str
    rights: tuple[str, ...]


def admit(body: bytes, config: FetchConfig) -> Admitted | Refusal:
    """Looks at an image without decoding it: format by content, size by its header, marks of its owner."""
    name = sniff(body)
    if name is None:
        return Refusal("not_image")
    if name not in _READERS:
        return Refusal("unsupported_format", name)
    try:
        if name == "webp":
            # Pillow's WebP reader allocates the whole canvas when it opens a file: look first.
            _check_area(webp_size(body), config)
        image = _READERS[name](io.BytesIO(body))
        _check_area(image.size, config)
    except Exception as error:
        return decode_error(name, error)
    found = marks(body)
    forbidding = reserving(found) if config.drop_reserved_images else ()
    return Refusal("rights_flag", ", ".join(forbidding)) if forbidding else Admitted(image, name, found)


def decode_error(name: str, error: Exception) -> Refusal:
    """What a decoder's exception means; Pillow's raise nearly every built-in one on hostile bytes."""
    if isinstance(error, _RefusedError):
        return error.refusal
    if isinstance(error, MemoryError):
        return Refusal("decode_error", OUT_OF_MEMORY)
    cut = "truncated" in str(error) or isinstance(error, EOFError)
    return Refusal("decode_error", f"{name} {'truncated' if cut else type(error).__name__}")


def _process(admitted: Admitted, config: FetchConfig) -> Stored:
    image = admitted.image
    _check_shape(image.size, config)
    if admitted.format != "jpeg":
        image.load()  # EXIF may stand behind the pixels: Pillow would decode to reach it
    exif = _exif(image)
    turn = _TURNS.get(_orientation(exif))
    sides = turn in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
    original = (image.height, image.width) if sides else image.size
    target = resized(original, config)
    _check_area(target, config)
    raw_target = (target[1], target[0]) if sides else target
    factor = 1
    if admitted.format == "jpeg" and config.downscale_interpolation == "area":
        factor = decode_factor(image.size, raw_target)
        image.draft(None, (image.width // factor, image.height // factor))
    image.load()
    profile = image.info.get("icc_profile")
    picture = scaled(image, raw_target, config, whole=factor == 1)
    picture = to_srgb(picture, profile)
    if turn is not None:
        picture = picture.transpose(turn)
    picture = framed(picture, original, config)
    if max(picture.size) > _JPEG_LIMIT:
        raise _RefusedError("too_many_pixels", f"{picture.width}x{picture.height}")
    buffer = io.BytesIO()
    picture.info.clear()  # Pillow would write the original's comment into our file
    picture.save(buffer, "JPEG", quality=config.encode_quality, subsampling="4:4:4")
    looks = perceptual_hash(picture)
    return Stored(buffer.getvalue(), *picture.size, *original, exif_json(exif), looks, admitted.rights)


def perceptual_hash(picture: Image.Image) -> str:
    """A difference hash: 64 bits as 16 hex characters, equal or near for pictures that look alike.

    Each bit says whether a pixel of the grey picture of 9 x 8 is darker than the one on its right.
    """
    small = picture.convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for place in range(72):
        if place % 9 != 8:
            bits = bits << 1 | (small[place] < small[place + 1])
    return f"{bits:016x}"


def decode_factor(size: tuple[int, int], target: tuple[int, int]) -> int:
    """By how much a JPEG is made smaller while it is decoded: 1, 2, 4 or 8.

    libjpeg scales at a fraction of the cost, but each halving is a coarser filter than the resize that follows: it
    may take over only so much of it. ``benchmarks/README.md`` has the measurement.
    """
    shrinks = min(size[0] / target[0], size[1] / target[1])
    return next((factor for factor, least in _DECODED_AT if shrinks >= least), 1)


def scaled(
    image: Image.Image, target: tuple[int, int], config: FetchConfig, *, whole: bool = True
) -> Image.Image:
    """The picture opaque and of the size asked for, before its colours are converted.

    Args:
        image: The picture.
        target: Width and height asked for.
        config: Its interpolations.
        whole: The decoder has not made it smaller already.
    """
    if image.size == target:
        return opaque(image)
    grows = target[0] * target[1] > image.width * image.height
    way = config.upscale_interpolation if grows else config.downscale_interpolation
    resample = _FILTERS[way]
    if (
        way == "area"
        and whole
        and _BOX_FROM <= min(image.width / target[0], image.height / target[1]) < _BOX_TO
    ):
        resample = Image.Resampling.BOX
    if image.mode in ("LA", "RGBA") and way != "nearest" and not grows:
        # Small first, then white behind it: the same picture for less time and a fifth of the memory.
        image = (
            image.convert("RGBA").convert("RGBa").resize(target, resample, reducing_gap=2.0).convert("RGBA")
        )
        return opaque(image)
    return opaque(image).resize(target, resample, reducing_gap=2.0)


def webp_size(body: bytes) -> tuple[int, int]:
    """Canvas size from a WebP header.

    Raises:
        ValueError: The first chunk is none that begins a WebP file.
    """
    kind, data = body[12:16], body[20:30]
    if len(data) == 10 and kind == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if len(data) == 10 and kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if len(data) >= 5 and kind == b"VP8L" and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise ValueError("no WebP header")


def _check_area(size: tuple[int, int], config: FetchConfig) -> None:
    if size[0] * size[1] > config.max_image_area:
        raise _RefusedError("too_many_pixels", f"{size[0]}x{size[1]}")


def _check_shape(size: tuple[int, int], config: FetchConfig) -> None:
    short, long = sorted(size)
    if short < max(1, config.min_image_size):
        raise _RefusedError("too_small", f"{size[0]}x{size[1]}")
    if long > short * config.max_aspect_ratio:
        raise _RefusedError("aspect_ratio", f"{size[0]}x{size[1]}")


def _exif(image: Image.Image) -> Image.Exif:
    """The picture's EXIF; none if it is damaged, which no viewer minds."""
    try:
        return image.getexif()
    except Exception:
        return Image.Exif()


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) else 1


def resized(size: tuple[int, int], config: FetchConfig) -> tuple[int, int]:
    """Size after resizing and before cropping or padding, as img2dataset computes it.

    Args:
        size: Width and height as displayed.
        config: Its ``resize_mode``, ``image_size`` and ``resize_only_if_bigger``.
    """
    if config.resize_mode == "no":
        return size
    by_short = config.resize_mode in ("keep_ratio", "center_crop")
    side = min(size) if by_short else max(size)
    if side == config.image_size or (config.resize_only_if_bigger and side < config.image_size):
        return size
    scale = config.image_size / side
    return max(1, math.floor(size[0] * scale + 0.5)), max(1, math.floor(size[1] * scale + 0.5))


def framed(picture: Image.Image, original: tuple[int, int], config: FetchConfig) -> Image.Image:
    """Cuts the middle out or pads with white, for the modes that make squares."""
    side = config.image_size
    smaller = config.resize_only_if_bigger and (
        (min(original) if config.resize_mode == "center_crop" else max(original)) < side
    )
    if config.resize_mode not in ("center_crop", "border") or smaller:
        return picture
    if config.resize_mode == "center_crop":
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        return picture.crop((left, top, left + side, top + side))
    left, top = (side - picture.width) // 2, (side - picture.height) // 2
    ground = Image.new(picture.mode, (side, side), "white")
    ground.paste(picture, (left, top))
    return ground


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in the sRGB space; a profile that cannot be used is ignored, as browsers do."""
    if profile and len(profile) <= _MAX_PROFILE_BYTES:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(source.profile.xcolor_space)
            if space == picture.mode:
                converted = ImageCms.profileToProfile(
                    picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def exif_json(exif: Image.Exif) -> str:
    """The main EXIF tags as a JSON object: names, and values as short strings."""
    found: dict[str, str] = {}
    for tag in sorted(exif)[:_EXIF_TAGS]:
        value = exif[tag]
        name = ExifTags.TAGS.get(tag, f"tag {tag:#06x}")
        if isinstance(value, bytes):
            text = value[:_EXIF_CHARACTERS].decode("latin-1")
        else:
            text = str(value[:_EXIF_ITEMS] if isinstance(value, tuple) else value)
        found[name] = text[:_EXIF_CHARACTERS].encode("utf-8", errors="replace").decode()
    return json.dumps(found, sort_keys=True, ensure_ascii=True)
