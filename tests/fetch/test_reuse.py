from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.core import manifest, tars
from pipeline.core.beam import run_pipeline
from pipeline.core.config import decisive
from pipeline.core.fakes import jpeg, picture
from pipeline.fetch import ledger, retry, reuse, staging
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import RETRYABLE
from tests.fetch.hostile import Site
from tests.fetch.test_stage import FLAGS, assert_same, fetch, pairs_of, rows_of

FAST = ("--set", "fetch.backoff_base_s=0.001", "--set", "fetch.breaker_failures=1000")


def asked_for(site: Site) -> set[str]:
    """Pictures asked for since the last call."""
    found = {path for path in site.hits if path not in ("/robots.txt", "/.well-known/tdmrep.json")}
    site.hits.clear()
    return found


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name[0].isdigit()}


def ledger_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(out / "ledger/part-00000.parquet").to_pylist()
    return {row["fetch_url"]: row for row in rows}


def test_the_ledger_has_every_url_once(site: Site, tmp_path: Path) -> None:
    big = jpeg(picture("red", "cross", size=400))
    urls = [
        site.url("/img/1.jpg"),
        site.url("/img/1.jpg#twice"),
        site.add("/moved", status=302, Location="/tagged"),
        site.add("/tagged", big, ETag='"v1"', Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT"),
        site.add("/html", b"<html>"),
        site.add("/down", status=500),
        site.url("/missing.jpg"),
        "ftp://nowhere.test/x.jpg",
    ]
    done = fetch(pairs_of(tmp_path / "pairs", urls), tmp_path / "out", *FAST)
    rows = ledger_of(tmp_path / "out")
    assert list(rows) == sorted(rows)
    assert {
        url.rpartition("/")[2]: (r["status"], r["reason"], r["retryable"]) for url, r in rows.items()
    } == {
        "1.jpg": ("success", None, False),
        "moved": ("success", None, False),
        "tagged": ("success", None, False),
        "html": ("failed_to_resize", "not_image", False),
        "down": ("failed_to_download", "http_5xx", True),
        "missing.jpg": ("failed_to_download", "http_4xx", False),
    }
    moved = rows[site.url("/moved")]
    assert (moved["final_url"], moved["etag"], moved["bytes"]) == (site.url("/tagged"), '"v1"', len(big))
    assert (moved["original_width"], moved["sha256"]) == (400, hashlib.sha256(big).hexdigest())
    assert done.extra["urls"] == 6
    assert done.extra["urls_retryable"] == 1
    assert done.extra["bytes_downloaded"] == sum(r["bytes"] or 0 for r in rows.values())


def test_a_finished_folder_says_what_a_retry_could_mend(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = pairs_of(tmp_path / "pairs", [site.url("/img/1.jpg"), site.add("/down", status=500)])
    out = tmp_path / "out"
    fetch(pairs, out, *FAST)
    asked_for(site)
    loud = [f for f in FLAGS if f != "--quiet"]
    assert main(["fetch", "--pairs", pairs, "--out", str(out), *loud, *FAST]) == 0
    text = capsys.readouterr().err
    assert "already done" in text
    assert "1 URLs failed in a way that may pass: --retry" in text
    assert asked_for(site) == set()


def test_a_retry_asks_for_what_may_pass_and_ends_as_if_it_had_passed_at_once(
    site: Site, tmp_path: Path
) -> None:
    urls = [site.url(f"/img/{i}.jpg", f"127.0.0.{1 + i % 2}") for i in range(12)]
    urls += [site.add("/gone", status=410), site.add("/html", b"<html>")]
    late = [site.url("/late"), site.url("/late#other-text")]
    pairs, out = pairs_of(tmp_path / "pairs", urls + late), tmp_path / "out"
    more = (*FAST, "--rows-per-shard", "6")
    site.add("/late", status=500)
    first = fetch(pairs, out, *more)
    assert first.dropped == {"http_4xx": 1, "http_5xx": 2, "not_image": 1}
    site.add("/late", jpeg(picture("blue", "square", size=300)))
    asked_for(site)
    second = fetch(pairs, out, *more, "--retry")
    assert asked_for(site) == {"/late"}
    assert second.dropped == {"http_4xx": 1, "not_image": 1}
    fetch(pairs, tmp_path / "at-once", *more)
    assert_same(tmp_path / "at-once", out)
    asked_for(site)
    fetch(pairs, out, *more, "--retry")  # nothing left that may pass
    assert asked_for(site) == set()


def test_each_retry_spends_a_hosts_quota_again(site: Site, tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path / "pairs", [site.url(f"/img/{i}.jpg") for i in range(5)])
    fetch(pairs, tmp_path / "at-once")
    asked_for(site)
    more = ("--max-per-host", "2")
    for flag, rows in ((), 2), (("--retry",), 4), (("--retry",), 5):
        done = fetch(pairs, tmp_path / "out", *more, *flag)
        assert done.rows == rows
        assert done.dropped == ({"host_quota": 5 - rows} if rows < 5 else {})
        assert len(asked_for(site)) <= 2
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "at-once")


def test_what_a_time_budget_left_over_is_asked_for_by_a_retry(site: Site, tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path / "pairs", [site.url(f"/img/{i}.jpg") for i in range(6)])
    fetch(pairs, tmp_path / "at-once")
    site.delay_s = 0.4
    done = fetch(pairs, tmp_path / "out", "--group-budget-s", "0.5", "--host-concurrency", "1")
    assert done.dropped["deferred"] == 6 - done.rows > 0
    site.delay_s = 0.0
    fetch(pairs, tmp_path / "out", "--retry")
    assert_same(tmp_path / "at-once", tmp_path / "out")


def test_a_run_goes_on_with_another_number_of_groups(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pairs_of(
        tmp_path / "pairs", [site.url(f"/img/{i}.jpg", f"127.0.0.{1 + i % 3}") for i in range(9)]
    )
    arguments = [
        "fetch",
        "--pairs",
        pairs,
        "--out",
        str(tmp_path / "out"),
        *FLAGS,
        "--debug",
        "--max-per-host",
        "2",
    ]
    pipelines = iter((run_pipeline, None))

    def running(build: Any, options: Any) -> None:
        if (run := next(pipelines)) is None:
            raise KilledError
        run(build, options)

    monkeypatch.setattr("pipeline.fetch.stage.run_pipeline", running)
    with pytest.raises(KilledError):
        main(arguments)
    assert len(asked_for(site)) == 6
    monkeypatch.undo()
    # Of one host nothing is left staged: only that one still has its quota.
    for part in (tmp_path / "out/.staging/raw").glob("*.parquet"):
        table = pq.read_table(part)
        pq.write_table(table.filter(pc.invert(pc.match_substring(table["fetch_url"], "127.0.0.3"))), part)
    assert main([*arguments, "--set", "fetch.host_groups=5"]) == 0
    assert len(asked_for(site)) == 2
    assert manifest.read(str(tmp_path / "out")).dropped == {"host_quota": 3}


class KilledError(Exception):
    pass


def test_a_retry_killed_at_any_step_goes_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [site.url(f"/img/{i}.jpg") for i in range(8)] + [site.url("/late")]
    pairs, out = pairs_of(tmp_path / "pairs", urls), tmp_path / "out"
    more = (*FAST, "--rows-per-shard", "4")
    site.add("/late", status=500)
    fetch(pairs, out, *more)
    site.add("/late", jpeg(picture("blue", "square", size=300)))
    fetch(pairs, tmp_path / "at-once", *more)
    asked_for(site)
    done = {"moves": 0, "pipelines": 0}
    move, clean = retry.move_file, retry.clean

    def moving(out: str, name: str, folder: str) -> None:
        done["moves"] += 1
        if done["moves"] in (1, 2, 6):
            raise KilledError
        move(out, name, folder)

    def running(build: Any, options: Any) -> None:
        done["pipelines"] += 1
        if done["pipelines"] in (1, 3, 5, 7, 9):
            raise KilledError
        run_pipeline(build, options)

    def cleaning(out: str, folders: Any) -> None:
        monkeypatch.setattr(retry, "clean", clean)
        raise KilledError

    monkeypatch.setattr(retry, "move_file", moving)
    monkeypatch.setattr("pipeline.fetch.stage.run_pipeline", running)
    monkeypatch.setattr(retry, "clean", cleaning)
    kills = 0
    for again in range(30):
        # With or without --retry: what is under way goes on.
        flag = ["--retry"] if again < 2 or again % 2 else []
        try:
            assert main(["fetch", "--debug", "--pairs", pairs, "--out", str(out), *FLAGS, *more, *flag]) == 0
            break
        except KilledError:
            kills += 1
    assert kills == 9
    assert asked_for(site) == {"/late"}
    assert_same(tmp_path / "at-once", out)


@pytest.mark.parametrize("finished", [False, True], ids=["first-run", "retry-of-a-finished-folder"])
def test_too_much_damage_is_asked_for_again_by_a_retry(site: Site, tmp_path: Path, finished: bool) -> None:
    urls = [site.url(f"/img/{i}.jpg", f"127.0.0.{1 + i % 2}") for i in range(6)] + [site.url("/late")]
    urls += [site.add("/gone", status=410)]
    pairs, out = pairs_of(tmp_path / "pairs", urls), tmp_path / "out"
    more = (*FAST, "--rows-per-shard", "3")
    site.add("/late", status=500)
    if finished:
        fetch(pairs, out, *more)
    words = ["fetch", "--pairs", pairs, "--out", str(out), *FLAGS, *more, "--max-bad-fraction", "0"]
    assert main([*words, *(["--retry"] if finished else [])]) == 1
    site.add("/late", jpeg(picture("blue", "square", size=300)))
    asked_for(site)
    assert main(words) == 1
    assert asked_for(site) == set(), "without --retry what was answered is answered"
    assert main([*words, "--retry"]) == 0
    assert asked_for(site) == {"/late"}
    fetch(pairs, tmp_path / "at-once", *more)
    assert_same(tmp_path / "at-once", out)


def test_forgetting_failures_killed_at_any_step_goes_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, out = pairs_of(tmp_path / "pairs", [site.url("/img/1.jpg"), site.url("/late")]), tmp_path / "out"
    site.add("/late", status=500)
    words = ["fetch", "--pairs", pairs, "--out", str(out), *FLAGS, *FAST, "--max-bad-fraction", "0"]
    assert main(words) == 1
    site.add("/late", jpeg(picture("blue", "square", size=300)))
    asked_for(site)

    def killed(*given: Any) -> None:
        raise KilledError

    def killed_at_the_second(*given: Any) -> None:
        write(*given)
        monkeypatch.setattr(staging, "write_parquet", killed)

    write = staging.write_parquet
    flags = ["--debug", "--retry"]
    for where, name, how in (
        (staging, "write_parquet", killed),
        (staging, "write_parquet", killed_at_the_second),
        (retry, "clear", killed),
    ):
        monkeypatch.setattr(where, name, how)
        with pytest.raises(KilledError):
            main([*words, *flags])
        monkeypatch.undo()
        flags = ["--debug"]  # what is under way goes on, with or without --retry
    assert main(words) == 0
    assert asked_for(site) == {"/late"}
    fetch(pairs, tmp_path / "at-once", *FAST)
    assert_same(tmp_path / "at-once", out)


def test_a_retry_spends_a_hosts_quota_again_after_too_much_damage(site: Site, tmp_path: Path) -> None:
    urls = [site.url(f"/img/{i}.jpg") for i in range(3)] + [site.add("/late", status=500)]
    pairs, out = pairs_of(tmp_path / "pairs", urls), tmp_path / "out"
    words = ["fetch", "--pairs", pairs, "--out", str(out), *FLAGS, *FAST, "--max-per-host", "4"]
    words += ["--max-bad-fraction", "0"]
    assert main(words) == 1
    site.add("/late", jpeg(picture("blue", "square", size=300)))
    assert main([*words, "--retry"]) == 0
    assert manifest.read(str(out)).rows == 4


def test_a_retry_under_way_is_not_thrown_away_for_other_flags(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, out = pairs_of(tmp_path / "pairs", [site.add("/late", status=500)]), tmp_path / "out"
    fetch(pairs, out, *FAST)
    assert retry.begin(str(out), "fetch", FetchConfig(), [pairs]) is False
    monkeypatch.setattr(retry, "move", lambda *_: (_ for _ in ()).throw(KilledError()))
    arguments = ["fetch", "--pairs", pairs, "--out", str(out), *FLAGS, *FAST]
    assert main([*arguments, "--retry"]) == 1
    capsys.readouterr()
    assert main([*arguments, "--image-size", "64"]) == 1
    assert "retry with another configuration" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*arguments, "--image-size", "64", "--overwrite"]) == 0


def test_what_another_run_fetched_is_copied_byte_for_byte(site: Site, tmp_path: Path) -> None:
    urls = [site.url(f"/img/{i}.jpg") for i in range(10)] + [site.add("/gone", status=410)]
    fetch(pairs_of(tmp_path / "some", urls[:6] + urls[-1:]), tmp_path / "old", "--rows-per-shard", "4")
    every = pairs_of(tmp_path / "all", urls)
    fetch(every, tmp_path / "direct")
    asked_for(site)
    done = fetch(every, tmp_path / "new", "--reuse", str(tmp_path / "old"))
    assert asked_for(site) == {f"/img/{i}.jpg" for i in range(6, 10)}
    assert shard_bytes(tmp_path / "new") == shard_bytes(tmp_path / "direct")
    assert ledger_of(tmp_path / "new") == ledger_of(tmp_path / "direct")
    assert [(r["name"], r["urls"]) for r in done.extra["reused"]] == [("old", 7)]
    assert done.extra["reused"][0]["manifest_sha256"] == manifest.read(str(tmp_path / "old")).sha256


def test_what_is_denied_is_not_taken_over_either(site: Site, tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path / "pairs", [site.url("/img/1.jpg"), site.url("/img/2.jpg")])
    fetch(pairs, tmp_path / "old")
    sha = rows_of(tmp_path / "old")[0]["sha256"]
    (tmp_path / "deny.txt").write_text(sha)
    deny = ("--set", f"fetch.deny_hashes='{tmp_path / 'deny.txt'}'")
    done = fetch(pairs, tmp_path / "new", "--reuse", str(tmp_path / "old"), *deny)
    assert done.dropped == {"blocklisted_hash": 1}


def test_what_is_reserved_is_known_after_its_metadata_is_gone(site: Site, tmp_path: Path) -> None:
    body = jpeg(picture("red", "cross", size=64))
    mark = b'plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"'
    marked = body[:2] + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + body[2:]
    pairs = pairs_of(tmp_path / "pairs", [site.add("/marked", marked), site.url("/img/1.jpg")])
    keep = ("--set", "fetch.drop_reserved_images=false")
    fetch(pairs, tmp_path / "old", *keep)
    rights = {r["url"]: r["image_rights"] for r in rows_of(tmp_path / "old")}
    assert rights == {site.url("/marked"): "plus:DMI-PROHIBITED", site.url("/img/1.jpg"): None}
    asked_for(site)
    done = fetch(pairs, tmp_path / "new", "--reuse", str(tmp_path / "old"))
    assert (done.dropped, asked_for(site)) == ({"rights_flag": 1}, set())


def test_images_of_other_settings_are_resized_or_fetched_again(site: Site, tmp_path: Path) -> None:
    urls = [site.add(f"/{size}", jpeg(picture("red", "cross", size=size))) for size in (40, 100, 300)]
    pairs = pairs_of(
        tmp_path / "pairs", [*urls, site.add("/html", b"<html>"), site.add("/noai", X_Robots_Tag="noai")]
    )
    fetch(pairs, tmp_path / "old", "--image-size", "120")
    asked_for(site)
    fetch(pairs, tmp_path / "smaller", "--reuse", str(tmp_path / "old"), "--image-size", "80")
    assert asked_for(site) == {"/noai"}  # our own opt-out rules might have changed, what is no image has not
    sizes = {r["url"].rpartition("/")[2]: r for r in rows_of(tmp_path / "smaller") if r["width"]}
    assert {n: (r["width"], r["original_width"]) for n, r in sizes.items()} == {
        "40": (40, 40), "100": (80, 100), "300": (80, 300),
    }  # fmt: skip
    fetch(pairs, tmp_path / "larger", "--reuse", str(tmp_path / "old"), "--image-size", "200")
    assert asked_for(site) == {"/noai", "/300"}
    fetch(pairs, tmp_path / "direct", "--image-size", "200")
    assert shard_bytes(tmp_path / "larger") == shard_bytes(tmp_path / "direct")  # 40 and 100 as they were


def img2dataset_folder(folder: Path, bodies: dict[str, bytes], *, files: bool = False) -> None:
    """A folder as img2dataset 1.47 writes it: rows as they end, a failed one among them."""
    folder.mkdir()
    rows, samples = [], []
    for index, (url, body) in enumerate(bodies.items()):
        key = f"{index:09d}"
        width, height = Image.open(io.BytesIO(body)).size
        rows.append(
            {"url": url, "caption": "x", "key": key, "status": "success", "error_message": None, "width": width,
             "height": height, "original_width": width, "original_height": height, "exif": "{}",
             "sha256": hashlib.sha256(b"raw" + body).hexdigest()}
        )  # fmt: skip
        samples.append(tars.Sample(key, {"jpg": body, "json": json.dumps(rows[-1]).encode(), "txt": b"x"}))
    for message in ("<urlopen error [Errno 111] Connection refused>", "HTTP Error 410: Gone"):
        failed = {
            "url": f"http://127.0.0.1:9/{message[:4]}",
            "key": f"{len(rows):09d}",
            "error_message": message,
        }
        rows.append(dict.fromkeys(rows[0]) | failed | {"status": "failed_to_download"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    if files:
        (folder / "00000").mkdir()
        for sample in samples:
            (folder / f"00000/{sample.key}.jpg").write_bytes(sample.members["jpg"])
    else:
        tars.write_shard(str(folder / "00000.tar"), samples)


@pytest.mark.parametrize("files", [False, True])
def test_a_folder_of_img2dataset_is_taken_over(site: Site, tmp_path: Path, files: bool) -> None:
    kept, large = jpeg(picture("red", "cross", size=200)), jpeg(picture("blue", "cross", size=500))
    turned = io.BytesIO()
    picture("green", "cross", size=90).save(turned, "PNG")
    bodies = {site.url("/a"): kept, site.url("/b"): large, site.url("/c"): turned.getvalue()}
    img2dataset_folder(tmp_path / "theirs", bodies, files=files)
    pairs = pairs_of(
        tmp_path / "pairs",
        [*bodies, site.url("/img/1.jpg"), "http://127.0.0.1:9/%3Curl", "http://127.0.0.1:9/HTTP"],
    )
    done = fetch(pairs, tmp_path / "out", *FAST, "--reuse", str(tmp_path / "theirs"))
    assert asked_for(site) == {"/img/1.jpg"}
    assert done.dropped == {
        "connect_refused": 1,
        "http_4xx": 1,
    }  # only what is gone for good is not asked again
    rows = {r["url"]: r for r in rows_of(tmp_path / "out")}
    assert rows[site.url("/a")]["sha256"] == hashlib.sha256(b"raw" + kept).hexdigest()
    assert [rows[site.url(p)]["width"] for p in ("/a", "/b", "/c")] == [200, 256, 90]
    stored = {s.key: s.members["jpg"] for s in tars.read_shard(str(tmp_path / "out/00000.tar"))}
    assert stored[rows[site.url("/a")]["key"]] == kept  # not encoded again
    assert [r["urls"] for r in done.extra["reused"]] == [4]


def test_a_truncated_tar_gives_what_is_whole(site: Site, tmp_path: Path) -> None:
    bodies = {site.url(f"/img/{i}.jpg"): jpeg(picture("red", "cross", size=64, seed=i)) for i in range(5)}
    img2dataset_folder(tmp_path / "theirs", bodies)
    tar = tmp_path / "theirs/00000.tar"
    places = reuse.tar_places(str(tar))
    start, size = places["000000003"]
    tar.write_bytes(tar.read_bytes()[: start + size - 1])
    assert reuse.tar_places(str(tar)) == {k: places[k] for k in list(places)[:3]}
    done = fetch(
        pairs_of(tmp_path / "pairs", list(bodies)), tmp_path / "out", "--reuse", str(tmp_path / "theirs")
    )
    assert (asked_for(site), done.rows) == ({"/img/3.jpg", "/img/4.jpg"}, 5)


def row(*sizes: int | None) -> dict[str, Any]:
    return dict(zip(("width", "height", "original_width", "original_height"), sizes, strict=True))


@pytest.mark.parametrize(
    ("sizes", "mode", "expected"),
    [
        ((256, 192, 1024, 768), "keep_ratio_largest", True),  # as it would be stored
        ((256, 192, 1024, 768), "keep_ratio", False),  # too few pixels
        ((341, 256, 1024, 768), "keep_ratio", True),
        ((256, 256, 1024, 768), "keep_ratio", False),  # padded or cut
        ((256, 256, 1024, 768), "border", True),
        ((512, 384, 1024, 768), "border", True),  # more than enough
        ((512, 512, 1024, 768), "center_crop", False),  # cut or padded: nobody knows
        ((100, 80, 100, 80), "center_crop", True),
        ((100, 80, None, None), "keep_ratio", True),
    ],
)
def test_what_can_still_be_used(sizes: tuple[int | None, ...], mode: Any, expected: bool) -> None:
    assert reuse.fits(row(*sizes), FetchConfig(resize_mode=mode)) is expected


def test_every_setting_is_sorted() -> None:
    known = set(decisive(FetchConfig()))
    assert known > reuse._LAYOUT | reuse._DOWNLOAD
    assert {
        "image_size",
        "resize_mode",
        "encode_quality",
        "min_image_size",
    } <= known - reuse._LAYOUT - reuse._DOWNLOAD
    assert not reuse._FINAL_ANYWHERE & RETRYABLE
    assert ledger.status_of(None) == "success"


def test_what_cannot_be_reused_is_one_line(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = pairs_of(tmp_path / "pairs", [site.url("/img/1.jpg")])

    def line(path: str) -> str:
        out = ("--out", str(tmp_path / "out"), *FLAGS)
        assert main(["fetch", "--pairs", pairs, "--reuse", path, *out]) != 0
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "use --retry" in line(str(tmp_path / "other/../out"))
    assert "no such folder" in line(str(tmp_path / "nowhere"))
    assert "expected shards/1, found pairs/1" in line(pairs)
    (tmp_path / "empty").mkdir()
    assert "nothing to reuse" in line(str(tmp_path / "empty"))
    (tmp_path / "theirs").mkdir()
    pq.write_table(
        pa.table({"url": ["u"], "key": ["0"], "status": ["success"]}), tmp_path / "theirs/00000.parquet"
    )
    assert "webdataset and files" in line(str(tmp_path / "theirs"))
    pq.write_table(pa.table({"url": ["u"]}), tmp_path / "theirs/00000.parquet")
    tars.write_shard(str(tmp_path / "theirs/00000.tar"), [])
    assert "'key' is missing" in line(str(tmp_path / "theirs"))
