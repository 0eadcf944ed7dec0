"""The review without a browser: labels on disk, sessions, and the HTTP server."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dedup.config import ReportConfig
from dedup.report import run as run_report
from dedup.review import labels
from dedup.review.labels import Label, LabelFile
from dedup.review.main import beside, open_session
from dedup.review.server import ReviewServer
from dedup.review.session import Session
from pipeline.cli import main
from pipeline.core.contracts import NEIGHBOURS
from pipeline.core.errors import InputError
from pipeline.core.fakes import COLOURS, SHAPES, fake_shards, finished_folder, picture
from pipeline.core.stage import RunOptions
from pipeline.core.tables import read_files

EVIL = "<img src=x onerror=alert(1)>"


def world(root: Path, *, copies: int = 12, others: int = 28) -> dict[str, str]:
    """An evaluation folder, shards, and a search that found the first pictures' copies."""
    shards = fake_shards(str(root / "train"), 40, per_shard=15, size=48)
    files = [str(p) for p in sorted((root / "train").glob("*.parquet"))]
    ids = read_files(files, columns=["pair_id"]).column("pair_id").to_pylist()
    rows = []
    for i in range(copies + others):
        place = root / "eval" / f"set-{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        picture(COLOURS[i % 8], SHAPES[i % 4], size=40, seed=i).save(place / f"{i:02d}.png")
        similarity = 0.99 - 0.004 * i if i < copies else 0.9 - 0.015 * (i - copies)
        rows.append(
            {"eval_dataset": "eval", "eval_id": f"set-{i % 2}/{i:02d}.png", "rank": 0, "pair_id": ids[i % 40],
             "similarity": similarity}
        )  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=NEIGHBOURS.schema)
    found = finished_folder(str(root / "neighbours"), NEIGHBOURS, table, threshold=0.93)
    return {"neighbours": found, "train": shards, "eval": str(root / "eval")}


@pytest.fixture
def session(tmp_path: Path) -> Session:
    made = world(tmp_path)
    return open_session(
        made["neighbours"],
        str(tmp_path / "review"),
        train=[made["train"]],
        evals=[made["eval"]],
        reviewer="Ada",
    )


@pytest.fixture
def server(session: Session) -> Iterator[ReviewServer]:
    with ReviewServer(session, 0) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def label(number: int, answer: str = "same") -> Label:
    return Label(dataset="d", eval_id=f"e{number}", pair_id=f"p{number}", similarity=0.5, answer=answer)


def test_labels_survive_a_restart_an_undo_and_a_torn_line(tmp_path: Path) -> None:
    store = LabelFile(str(tmp_path), "Ada")
    for i in range(4):
        store.add(label(i, labels.ANSWERS[i % 3]))
    assert store.undo("d") == label(3, "same")
    assert store.undo("other") is None
    path = tmp_path / labels.LABELS
    with open(path, "ab") as file:
        file.write(b'{"answer": "sa')  # the machine went down here
    again = LabelFile(str(tmp_path), "Bob")
    assert again.labels == store.labels == [label(i, labels.ANSWERS[i]) for i in range(3)]
    again.add(label(9))
    assert LabelFile(str(tmp_path), "Eve").labels == [*store.labels, label(9)]
    lines = path.read_bytes().splitlines()
    assert len(lines) == 7  # nothing was taken away
    assert {json.loads(line)["by"] for line in lines if line.endswith(b"}")} == {"Ada", "Bob"}


@pytest.mark.parametrize(
    "line", ['{"answer": "maybe"}', "[]", "label", '{"answer": "undo", "dataset": "d", "eval_id": "x"}']
)
def test_a_line_that_is_no_label_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / labels.LABELS).write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"labels.jsonl, line 1: not a label"):
        LabelFile(str(tmp_path), "Ada")


def test_a_session_asks_learns_and_goes_on(session: Session, tmp_path: Path) -> None:
    seen = []
    for _ in range(25):
        pair = session.state("eval")["pair"]
        seen.append(pair["index"])
        session.answer("eval", pair["index"], "same" if pair["index"] < 12 else "different")
    assert len(set(seen)) == 25
    before = session.state("eval")
    assert before["best"]["found"] == 12
    assert before["best"]["precision"][0] > 0.98
    assert before["counts"]["same"] + before["counts"]["different"] == 25
    again = open_session(
        str(tmp_path / "neighbours"), str(tmp_path / "review"), train=[str(tmp_path / "train")],
        evals=[str(tmp_path / "eval")],
    )  # fmt: skip
    assert again.state("eval") == before
    assert again.undo("eval") == seen[-1]
    assert again.state("eval")["pair"]["index"] == seen[-1]


