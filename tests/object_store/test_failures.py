"""A store that refuses, throttles, breaks, or sees its writer killed: one clear line, and nothing half published."""

from __future__ import annotations

import gc
import itertools
import os
import queue
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import s3fs

from pipeline.cli import main
from pipeline.core import manifest, paths
from pipeline.core.contracts import CANDIDATES, QUERIES
from pipeline.core.errors import InputError, StoreError
from pipeline.core.fakes import fake_folder
from tests.fetch.hostile import Site, serving
from tests.fetch.test_kill import lives
from tests.object_store.store import BROKEN, BUCKET, DENIED, THROTTLED, Asked, Store
from tests.object_store.test_every_stage import TO_THE_SITE, contents

Answer = tuple[str, str] | None


def uploads() -> int:
    """Uploads that have begun and neither ended nor been given up."""
    return len(s3fs.S3FileSystem().call_s3("list_multipart_uploads", Bucket=BUCKET).get("Uploads", []))


@pytest.mark.parametrize("size", [10, 51 << 20])
def test_an_abandoned_write_leaves_nothing(store: Store, size: int) -> None:
    path = f"s3://{BUCKET}/abandoned/{size}"
    with pytest.raises(KeyError), paths.open_atomic(path) as file:
        file.write(b"x" * size)
        raise KeyError
    gc.collect()  # fsspec's files publish what they hold when they are collected
    assert not paths.exists(path)
    assert uploads() == 0
    with paths.open_atomic(path) as file:
        file.write(b"y" * size)
        assert not paths.exists(path)
    assert paths.read_bytes(path) == b"y" * size


def test_an_upload_that_the_store_breaks_off_leaves_nothing(store: Store) -> None:
    path = f"s3://{BUCKET}/broken/a"
    with (
        pytest.raises(StoreError, match="the store failed"),
        store.failing(lambda asked: BROKEN if asked.method == "PUT" else None),
        paths.open_atomic(path) as file,
    ):
        file.write(b"x" * (51 << 20))
    gc.collect()
    assert not paths.exists(path)
    assert uploads() == 0


@pytest.mark.parametrize("answer", [DENIED, BROKEN, THROTTLED])
def test_no_answer_is_not_taken_for_an_answer(store: Store, answer: tuple[str, str]) -> None:
    path = f"s3://{BUCKET}/there/file"
    paths.write_bytes(path, b"x")
    asks: list[Callable[[str], object]] = [
        paths.exists, paths.is_folder, paths.size, paths.read_bytes, paths.remove, paths.find,
    ]  # fmt: skip
    for ask in asks[: 1 if answer == THROTTLED else None]:  # what is throttled is tried for seconds
        with store.failing(lambda _: answer), pytest.raises(StoreError):
            ask(path)
    assert paths.read_bytes(path) == b"x"


