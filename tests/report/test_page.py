"""The page and the data card: whole, safe, self-contained, and the same every time."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.core import fakes
from pipeline.core.contracts import CANDIDATES, SHARDS
from pipeline.report import write_report
from pipeline.report.page import SECTIONS

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects elements and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    return Path(write_report(str(run_folder))).read_text("utf-8")


def test_the_page_is_well_formed_and_small(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert len(page.encode()) < 3_000_000
    anchors = {values.get("id") for tag, values in parsed.elements if tag == "section"}
    assert anchors == {anchor for anchor, *_ in SECTIONS}
    assert "could not be read" not in page
    assert "ot part of this run" not in page


def test_nothing_is_loaded_and_nothing_runs(page: str) -> None:
    tags = Page(page).elements
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in tags}
    for tag, values in tags:
        assert not [name for name in values if name.startswith("on")], tag
        assert (values.get("src") or "data:image/webp;").startswith("data:image/webp;")
        assert re.fullmatch(r"#[a-z-]+|overlaps/overlap\.html", values.get("href") or "#a")
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_hostile_captions_are_shown_as_text(page: str) -> None:
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<b>links</b>" not in page
    assert "<i>24</i>" not in page
    assert "\u202e" not in page
    assert "xxxx" * 100 not in page
    assert "Page views are made from &lt;b&gt;links&lt;/b&gt;. Only a small world." in page
    assert '<q><bdi dir="auto">de: &lt;b&gt;hund&lt;/b&gt;</bdi></q>' in page


def test_the_page_tells_the_run_s_figures(page: str) -> None:
    told = " ".join("".join(Page(page).texts).split())
    assert "210 image–text pairs from the web" in told
    assert "720 candidates → 240 pairs selected" in told
    assert "no query390" in told
    assert "37 queries reached the cap of 200" in told
    assert "25% right at the first guess, 8 times what guessing gives (3.12%)" in told
    assert "contamination is worth +5.00 points" in told
    assert "not so when corrected for the number of data sets" in told


def test_the_model_has_a_card(page: str, run_folder: Path, tmp_path: Path) -> None:
    assert "Model card: <code>MODEL_CARD.md</code>" in page
    card = (run_folder / "MODEL_CARD.md").read_text("utf-8")
    assert "The shards offered 210 image-text pairs, of which 210 could be used." in card
    assert "| noto | zero-shot | 80 | top1 | 25% | 16% – 36% | 3.12% |" in card
    assert "| noto | 30 of 80 (37.5%) | 25.00% | 20.00% | 40.00% | +5.00 | no | no |" in card
    # A damaged part is missing from the card, as it is on the page.
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "scores" / "noto" / "scores.json").write_text("{")
    write_report(str(tmp_path / "run"))
    assert "No scores were given" in (tmp_path / "run" / "MODEL_CARD.md").read_text("utf-8")


def test_one_damaged_score_leaves_the_others_in_the_card(run_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    shutil.copytree(run / "scores" / "noto", run / "scores" / "other")
    (run / "scores" / "other" / "scores.json").write_text("{")
    plain = {"dataset": "plain", "task": "t", "n": 3, "metrics": {"top1": 0.5, "odd": None}, "chance": 0.1}
    shutil.copytree(run / "scores" / "noto", run / "scores" / "plain")
    (run / "scores" / "plain" / "scores.json").write_text(json.dumps(plain))
    rows = [{"dataset": "plain", "n_all": 3, "n_overlap": 1}]
    (run / "overlaps" / "overlap.json").write_text(json.dumps(rows))
    write_report(str(run))
    card = (run / "MODEL_CARD.md").read_text("utf-8")
    assert "| noto | zero-shot | 80 | top1 | 25% |" in card
    assert "| plain | t | 3 | top1 | 50% | – | 10% |" in card
    assert "| plain | 1 of 3 (0%) |" in card


def test_the_same_folder_gives_the_same_bytes(run_folder: Path) -> None:
    def written() -> list[bytes]:
        write_report(str(run_folder))
        return [(run_folder / name).read_bytes() for name in ("report.html", "croissant.json")]

    assert written() == written()


def test_a_run_with_one_part_says_what_is_missing(tmp_path: Path) -> None:
    fakes.fake_folder(str(tmp_path / "candidates"), CANDIDATES, 5)
    page = Path(write_report(str(tmp_path))).read_text("utf-8")
    assert page.count("Not part of this run") == len(SECTIONS) - 2
    assert "5 candidates from the web" in page


def test_a_damaged_part_spoils_only_its_own_section(run_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (run / "pairs" / "part-00000.parquet").write_bytes(b"PAR1 nothing PAR1")
    (run / "checkpoint" / "metrics.jsonl").write_text("{")
    (run / "overlaps" / "overlap.json").write_text("[1]")
    (run / "shards" / "manifest.json").unlink()
    page = Path(write_report(str(run))).read_text("utf-8")
    Page(page)
    assert page.count("This part could not be read.") == 4
    assert "not a readable Parquet file" in page
    assert "line 1 is not a row of metrics" in page
    assert "the folder is unfinished" in page
    assert "25% right at the first guess" in page.replace("<b>", "").replace("</b>", "")
    card = json.loads((run / "croissant.json").read_text())
    assert card["distribution"] == card["recordSet"] == []


def test_the_check_against_the_truth_is_told(run_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    check = {"planted": 42, "leaked": 40, "found": 38, "reported": 40, "recall": 0.95, "precision": 0.95}
    (run / "leak-check.json").write_text(json.dumps(check))
    page = Path(write_report(str(run))).read_text("utf-8")
    assert "<b>38 of the 40</b> leaks in the training set found (95%); 42 were planted" in page
    assert "Precision 95%." in page


def test_the_card_describes_the_shards(run_folder: Path) -> None:
    write_report(str(run_folder))
    card = json.loads((run_folder / "croissant.json").read_text("utf-8"))
    assert card["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert card["license"].startswith("Unknown")
    pairs, images = card["recordSet"]
    assert [f["source"]["extract"]["column"] for f in pairs["field"]] == SHARDS.schema.names
    assert {f["name"] for f in pairs["field"] if f.get("repeated")} == {"query_ids"}
    tar = next(f for f in card["distribution"] if f["@id"] == "00000.tar")
    assert tar["sha256"] == hashlib.sha256((run_folder / tar["contentUrl"]).read_bytes()).hexdigest()
    sources = {f["source"]["fileSet"]["@id"] for r in (pairs, images) for f in r["field"]}
    assert sources <= {f["@id"] for f in card["distribution"]}
    made = json.loads((run_folder / "shards" / "manifest.json").read_text())
    assert card["datePublished"] == made["finished_at"]


def test_many_bytes_are_not_hashed(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.croissant.MAX_HASHED_BYTES", 10)
    write_report(str(run_folder))
    card = json.loads((run_folder / "croissant.json").read_text("utf-8"))
    assert [f["@id"] for f in card["distribution"]] == ["shard-tables", "shard-tars"]
    assert [r["@id"] for r in card["recordSet"]] == ["pairs"]


def test_the_command(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run_folder)]) == 0
    assert capsys.readouterr().out == f"report: {run_folder}/report.html\n"
    assert cli.main(["report", str(run_folder), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.fake_folder(str(tmp_path / "candidates"), CANDIDATES, 5)
    assert cli.main(["report", str(tmp_path), "--dry-run"]) == 0
    assert "candidates  (5 rows)" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["candidates"]


@pytest.mark.parametrize(
    ("made", "told"),
    [("nothing", "no such folder"), ("empty", "holds nothing of a run"), ("file", "no such folder")],
)
def test_bad_folders_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: str, told: str
) -> None:
    folder = tmp_path / "run"
    if made == "empty":
        folder.mkdir()
    elif made == "file":
        folder.write_text("x")
    assert cli.main(["report", str(folder)]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert "wit run" in error
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.fake_folder(str(tmp_path / "candidates"), CANDIDATES, 5)
    (tmp_path / "report.html").mkdir()
    assert cli.main(["report", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "report.html" in error


@pytest.mark.parametrize("flags", [[], ["a", "b"], ["a", "--unknown"]])
def test_wrong_usage(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("wit")
    assert error.count("\n") == 1


def test_beam_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path), "--", "--runner=DirectRunner"]) == 2
    assert "takes no Beam options" in capsys.readouterr().err


def test_the_command_s_module_is_light() -> None:
    code = (
        "import sys, pipeline.report; print(sorted({'pyarrow', 'PIL', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_overlap": 0}, "no evaluation picture was found in the training set"),
        (
            {"acc_all": None, "acc_clean": None, "acc_overlap": None},
            "30 of 80 pictures were found in the training set.",
        ),
        ({"all_minus_clean": None, "acc_clean": None}, "nothing clean is left"),
        ({"significant": False, "p_value": 0.4}, "not better than Clean beyond chance (p = 0.4)"),
        ({"significant_bonferroni": True}, "also after correction"),
    ],
)
def test_overlap_in_plain_words(
    run_folder: Path, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    file = run / "overlaps" / "overlap.json"
    report = json.loads(file.read_text())
    report["datasets"]["noto"].update(change)
    file.write_text(json.dumps(report))
    page = Path(write_report(str(run))).read_text("utf-8")
    assert told in page.replace('<bdi dir="auto">', "")
    assert "could not be read" not in page
