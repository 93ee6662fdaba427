import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

Seqrt = Callable[..., Any]
SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs/profile.schema.json").read_text())


def profiled(seqrt: Seqrt, bundle: Path, *arguments: object) -> Any:
    result = seqrt("profile", bundle, *arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_document(seqrt: Seqrt, recognizer_bundle: Path, word_images: list[Path]) -> None:
    document = profiled(
        seqrt, recognizer_bundle, "--images", word_images[0].parent, "--batch", "1,4", "--repeat", 3, "--threads", 1
    )
    jsonschema.validate(document, SCHEMA)
    assert (document["task"], document["complete"], document["tests"]) == ("ocr", True, [])
    assert document["settings"]["images"] == len(word_images)
    assert document["stability"]["beats"] == 3
    one, four = document["rows"]
    assert [row["batch"] for row in document["rows"]] == [1, 4]
    for row in (one, four):
        stages, seconds = row["stages_ms"], row["seconds"]
        assert stages.keys() == {"preprocess", "engine", "decode", "host"}
        assert sum(seconds["stages"].values()) == pytest.approx(seconds["total"], abs=1e-4)
        assert seconds["engines"] + seconds["host"] == pytest.approx(seconds["total"], abs=1e-4)
        assert seconds["engines"] <= seconds["stages"]["engine"]
        assert row["runs_per_batch"] == 1
        assert [one["repeat"] for one in row["passes"]] == [0, 1, 2]
        assert len({one["text"] for one in row["passes"]}) == 1
        whole = sum(one["seconds"] for one in row["passes"])
        assert row["images"] == 18  # nine images twice: four full batches
        assert row["images_per_second"] == pytest.approx(3 * 18 / whole, rel=1e-3)
        assert [len(one["batch_seconds"]) for one in row["passes"]] == [-(-18 // row["batch"])] * 3
        assert all(sum(one["batch_seconds"]) <= one["seconds"] for one in row["passes"])
    assert one["passes"][0]["text"] == four["passes"][0]["text"]
    assert one["batch_ms"]["p50"] < four["batch_ms"]["p50"]


def test_words_of_our_own_are_read(seqrt: Seqrt, recognizer_bundle: Path) -> None:
    document = profiled(seqrt, recognizer_bundle)
    assert [row["batch"] for row in document["rows"]] == [1, 16]
    assert document["settings"]["images"] == 12


def test_a_character_a_step(seqrt: Seqrt, speller_bundle: Path, word_images: list[Path]) -> None:
    document = profiled(seqrt, speller_bundle, "--images", word_images[0], "--batch", 1)
    jsonschema.validate(document, SCHEMA)
    (row,) = document["rows"]
    assert row["runs_per_batch"] == 1 + min(row["characters"] + 1, 26)


def test_tables(seqrt: Seqrt, recognizer_bundle: Path, word_images: list[Path]) -> None:
    call = ("profile", recognizer_bundle, "--images", word_images[0], "--batch", "1,2")
    table = seqrt(*call).out
    assert "images/s" in table
    assert "preprocess" in table
    markdown = seqrt(*call, "--format", "markdown").out
    assert "| batch | images/s | mean | p50 | p90 | p95 | p99 |" in markdown
    rows = list(csv.DictReader(io.StringIO(seqrt(*call, "--format", "csv").out)))
    assert [row["batch"] for row in rows] == ["1", "2"]
    assert float(rows[0]["stages_ms.engine.mean"]) > 0


def test_two_profiles_are_compared(seqrt: Seqrt, recognizer_bundle: Path, bundle: Path, tmp_path: Path) -> None:
    files = []
    for number in range(2):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(profiled(seqrt, recognizer_bundle, "--batch", "1,2", "--repeat", 2)))
    result = seqrt("compare", *files, "--json")
    figures = json.loads(result.out)["figures"]
    assert [(one["draft"], one["metric"]) for one in figures] == [
        ("batch 1", "images_per_second"),
        ("batch 2", "images_per_second"),
    ]
    slower = json.loads(files[0].read_text())  # in the same state of the machine
    for row in slower["rows"]:
        for one in row["passes"]:
            one["batch_seconds"] = [1.5 * seconds for seconds in one["batch_seconds"]]
    files[1].write_text(json.dumps(slower))
    assert seqrt("compare", *files, "--fail-if-slower", "5%").code == 3
    slower["rows"].pop()
    files[1].write_text(json.dumps(slower))
    assert "batch 2 is in the first only" in seqrt("compare", *files).error


def test_mistakes_are_one_line(seqrt: Seqrt, recognizer_bundle: Path, bundle: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    for arguments, code, message in (
        ((recognizer_bundle, "--pp", 5), 2, "--pp is of no use to a recogniser; leave it out"),
        ((recognizer_bundle, "--html", "a.html"), 2, "--html is of no use to a recogniser"),
        ((recognizer_bundle, "--temperature", 1), 2, "--temperature is of no use to a recogniser"),
        ((bundle, "--images", bad), 2, "--images is of no use to a language model"),
        ((recognizer_bundle, "--batch", "1;2"), 2, "--batch is '1;2'; give sizes with commas"),
        ((recognizer_bundle, "--batch", "0"), 2, "--batch is 0; give 1 to 64"),
        ((recognizer_bundle, "--images", bad), 1, "bad.png is no image that Pillow knows"),
    ):
        result = seqrt("profile", *arguments)
        assert (result.code, message in result.error) == (code, True), result.err