@pytest.mark.parametrize(
    ("url", "kept", "said"),
    [
        (f"s3://{BUCKET}/denied", True, "the store refuses access"),
        ("s3://nobodys-bucket/x", False, "the store has no such bucket"),
    ],
)
def test_what_cannot_be_written_to_is_one_line(
    store: Store, url: str, kept: bool, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = fake_folder(str(tmp_path / "queries"), QUERIES, 5)
    candidates = fake_folder(str(tmp_path / "candidates"), CANDIDATES, 5)
    with store.failing(lambda asked: DENIED if kept and asked.writes else None):
        assert main(["select", "--candidates", candidates, "--queries", pairs, "--out", url, "--quiet"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith(f"wit: {url}")
    assert said in line


def test_without_credentials_it_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StoreError, match=r"the store refuses access.*NoCredentialsError"):
            paths.write_bytes(f"s3://{BUCKET}/x", b"x")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_fails_while_it_is_read_costs_no_record(store: Store, tmp_path: Path) -> None:
    """A record that was not read must not become a record that was damaged."""
    given, out = f"s3://{BUCKET}/costs/pages", tmp_path / "out"
    for i in range(3):
        page = f'<base href="http://a.example/{i}"><img src="/{i}.jpg" alt="a picture of a boat {i}">'
        paths.write_bytes(f"{given}/{i}.html", page.encode())
    words = ["candidates", "--html", given, "--out", str(out), "--quiet"]
    with store.failing(lambda asked: BROKEN if asked == Asked("GET", "costs/pages/1.html") else None):
        assert main(words) == 1
    assert not (out / manifest.NAME).exists()
    assert main(words) == 0
    assert manifest.read(str(out)).rows == 3


def test_ranges_of_a_store_are_whole_or_one_line(store: Store) -> None:
    folder = f"s3://{BUCKET}/ranges"
    for name in "ab":
        paths.write_bytes(f"{folder}/{name}", b"0123456789")
    asked = [(f"{folder}/a", 2, 5), (f"{folder}/b", 0, 10)]
    assert paths.read_ranges(asked) == [b"234", b"0123456789"]
    with pytest.raises(StoreError, match="ranges/none: the store has no such bucket or object"):
        paths.read_ranges([*asked, (f"{folder}/none", 0, 1)])
    with pytest.raises(InputError, match="ranges/b: the file is cut short, expected bytes 8 to 12, found 2"):
        paths.read_ranges([*asked, (f"{folder}/b", 8, 12)])
    refused = store.failing(lambda request: DENIED if request.key == "ranges/b" else None)
    with refused, pytest.raises(StoreError, match="ranges/b: the store refuses access"):
        paths.read_ranges(asked)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving(Site()) as made:
        yield made


@pytest.fixture(scope="module")
def inputs(site: Site, store: Store) -> str:
    """Finished queries and candidates in the store; the candidates name pictures of the site."""
    root = f"s3://{BUCKET}/inputs"
    paths.write_bytes(f"{root}/words.tsv", b"word\tcount\nboat\t500\nriver\t400\nharbour\t300\n")
    lines = "".join(f"{site.url(f'/img/{i}.jpg')}\ta small boat on river {i}\n" for i in range(40))
    paths.write_bytes(f"{root}/table.tsv", b"url\ttext\n" + lines.encode())
    queries, candidates = f"{root}/queries", f"{root}/candidates"
    assert main(words_of("queries", root, queries)) == 0
    assert main(words_of("candidates", root, candidates)) == 0
    assert main(words_of("select", root, f"{root}/pairs")) == 0
    assert main(words_of("fetch", root, f"{root}/shards")) == 0
    return root


def words_of(stage: str, root: str, out: str) -> list[str]:
    given = {
        "queries": f"--word-counts {root}/words.tsv --wordnet none",
        "candidates": f"--table {root}/table.tsv --url-column url --text-column text",
        "select": f"--candidates {root}/candidates --queries {root}/queries",
        "fetch": f"--pairs {root}/pairs --rows-per-shard 20 " + " ".join(TO_THE_SITE),
        "dedup embed": f"--images {root}/shards --dataset train",
    }
    return [*stage.split(), *given[stage].split(), "--out", out, "--quiet"]


def nobody_reads(out: str) -> None:
    with pytest.raises(InputError):
        manifest.read(out)


def at_write(number: int, act: Callable[[], Answer], *, after: bool) -> Callable[[Asked], Answer]:
    """A fault of the write of a number, counted from nothing, and of those after it if asked."""
    count = itertools.count()

    def fault(asked: Asked) -> Answer:
        if asked.method != "PUT":
            return None
        place = next(count)
        return act() if place == number or (after and place > number) else None

    return fault


STAGES = {"queries": "queries", "candidates": "candidates", "select": "pairs", "fetch": "shards"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_marker_comes_first_and_the_manifest_last(store: Store, inputs: str, stage: str) -> None:
    out = f"s3://{BUCKET}/order/{stage}"
    start = len(store.log)
    assert main(words_of(stage, inputs, out)) == 0
    puts = [a.key for a in store.log[start:] if a.method == "PUT" and a.key.startswith("order/")]
    written = [key.rpartition("/")[2] for key in puts]
    assert written[0] == "unfinished.json"
    assert written[-1] == manifest.NAME
    assert contents(out) == contents(f"{inputs}/{STAGES[stage]}")


@pytest.mark.parametrize("stage", STAGES)
def test_a_store_that_breaks_at_any_write_leaves_a_folder_that_the_same_command_finishes(
    store: Store, inputs: str, stage: str
) -> None:
    out = f"s3://{BUCKET}/breaks/{stage}"
    for good in itertools.count(0, 3):
        with store.failing(at_write(good, lambda: BROKEN, after=True)):
            status = main(words_of(stage, inputs, out))
        if status == 0:
            break
        nobody_reads(out)
    assert good >= 3
    assert contents(out) == contents(f"{inputs}/{STAGES[stage]}")


def _kill(living: queue.SimpleQueue[int]) -> None:
    os.kill(living.get(), signal.SIGKILL)


@pytest.mark.parametrize("stage", ["select", "fetch"])
def test_killed_at_any_write_it_goes_on(store: Store, inputs: str, stage: str) -> None:
    out = f"s3://{BUCKET}/killed/{stage}"
    with lives() as processes:
        for number in (2, 7):
            living: queue.SimpleQueue[int] = queue.SimpleQueue()
            kill = partial(_kill, living)
            with store.failing(at_write(number, kill, after=False)):
                living.put(processes.begin(*words_of(stage, inputs, out)))
                assert processes.line() == "over"
            nobody_reads(out)
        processes.begin(*words_of(stage, inputs, out))
        assert processes.line() == "over"
    assert contents(out) == contents(f"{inputs}/{STAGES[stage]}")


def test_a_store_that_throttles_slows_a_stage_down_and_no_more(
    store: Store, inputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"s3://{BUCKET}/throttled"
    calls = itertools.count()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with store.failing(lambda _: THROTTLED if next(calls) % 30 == 7 else None):
            assert main(words_of("candidates", inputs, out)) == 0
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert next(calls) > 40
    assert contents(out) == contents(f"{inputs}/candidates")


@pytest.mark.parametrize("words", [(), ("--out", f"s3://{BUCKET}/labels")])
def test_a_review_keeps_its_labels_on_a_disk(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dedup", "review", "--neighbours", f"s3://{BUCKET}/neighbours", *words]) == 2
    assert "--out" in capsys.readouterr().err
