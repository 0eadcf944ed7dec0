from __future__ import annotations

import dataclasses
import io
import time
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from pipeline.fetch.config import FetchConfig
from pipeline.fetch.images import Stored, process
from pipeline.fetch.policy import Refusal
from pipeline.fetch.rights import marks, reserving
from tests.fetch.bodies import saved

CONFIG = FetchConfig(image_size=64, min_image_size=8)
PICTURE = Image.new("RGB", (64, 64), "red")
DMI = "http://ns.useplus.org/ldf/vocab/DMI-"


def xmp(properties: str) -> bytes:
    """An XMP packet that says one thing, as an attribute or as an element."""
    attribute = "" if properties.startswith("<") else properties
    element = properties if properties.startswith("<") else ""
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" xmlns:tdm="http://www.w3.org/ns/tdmrep/" '
        f"{attribute}>{element}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
    ).encode()


def cbor(name: str, use: str) -> bytes:
    """One entry of a training-and-mining assertion, as C2PA stores it."""

    def text(value: str) -> bytes:
        return bytes([0x78, len(value)] if len(value) > 23 else [0x60 + len(value)]) + value.encode()

    return (
        b"\x11jumdcbor\0c2pa.training-mining\0\xa1\x67entries\xa1"
        + text(name)
        + b"\xa1"
        + text("use")
        + text(use)
    )


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (xmp(f'plus:DataMining="{DMI}PROHIBITED"'), ["plus:DMI-PROHIBITED"]),
        (xmp(f'plus:DataMining="{DMI}PROHIBITED-AIMLTRAINING"'), ["plus:DMI-PROHIBITED-AIMLTRAINING"]),
        (xmp(f"<plus:DataMining>{DMI}ALLOWED</plus:DataMining>"), ["plus:DMI-ALLOWED"]),
        (xmp(f'<plus:DataMining rdf:resource="{DMI}PROHIBITED-SEEXMP"/>'), ["plus:DMI-PROHIBITED-SEEXMP"]),
        (xmp('plus:DataMining="DMI-UNSPECIFIED"'), ["plus:DMI-UNSPECIFIED"]),
        (xmp('tdm:reservation="1"'), ["tdm:reservation=1"]),
        (xmp("<tdm:reservation>1</tdm:reservation>"), ["tdm:reservation=1"]),
        (xmp('tdm:reservation="0"'), []),
        (cbor("c2pa.ai_training", "notAllowed"), ["c2pa.ai_training=notAllowed"]),
        (cbor("cawg.data_mining", "constrained"), ["c2pa.data_mining=constrained"]),
        (cbor("c2pa.ai_generative_training", "allowed"), ["c2pa.ai_generative_training=allowed"]),
        ((b'{"label":"c2pa.training-mining","data":{"entries":{"c2pa.ai_inference":{"use":"notAllowed"},'
         b'"c2pa.data_mining":{"use":"allowed"}}}}'), ["c2pa.ai_inference=notAllowed", "c2pa.data_mining=allowed"]),
        (b"c2pa.training-mining c2pa.ai_training c2pa.data_mining notAllowed", ["c2pa.data_mining=notAllowed"]),
        (b"the words DMI-PROHIBITED and c2pa.ai_training notAllowed in a caption", []),
    ],
)  # fmt: skip
def test_marks(metadata: bytes, expected: list[str]) -> None:
    assert marks(b"\xff\xd8 before" + metadata + b"after") == tuple(expected)


def test_which_marks_reserve() -> None:
    forbidding = (
        "c2pa.ai_training=notAllowed", "c2pa.data_mining=constrained", "plus:DMI-PROHIBITED-GENAIMLTRAINING",
        "tdm:reservation=1",
    )  # fmt: skip
    allowing = (
        "c2pa.ai_inference=notAllowed",
        "c2pa.data_mining=allowed",
        "plus:DMI-ALLOWED",
        "plus:DMI-UNSPECIFIED",
    )
    assert reserving(forbidding) == forbidding
    assert reserving(allowing) == ()


def files(packet: bytes) -> dict[str, bytes]:
    """The same picture with the same XMP packet in every format that can hold one."""
    info: Any = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet.decode())
    return {
        "jpeg": saved(PICTURE, "JPEG", xmp=packet),
        "png": saved(PICTURE, "PNG", pnginfo=info),
        "webp": saved(PICTURE, "WEBP", xmp=packet),
    }


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_reserved_picture_is_left_out_unless_told_otherwise(kind: str) -> None:
    body = files(xmp(f'plus:DataMining="{DMI}PROHIBITED-AIMLTRAINING"'))[kind]
    assert process(body, CONFIG) == Refusal("rights_flag", "plus:DMI-PROHIBITED-AIMLTRAINING")
    kept = process(body, dataclasses.replace(CONFIG, drop_reserved_images=False))
    assert isinstance(kept, Stored)
    assert kept.rights == ("plus:DMI-PROHIBITED-AIMLTRAINING",)
    assert Image.open(io.BytesIO(kept.jpeg)).size == (64, 64)
    allowed = process(files(xmp(f'plus:DataMining="{DMI}ALLOWED"'))[kind], CONFIG)
    assert isinstance(allowed, Stored)
    assert allowed.rights == ("plus:DMI-ALLOWED",)


def test_the_search_is_linear_and_its_result_bounded() -> None:
    for hostile in (
        b"c2pa.training-mining" + b"c2pa.ai_training" * 600_000,
        b"c2pa.training-mining" + b"c2pa.data_mining" + b"\0" * 9_000_000,
        b"plus:DataMining" * 600_000 + b"DMI-",
        b"ldf/vocab/" + b"DMI-" * 2_000_000,
        b"tdm:reservation " * 600_000,
    ):
        started = time.process_time()
        assert len(marks(hostile)) <= 16
        assert time.process_time() - started < 3
    many = b"".join(f'ldf/vocab/DMI-{chr(65 + n % 26)}{chr(65 + n // 26)}"'.encode() for n in range(400))
    assert len(marks(many)) == 16