def test_skipped_pairs_are_not_asked_about_again(session: Session) -> None:
    seen = set()
    while (pair := session.state("eval")["pair"]) is not None:
        assert pair["index"] not in seen
        seen.add(pair["index"])
        session.answer("eval", pair["index"], "skip")
    assert len(seen) == 40
    state = session.state("eval")
    assert (state["counts"]["skip"], state["ahead"], state["datasets"][0]["labels"]) == (40, [], 0)


def test_what_comes_next_is_told_ahead(session: Session) -> None:
    for turn in range(8):
        state = session.state("eval")
        session.answer("eval", state["pair"]["index"], "same" if turn % 2 else "different")
        assert session.state("eval")["pair"]["index"] in {one["pair"] for one in state["ahead"]}


def test_pictures_and_facts(session: Session) -> None:
    pair = session.state("eval")["pair"]
    facts = dict(pair["train"]["facts"])
    assert facts["caption"].startswith("a ")
    assert "48 × 48 pixels" in facts["file"]
    assert dict(pair["eval"]["facts"])["file"].startswith("PNG, 40 × 40")
    assert session.problems == []


def test_pictures_that_are_gone_leave_the_rest_working(tmp_path: Path) -> None:
    made = world(tmp_path)
    os.remove(tmp_path / "train" / "00001.tar")
    (tmp_path / "train" / "00001.tar").write_bytes(b"")
    session = open_session(made["neighbours"], str(tmp_path / "r"), train=[made["train"]])
    assert any("pass --eval" in problem for problem in session.problems)
    while (pair := session.state("eval")["pair"]) is not None:
        assert pair["eval"]["problem"] == "not at hand"
        session.answer("eval", pair["index"], "skip")
    told = [session.picture("train", "eval", i) for i in range(40)]
    assert sum(isinstance(one, str) for one in told) == 15


def test_a_saved_threshold_is_what_the_report_reads(session: Session, tmp_path: Path) -> None:
    for _ in range(20):
        index = session.state("eval")["pair"]["index"]
        session.answer("eval", index, "same" if index < 12 else "different")
    best = session.state("eval")["best"]["threshold"]
    session.save("eval", best)
    folder = tmp_path / "review"
    assert json.loads((folder / "thresholds.json").read_text()) == {"eval": best}
    review = json.loads((folder / "reviews.json").read_text())["eval"]
    assert (review["by"], review["threshold"], review["same"] + review["different"]) == ("Ada", best, 20)
    assert review["found"] == 12
    config = ReportConfig(neighbours=str(tmp_path / "neighbours"), thresholds=str(folder / "thresholds.json"))
    run_report(config, str(tmp_path / "out"), RunOptions(quiet=True))
    one = json.loads((tmp_path / "out" / "overlap.json").read_text())["datasets"]["eval"]
    assert (one["n_overlap"], one["reviewed"]) == (12, True)


def request(
    server: ReviewServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=120)
    sent = {"Content-Type": "application/json"} if body is not None else {}
    sent.update({name.replace("_", "-"): value for name, value in headers.items()})
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
    connection.request(method, path, data, sent)
    answer = connection.getresponse()
    made = (answer.status, dict(answer.getheaders()), answer.read())
    connection.close()
    return made


def test_the_server_labels_undoes_and_saves(server: ReviewServer, tmp_path: Path) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, _, body = request(server, "GET", "/state")
    pair = json.loads(body)["pair"]["index"]
    asked = {"dataset": "eval", "pair": pair, "answer": "same"}
    status, _, body = request(server, "POST", "/label", asked)
    assert (status, json.loads(body)["counts"]["same"]) == (200, 1)
    status, _, body = request(server, "POST", "/label", asked)
    assert (status, json.loads(body)["problem"]) == (400, "cannot do that: this pair has its answer already")
    status, _, body = request(server, "POST", "/undo", {"dataset": "eval"})
    assert (status, json.loads(body)["counts"]["same"]) == (200, 0)
    status, _, body = request(server, "POST", "/threshold", {"dataset": "eval", "threshold": 0.9})
    assert (status, json.loads(body)["datasets"][0]["saved"]) == (200, 0.9)
    status, headers, body = request(server, "GET", f"/picture?side=eval&pair={pair}&dataset=eval")
    assert (status, headers["Content-Type"], body[:4]) == (200, "image/png", b"\x89PNG")


