"""The header reader finds what ``tarfile`` finds, and says where a tar is damaged."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tar_index import DamagedTarError, listing, members

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def packed(files: list[tuple[str, bytes]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(path: Path) -> list[tuple[str, bytes]]:
    data = path.read_bytes()
    return [(name, data[start : start + size]) for name, start, size in members(str(path))]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.text("aé犬/.0", min_size=1, max_size=160), st.binary(max_size=1600)), max_size=5),
    st.sampled_from(FORMATS),
)
def test_finds_what_tarfile_finds(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes]], form: int
) -> None:
    try:
        data = packed([(f"d{name}x", content) for name, content in files], form)
    except ValueError:
        return  # ustar cannot hold the name
    path = tmp_path_factory.mktemp("t") / "a.tar"
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        wanted = [(i.name, tar.extractfile(i).read()) for i in tar if i.isfile()]  # type: ignore[union-attr]
    assert read(path) == wanted
    assert [(n.decode(), s, e) for n, s, e in listing(str(path))] == list(members(str(path)))


def test_folders_links_and_long_names(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("d/link" + "l" * 120)
        link.type, link.linkname = tarfile.SYMTYPE, "m" * 150
        tar.addfile(link)
        info = tarfile.TarInfo("d/" + "n" * 200 + ".jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert read(path) == [("d/" + "n" * 200 + ".jpg", b"abc")]


def test_other_file_systems() -> None:
    with fsspec.open("memory://t/a.tar", "wb") as file:
        file.write(packed([("a.jpg", b"x" * 700), ("b.jpg", b"y")], tarfile.USTAR_FORMAT))
    assert listing("memory://t/a.tar") == [(b"a.jpg", 512, 700), (b"b.jpg", 2048, 1)]
    assert list(members("memory://t/a.tar")) == [("a.jpg", 512, 700), ("b.jpg", 2048, 1)]


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    whole = packed([("a.jpg", b"x" * 700), ("b.jpg", b"y" * 700)], tarfile.USTAR_FORMAT)
    for cut, message in (
        (600, "ends inside a member"),
        (1700, "ends inside a header"),
        (2100, "ends inside a member"),
    ):
        path.write_bytes(whole[:cut])
        found = []
        with pytest.raises(DamagedTarError, match=message):
            for member in members(str(path)):
                found.append(member[0])  # noqa: PERF401
        assert found == ["a.jpg"] * (cut > 1000)
        assert [name for name, _, _ in listing(str(path))] == [b"a.jpg"] * (cut > 1000)
    path.write_bytes(whole[:1536] + b"junk" * 200)
    with pytest.raises(DamagedTarError, match=r"not a tar header, found at byte 1,536"):
        list(members(str(path)))
    assert listing(str(path)) == [(b"a.jpg", 512, 700)]
    path.write_bytes(b"")
    assert list(members(str(path))) == []
    assert listing(str(path)) == []
    path.write_bytes(packed([], tarfile.USTAR_FORMAT))
    assert list(members(str(path))) == []


@pytest.mark.parametrize("size", [b"-0000001000\0", b"-1\0", b" -1000 "])
def test_a_negative_size_is_damage(tmp_path: Path, size: bytes) -> None:
    data = bytearray(packed([("a.jpg", b"x" * 700), ("b.jpg", b"y" * 700)], tarfile.USTAR_FORMAT))
    data[1536 + 124 : 1536 + 124 + len(size)] = size
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(DamagedTarError, match=r"not a tar header, found at byte 1,536"):
        list(members(str(path)))
    assert listing(str(path)) == [(b"a.jpg", 512, 700)]
