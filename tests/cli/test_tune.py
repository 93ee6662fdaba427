import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Seqrt = Callable[..., Any]


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle: tuning writes into it."""
    return Path(shutil.copytree(bundle, tmp_path / "own"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("the quick fox\nthe lazy dog\n")
    return file


def arguments(own: Path, prompts: Path) -> tuple[object, ...]:
    return ("tune", own, "--prompts", prompts, "--max-new-tokens", 12, "--ignore-eos", "--threads", 1)


def test_a_tuned_bundle_is_used_where_it_was_tuned(seqrt: Seqrt, own: Path, prompts: Path) -> None:
    result = seqrt(*arguments(own, prompts), "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document == json.loads((own / "tune.json").read_text())
    assert [choice["draft"] for choice in document["choices"]] == ["lookup", "recycling", "medusa"]
    assert document["prompts"] == 2
    assert len(document["rows"]) == len(document["step_ms"])
    run = ("run", own, "--prompt", "the fox", "--draft", "medusa", "--max-new-tokens", 8)
    text = "seqrt: the loop starts from the costs of steps in tune.json"
    assert text in seqrt(*run, "--threads", 1).err
    medusa = document["choices"][2]
    said = seqrt(*run, "--threads", 1, "--no-adaptive").err
    assert f"--draft medusa as tuned: at most {medusa['rows']} rows a step" in said
    assert text not in said
    elsewhere = seqrt(*run, "--threads", 2)
    assert elsewhere.code == 0
    assert f"tune.json is ignored, it was made with threads 1, here 2; run: seqrt tune {own}" in elsewhere.err
    assert text not in elsewhere.err


def test_tuning_one_drafter_keeps_what_was_found_for_others(seqrt: Seqrt, own: Path, prompts: Path) -> None:
    for draft in ("lookup", "medusa"):
        assert seqrt(*arguments(own, prompts), "--draft", draft).code == 0
    kept = [choice["draft"] for choice in json.loads((own / "tune.json").read_text())["choices"]]
    assert kept == ["medusa", "lookup"]
    assert "tune.json" in seqrt("inspect", own).out


def test_tables_and_a_picture(seqrt: Seqrt, own: Path, prompts: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curves.svg"
    result = seqrt(*arguments(own, prompts), "--draft", "lookup", "--plot", picture)
    assert result.code == 0, result.err
    for text in ("rows", "step ms", "rank 0", "predicted tok/s", "measured tok/s", "fastest: --draft"):
        assert text in result.out
    assert "written to" in result.err
    assert "<svg" in picture.read_text()[:1000]


def test_bad_values_are_refused_before_anything_is_measured(seqrt: Seqrt, own: Path, tmp_path: Path) -> None:
    for wrong, message in (
        (("--budget-seconds", "nan"), "--budget-seconds is nan; give a number above 0"),
        (("--budget-seconds", 0), "--budget-seconds is 0.0; give a number above 0"),
        (("--tree", "0 00"), "--tree is '0 00'; give dynamic, or leave it out: finding trees is the aim"),
        (
            ("--plot", "curves.gif"),
            "--plot curves.gif is of no known format; give a name that ends in .svg, .png, .pdf",
        ),
        (("--plot", tmp_path / "no" / "a.svg"), "is in no folder that exists; make"),
        (("--draft", "none"), "--draft none leaves nothing to tune; name a drafter"),
        (("--draft", "eagle"), "--draft eagle is not in this bundle; choose one of none, lookup"),
        (("--draft", "corpus"), "--draft corpus needs a text to draft from; name one with --corpus FILE"),
    ):
        result = seqrt("tune", own, *wrong)
        assert result.code == 2, result.err
        assert message in result.error
        assert not (own / "tune.json").exists()