def test_the_page_loads_nothing_from_elsewhere(server: ReviewServer) -> None:
    for path in ("/", "/page.js", "/page.css"):
        status, headers, body = request(server, "GET", path)
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert b"innerHTML" not in body
        assert b"//" not in body.replace(b"http://www.w3.org/2000/svg", b"").replace(b"// ", b"")


STRANGERS: list[tuple[dict[str, str], int]] = [
    ({"Host": "evil.test"}, 403),
    ({"Host": "evil.test:80", "Origin": "http://evil.test:80"}, 403),
    ({"Origin": "http://evil.test"}, 403),
    ({"Origin": "null"}, 403),
    ({"Content_Type": "text/plain"}, 415),
    ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
]


@pytest.mark.parametrize(("headers", "expected"), STRANGERS)
def test_other_sites_change_nothing(
    server: ReviewServer, headers: dict[str, str], expected: int, tmp_path: Path
) -> None:
    asked = {"dataset": "eval", "pair": 0, "answer": "same"}
    status, _, _ = request(server, "POST", "/label", asked, **headers)
    assert status == expected
    assert not server.session.store.labels


def test_other_names_read_nothing(server: ReviewServer) -> None:
    for path in ("/", "/state", "/picture?side=eval&pair=0"):
        status, _, body = request(server, "GET", path, Host="evil.test")
        assert status == 403
        assert b"datasets" not in body


WRONG = [
    ("GET", "/etc/passwd", None, 404),
    ("GET", "/../labels.py", None, 404),
    ("GET", "/state?dataset=nobody", None, 404),
    ("GET", "/picture?side=left&pair=0", None, 404),
    ("GET", "/picture?side=eval&pair=99999", None, 404),
    ("GET", "/picture?side=eval&pair=x", None, 404),
    ("POST", "/label", {"dataset": "eval", "pair": 0, "answer": "perhaps"}, 400),
    ("POST", "/label", {"dataset": "eval", "pair": -1, "answer": "same"}, 400),
    ("POST", "/label", {"dataset": "eval", "pair": "0", "answer": "same"}, 400),
    ("POST", "/label", ["eval"], 400),
    ("POST", "/label", b"{", 400),
    ("POST", "/threshold", {"dataset": "eval", "threshold": 7}, 400),
    ("POST", "/threshold", {"dataset": "eval", "threshold": "NaN"}, 400),
    ("POST", "/nowhere", {"dataset": "eval"}, 404),
    ("POST", "/label", b" " * 20_000, 413),
]


@pytest.mark.parametrize(("method", "path", "body", "expected"), WRONG)
def test_wrong_requests_are_answered_with_a_line(
    server: ReviewServer, method: str, path: str, body: Any, expected: int
) -> None:
    status, _, told = request(server, method, path, body)
    assert status == expected
    assert json.loads(told)["problem"]
    assert not server.session.store.labels
    assert request(server, "GET", "/state")[0] == 200


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = world(tmp_path)
    assert main(["dedup", "review"]) == 2
    assert "pass --neighbours" in capsys.readouterr().err
    assert main(["dedup", "review", "--neighbours", made["neighbours"], "--out", made["train"]]) == 2
    assert "holds a stage's result" in capsys.readouterr().err
    assert main(["dedup", "review", "--neighbours", made["neighbours"], "--precision", "2"]) == 2
    assert "--precision" in capsys.readouterr().err
    assert main(["dedup", "review", "--neighbours", made["neighbours"], "--dry-run"]) == 0
    assert beside(made["neighbours"]) == str(tmp_path / "review")
    assert "would read" in capsys.readouterr().out


def test_a_taken_port_is_one_line(
    server: ReviewServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--neighbours", str(tmp_path / "neighbours"), "--port", str(server.server_address[1])]
    assert main(["dedup", "review", *words]) == 2
    assert "pass another --port" in capsys.readouterr().err


def test_the_command_serves_and_ends_at_control_c(tmp_path: Path) -> None:
    made = world(tmp_path)
    # Where the tests run in the background, Control-C is ignored, and so it would be in what they start.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "dedup", "review", "--neighbours", made["neighbours"], "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found is not None, line
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=120)
        connection.request("GET", "/")
        assert b"Near-duplicate review" in connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "review: 0 labels, 0 of 1 thresholds set" in told
    assert "pass --train PATH" in told
    assert "Traceback" not in told
