import csv
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from seqrt.runtime.bundle import open_bundle

Seqrt = Callable[..., Any]
SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs/profile.schema.json").read_text())
PERCENTILES = {"mean", "p50", "p90", "p95", "p99"}
# Contract: these keys may not be renamed.
ROW = {
    *("draft", "tree", "prompts", "new_tokens", "tokens_per_second", "ttft_ms", "itl_ms", "step_ms", "stages_ms"),
    *("tokens_per_step", "acceptance_by_depth", "speedup_vs_none", "gb_per_second"),
}
QUICK = ("--pp", 0, "--tg", 0)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("the quick fox\nthe lazy dog\na cat\n")
    return file


def check(document: Any) -> None:
    """Raises unless it is what the schema says, every key known."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)


def test_document(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    result = seqrt(
        *("profile", bundle, "--prompts", prompts, "--max-new-tokens", 12, "--repeat", 2, "--ignore-eos", "--json"),
        *("--no-adaptive", "--logit-bias", "5=-inf", "--pp", 40, "--tg", 8),
    )
    document = json.loads(result.out)
    assert result.code == 0
    check(document)
    assert (document["schema"], document["task"], document["complete"]) == (2, "generate", True)
    assert document["environment"].keys() >= {"seqrt", "onnxruntime", "python", "cpu", "cores", "threads", "commit"}
    assert document["settings"]["repeat"] == 2
    assert document["settings"]["max_new_tokens"] == 12
    assert "first prompt" in document["settings"]["warm_up"]
    assert document["stability"]["beats"] == 6
    assert document["stability"]["copy_gb_per_second"]["median"] > 0.1
    assert [test["test"] for test in document["tests"]] == ["pp40", "tg8"]
    plain, lookup, _, medusa = document["rows"]
    assert [row["draft"] for row in document["rows"]] == ["none", "lookup", "recycling", "medusa"]
    for row in document["rows"]:
        assert row.keys() >= ROW
        assert (row["prompts"], row["new_tokens"]) == (3, 3 * 2 * 12)
        assert row["stages_ms"].keys() == {
            *("tokenise", "prefill", "draft", "verify", "accept", "sample", "commit", "detokenise", "host")
        }
        for figures in (row["ttft_ms"], row["itl_ms"], row["step_ms"], *row["stages_ms"].values()):
            assert figures.keys() == PERCENTILES
            assert 0 <= figures["p50"] <= figures["p99"]
        assert row["stages_ms"]["verify"]["p50"] <= row["step_ms"]["p99"]
        seconds = row["seconds"]
        assert sum(seconds["stages"].values()) == pytest.approx(seconds["total"], rel=1e-3)
        assert 0 < seconds["engines"] < seconds["total"]
        steps = sum(row["stages_ms"][name]["mean"] for name in row["stages_ms"] if name in STEP_STAGES)
        assert steps == pytest.approx(row["step_ms"]["mean"], rel=1e-3)
        low, high = row["speedup_interval"]
        assert 0 < low <= high
        assert len(row["answers"]) == 6
        assert sum(each["steps"] for each in row["steps_by_rows"]) >= 6
    assert plain["speedup_vs_none"] == plain["break_even_tokens_per_step"] == 1.0
    assert plain["tokens_per_step"] == 1.0
    assert plain["acceptance_by_depth"] == []
    assert len(medusa["acceptance_by_depth"]) == 3  # as deep as the heads' own tree
    assert lookup["tokens_per_step"] >= 1.0
    ratio = medusa["tokens_per_second"] / plain["tokens_per_second"]
    assert medusa["speedup_vs_none"] == pytest.approx(ratio, rel=1e-3)
    assert medusa["answer_tokens_per_step"] <= medusa["tokens_per_step"]  # last steps decide more than is wanted
    for row in document["rows"]:
        assert all(answer["computed_tokens"] == answer["prompt_tokens"] > 3 for answer in row["answers"])
        assert row["same_text_as_none"] == 1.0


STEP_STAGES = ("draft", "verify", "accept", "sample", "commit", "detokenise")


def test_bytes_of_a_step(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    """All weights but the embedding, of which a row is read, and the caches with all their rows."""
    result = seqrt("profile", bundle, "--prompts", prompts, "--max-new-tokens", 6, "--json", "--draft", "none", *QUICK)
    (plain,) = json.loads(result.out)["rows"]
    decoder = next(graph for graph in open_bundle(bundle).manifest.graphs if graph.role == "decoder")
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 64 * 2 * 96 + 96 * 64
    assert decoder.weight_bytes == pytest.approx(4 * (2 * layer + 64 * 320), rel=0.01)
    cache_row = 4 * 2 * 2 * 32  # layers, key and value, all heads
    assert (plain["bytes_per_step"] - decoder.weight_bytes) % (64 * cache_row) == 0
    assert plain["bytes_per_step"] > decoder.weight_bytes
    assert plain["gb_per_second"] == pytest.approx(plain["bytes_per_step"] / plain["step_ms"]["mean"] / 1e6, abs=1e-3)


def test_table(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    result = seqrt(
        *("profile", bundle, "--prompts", prompts, "--max-new-tokens", 4, "--draft", "medusa", "--tree", "0 00"),
        *("--no-adaptive", "--pp", 32, "--tg", 0),
    )
    assert result.code == 0
    assert "warm-up" in result.err
    firsts = [line.split()[0] for line in result.out.splitlines() if line.strip()]
    assert firsts.count("none") == 3  # speed, stages, bandwidth
    assert firsts.count("medusa") >= 3
    assert "pp32" in firsts
    assert "drafts accepted, by depth" in result.out
    assert "MB of the host" in result.out
    assert result.out.startswith("tiny (ort-fp32, weights none) on ")
    tables = [line for line in result.out.splitlines()[1:] if line.startswith("  ")]
    assert max(map(len, (line.rstrip() for line in tables))) <= 80


def test_markdown(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    result = seqrt(
        *("profile", bundle, "--prompts", prompts, "--max-new-tokens", 4, "--draft", "none,lookup", *QUICK),
        *("--format", "markdown"),
    )
    table = [line for line in result.out.splitlines() if line.startswith("|")]
    assert table[0].startswith("| draft | tok/s |")
    assert set(table[1]) == set("| -:")
    assert [line.split(" | ")[0] for line in table[2:4]] == ["| none", "| lookup"]
    assert len({line.count("|") for line in table[:4]}) == 1
    first, *_, last = result.out.splitlines()
    assert "3 prompts x 4 new tokens" in first
    assert last.startswith("* ")


def test_csv(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    result = seqrt(
        *("profile", bundle, "--prompts", prompts, "--max-new-tokens", 4, "--draft", "none", "--draft", "medusa"),
        *("--pp", 32, "--tg", 0, "--format", "csv"),
    )
    plain, medusa, test = csv.DictReader(io.StringIO(result.out))
    assert [row["draft"] for row in (plain, medusa)] == ["none", "medusa"]
    assert float(plain["ttft_ms.p95"]) > 0
    assert float(plain["seconds.stages.prefill"]) > 0
    assert (test["test"], float(test["tokens_per_second"]) > 0) == ("pp32", True)


def test_timeline(seqrt: Seqrt, bundle: Path, prompts: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    result = seqrt(
        *("profile", bundle, "--prompts", prompts, "--max-new-tokens", 4, "--draft", "medusa", "--trace", file),
        *("--json", *QUICK),
    )
    document, trace = json.loads(result.out), json.loads(file.read_text())
    check(document)
    assert f"written to {file}" in result.err
    assert {row["graph"] for row in document["operators"]} >= {"decoder", "medusa"}
    requests = [event for event in trace["traceEvents"] if event["name"] == "request"]
    assert len(requests) == 3 * 2 + 2  # and one of each with operators
    assert any(event["args"].get("operator") == "Attention" for event in trace["traceEvents"])


@pytest.mark.parametrize(("number", "played"), [(31, 1), (38, 2)])
def test_an_interrupt_gives_a_partial_report(
    seqrt: Seqrt, bundle: Path, prompts: Path, interrupt_at: Callable[[int], None], number: int, played: int
) -> None:
    """In the second of three prompts, and in llama-bench's test before the third; an answer has five steps."""
    interrupt_at(number)
    result = seqrt(
        *("profile", bundle, "--prompts", prompts, "--max-new-tokens", 6, "--ignore-eos", "--draft", "none"),
        *("--json", "--pp", 0, "--tg", 6),
    )
    document = json.loads(result.out)
    assert result.code == 130
    check(document)
    assert not document["complete"]
    assert [row["prompts"] for row in document["rows"]] == [played]
    assert f"figures cover {played} of 3 conversations" in result.err
    assert result.err.splitlines()[-1] == "seqrt: error: interrupted"


