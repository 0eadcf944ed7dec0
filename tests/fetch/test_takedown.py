from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.core import manifest, paths, tables, tars
from pipeline.core.fakes import jpeg, picture
from tests.fetch.hostile import Site
from tests.fetch.test_reuse import FAST, asked_for, ledger_of, shard_bytes
from tests.fetch.test_stage import FLAGS, fetch, pairs_of, rows_of

MORE = (*FAST, "--rows-per-shard", "5")


def drop(out: Path, flag: str, *lines: str, more: tuple[str, ...] = ()) -> manifest.Manifest:
    listed = out.parent / "list.txt"
    listed.write_text("\n".join(("# asked by post", *lines)) + "\n")
    assert main(["shards", "drop", "--shards", str(out), flag, str(listed), *more]) == 0
    return manifest.read(str(out))


@pytest.fixture
def made(site: Site, tmp_path: Path) -> Path:
    """20 pairs in 4 shards; one image has two captions, one URL fails, one moved to another host."""
    urls = [site.url(f"/img/{i}.jpg") for i in range(16)]
    urls += [site.url("/img/0.jpg#again"), site.url("/missing.jpg")]
    body = jpeg(picture("blue", "cross", size=64))
    urls.append(site.add("/moved", status=302, Location=site.url("/there", "127.0.0.2")))
    urls.append(site.url("/there", "127.0.0.2"))
    site.add("/there", body)
    fetch(pairs_of(tmp_path / "pairs", urls), tmp_path / "out", *MORE)
    asked_for(site)
    return tmp_path / "out"


def everything(out: Path) -> bytes:
    """All bytes of a folder, tables spelled out."""
    spelled = [str(pq.read_table(p).to_pylist()).encode() for p in sorted(out.rglob("*.parquet"))]
    return b"".join([*spelled, *(p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file())])


def assert_adds_up(out: Path) -> None:
    found, rows = manifest.read(str(out)), rows_of(out)
    kept = [r for r in rows if r["status"] == "success"]
    assert found.rows == len(kept)
    assert found.rows + sum(found.dropped.values()) == found.rows_in == len(rows)
    assert tables.count_dropped(str(out)) == found.dropped
    for shard in found.extra["shards"]:
        name = shard["name"]
        tar = (out / f"{name}.tar").read_bytes()
        stats = json.loads((out / f"{name}_stats.json").read_text())
        assert shard["sha256"] == stats["sha256"] == hashlib.sha256(tar).hexdigest()
        keys = [
            r["key"] for r in pq.read_table(out / f"{name}.parquet").to_pylist() if r["status"] == "success"
        ]
        assert [s.key for s in tars.read_shard(str(out / f"{name}.tar"))] == keys
    assert found.extra["urls"] == len(ledger_of(out))


def test_by_id_only_that_pair_goes(made: Path) -> None:
    before = shard_bytes(made)
    (one,) = (r for r in rows_of(made) if r["url"].endswith("#again"))
    done = drop(made, "--ids", one["pair_id"], "0" * 32, more=("--reason", "asked by the author"))
    assert_adds_up(made)
    (left,) = (r for r in rows_of(made) if r["pair_id"] == one["pair_id"])
    kept = {"key", "pair_id", "query_id", "status", "error_message", "url", "caption", "query_ids"}
    assert {name for name, value in left.items() if value is not None} == kept
    assert (left["status"], left["error_message"]) == ("removed", "takedown: asked by the author")
    assert (left["url"], left["caption"], left["query_ids"]) == ("", "", [])
    changed = {name[:5] for name, data in shard_bytes(made).items() if data != before[name]}
    assert changed == {f"{int(one['key']) // 10:05d}"}
    # The other caption of the image stays, and so does its address.
    assert any(url.endswith("/img/0.jpg") for url in ledger_of(made))
    assert one["caption"].encode() not in everything(made)
    (entry,) = done.extra["takedowns"]
    assert entry | {"date": ""} == {
        "reason": "asked by the author", "date": "", "by": ["ids"], "pairs": 1, "images": 1,
    }  # fmt: skip


def test_by_hash_every_copy_goes(made: Path) -> None:
    rows = rows_of(made)
    sha = next(r["sha256"] for r in rows if r["url"].endswith("/img/0.jpg"))
    done = drop(made, "--sha256", sha.upper())
    assert_adds_up(made)
    assert done.dropped == {"http_4xx": 1, "takedown": 2}
    assert sha.encode() not in everything(made)
    assert b"/img/0.jpg" not in everything(made)


def test_by_host_what_redirected_there_goes_too(site: Site, made: Path) -> None:
    done = drop(made, "--hosts", "127.0.0.2")
    assert_adds_up(made)
    assert done.dropped["takedown"] == 2
    assert b"127.0.0.2" not in everything(made)
    assert site.url("/moved").encode() not in everything(made)
    again = drop(made, "--hosts", "127.0.0.2")
    assert again.to_json() == done.to_json()  # nothing is left to do
    more = drop(made, "--hosts", "/img/3.jpg", more=("--reason", "other"))
    assert [t["pairs"] for t in more.extra["takedowns"]] == [2, 1]
    assert more.sha256 != done.sha256


class KilledError(Exception):
    pass


@pytest.mark.parametrize("step", ["ledger", "tar", "parquet", "stats", "manifest", "clean"])
def test_killed_it_is_unfinished_until_it_ends(
    site: Site, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lines = ("127.0.0.2", "/img/1.jpg")
    write_table, write_bytes, remove = tables.write_table, paths.write_bytes, paths.remove

    def table(path: str, *rest: Any) -> int:
        of_shard = "/ledger/" not in path and "/dropped/" not in path
        if step == "tar" and of_shard:
            raise KilledError
        written = write_table(path, *rest)
        if (step == "ledger" and "/ledger/" in path) or (step == "parquet" and of_shard):
            raise KilledError
        return written

    def data(path: str, body: bytes) -> None:
        if step in ("stats", "manifest") and path.endswith((f"_{step}.json", f"/{step}.json")):
            raise KilledError
        write_bytes(path, body)

    def gone(path: str) -> None:
        if step == "clean" and path.endswith("unfinished.json"):
            raise KilledError
        remove(path)

    monkeypatch.setattr(tables, "write_table", table)
    monkeypatch.setattr(paths, "write_bytes", data)
    monkeypatch.setattr(paths, "remove", gone)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(lines))
    arguments = ["shards", "drop", "--shards", str(made), "--quiet", "--debug"]
    with pytest.raises(KilledError):
        main([*arguments, "--hosts", str(listed)])
    monkeypatch.undo()
    if step != "clean":
        assert not (made / "manifest.json").exists()
        assert main(["fetch", "--pairs", str(tmp_path / "pairs"), "--out", str(made), *FLAGS, *MORE]) == 1
        assert "unfinished `wit shards drop`" in capsys.readouterr().err
        assert asked_for(site) == set()
    # Another request ends the first one too.
    other = tmp_path / "other.txt"
    other.write_text("/img/2.jpg")
    assert main([*arguments, "--hosts", str(other), "--reason", "second"]) == 0
    assert_adds_up(made)
    done = manifest.read(str(made))
    assert [(t["reason"], t["pairs"]) for t in done.extra["takedowns"]] == [("", 3), ("second", 1)]
    for word in (b"127.0.0.2", b"/img/1.jpg", b"/img/2.jpg"):
        assert word not in everything(made)
    assert not list(made.glob(".[a-z]*"))
    assert not (made / "unfinished.json").exists()


def test_what_was_taken_down_stays_down(site: Site, made: Path, tmp_path: Path) -> None:
    drop(made, "--hosts", "127.0.0.2", "/img/1.jpg")
    pairs = str(tmp_path / "pairs")
    fetch(pairs, made, *MORE)
    assert asked_for(site) == set()
    done = fetch(pairs, tmp_path / "new", *MORE, "--reuse", str(made))
    assert asked_for(site) == set()
    assert done.dropped == {"http_4xx": 1, "takedown": 3}
    assert shard_bytes(tmp_path / "new") == shard_bytes(made)
    assert b"127.0.0.2" not in everything(tmp_path / "new")


def test_wrong_lists_are_one_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(*arguments: str) -> tuple[int, str]:
        status = main(["shards", "drop", *arguments])
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return status, text

    where = ("--shards", str(made))
    assert line(*where)[0] == 2
    listed = tmp_path / "list.txt"
    listed.write_text("deadbeef\n")
    assert "not a SHA-256" in line(*where, "--sha256", str(listed))[1]
    assert "cannot open" in line(*where, "--ids", str(tmp_path / "nowhere"))[1]
    assert "expected shards/1" in line("--shards", str(tmp_path / "pairs"), "--ids", str(listed))[1]
    listed.write_text("127.0.0.1\n")  # all but the one that was asked of 127.0.0.2 at once
    before = shard_bytes(made)
    assert "19 pairs in 4 shards match" in line(*where, "--hosts", str(listed), "--dry-run")[1]
    assert shard_bytes(made) == before