def test_an_interrupt_before_anything_was_measured(
    seqrt: Seqrt, bundle: Path, prompts: Path, interrupt_at: Callable[[int], None]
) -> None:
    interrupt_at(2)
    result = seqrt("profile", bundle, "--prompts", prompts, "--json")
    assert (result.code, result.out) == (130, "")
    assert result.err.splitlines() == ["seqrt: nothing was measured yet", "seqrt: error: interrupted"]


def test_an_interrupt_among_operators_loses_nothing(
    seqrt: Seqrt, bundle: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("seqrt.runtime.profiling.operators.trace_operators", interrupted)
    file = tmp_path / "trace.json"
    result = seqrt(
        *("profile", bundle, "--prompts", prompts, "--max-new-tokens", 3, "--draft", "none", "--trace", file),
        *("--json", *QUICK),
    )
    document = json.loads(result.out)
    check(document)
    assert (result.code, document["complete"], "operators" in document) == (130, True, False)
    assert "there are no times of operators; all else was measured" in result.err
    assert json.loads(file.read_text())["traceEvents"]


def test_a_file_that_cannot_be_written_after_all(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    result = seqrt(
        *("profile", bundle, "--prompts", prompts, "--max-new-tokens", 3, "--draft", "none", "--json", *QUICK),
        *("--trace", "/proc/trace.json"),
    )
    check(json.loads(result.out))
    assert result.code == 2
    assert "seqrt: error: --trace /proc/trace.json cannot be written: " in result.err


def test_a_prompt_that_does_not_fit_loses_no_other(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    prompts.write_text(f"the quick fox\nthe lazy dog\n{'a cat ' * 300}\n")
    result = seqrt("profile", bundle, "--prompts", prompts, "--max-new-tokens", 3, "--draft", "none", "--json", *QUICK)
    document = json.loads(result.out)
    check(document)
    assert (result.code, document["complete"], document["rows"][0]["prompts"]) == (1, False, 2)
    assert "shorten it or export with a larger --capacity" in result.err


def test_tests_of_llama_bench_fit_the_capacity(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    result = seqrt("profile", bundle, "--prompts", prompts, "--max-new-tokens", 2, "--draft", "none", "--json")
    document = json.loads(result.out)
    assert [test["test"] for test in document["tests"]] == ["pp255", "tg128"]
    assert (document["settings"]["pp"], document["settings"]["tg"]) == (255, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repeat", 0), "--repeat is 0; give 1 or more"),
        (("--warmup", -1), "--warmup is -1; give 0 or more"),
        (("--pp", -5), "--pp is -5; give 0 or more"),
        (("--tg", 256), "--tg is 256, the bundle's capacity is 256; give 255 or less"),
        (("--draft", "none,,lookup"), "--draft 'none,,lookup' has an empty name; give names with commas between"),
        (("--format", "xml"), "--format is 'xml'; choose one of table, markdown, csv, or --json"),
        (("--html", "page.pdf"), "--html page.pdf is of no known format; give a name that ends in .html, .htm"),
        (("--trace", "no/where.json"), "--trace no/where.json is in no folder that exists; make no first"),
        (("--trace", "/"), "--trace / cannot be written; give a file in a folder that you may write to"),
        (("--draft", "medusa", "--tree", "00"), "--tree '00': path 00 of the tree has no parent"),
        (
            ("--draft", "lookup", "--tree", "0"),
            "--tree is of no use to --draft lookup; choose --draft recycling or medusa",
        ),
        (("--draft", "none,eagle"), "--draft eagle is not in this bundle; choose one of none, lookup, recycling,"),
    ],
)
def test_bad_values(seqrt: Seqrt, bundle: Path, arguments: tuple[object, ...], message: str) -> None:
    result = seqrt("profile", bundle, *arguments)
    assert result.code == 2
    assert message in result.error
    assert result.out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory; give a readable file"),
        (b"", "is empty; put a prompt on each line"),
        (b'{"prompt": "a"}\n{"prompt": "b\xff"}\n', "line 2 is not UTF-8 (byte 14, 0xff); save the file as UTF-8"),
        (
            b'{"prompt": "a"}\n{"prompt": \n',
            "line 2 is not JSON: Expecting value at column 12; write one object on each line",
        ),
        (b'{"prompt": "a"}\n\n{"text": "b"}\n', "line 3 must be an object with one of prompt, turns, messages"),
    ],
)
def test_bad_prompts(seqrt: Seqrt, bundle: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_bytes(content)
    result = seqrt("profile", bundle, "--prompts", file)
    assert result.code == 1
    assert message in result.error


def test_the_schema_notices_what_is_wrong(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    result = seqrt("profile", bundle, "--prompts", prompts, "--max-new-tokens", 3, "--draft", "none", "--json", *QUICK)
    document = json.loads(result.out)
    check(document)
    for path, value in (
        (("schema",), 1),
        (("rows", 0, "tokens_per_step"), 0.5),
        (("rows", 0, "unheard_of"), 1),
        (("environment", "unheard_of"), 1),
        (("rows", 0, "step_ms"), {"p50": 1}),
    ):
        broken = json.loads(result.out)
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            check(broken)
