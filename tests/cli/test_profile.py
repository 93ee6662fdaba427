import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrt.runtime.bundle import open_bundle

Seqrt = Callable[..., Any]
ROW = {
    *("draft", "tree", "prompts", "new_tokens", "tokens_per_second", "ttft_ms", "itl_ms", "step_ms", "stages_ms"),
    *("tokens_per_step", "acceptance_by_depth", "speedup_vs_none", "gb_per_second"),
}
PERCENTILES = {"p50", "p90", "p95", "p99"}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("the quick fox\nthe lazy dog\n")
    return file


def test_document(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    result = seqrt(
        *("profile", bundle, "--prompts", prompts, "--max-new-tokens", 12, "--repeat", 2, "--ignore-eos", "--json"),
        *("--no-adaptive", "--logit-bias", "5=-inf"),
    )
    document = json.loads(result.out)
    assert result.code == 0
    assert document["schema"] == 1
    assert document["environment"].keys() >= {"seqrt", "onnxruntime", "python", "cpu", "cores", "threads"}
    assert document["settings"]["repeat"] == 2
    assert document["settings"]["max_new_tokens"] == 12
    assert "first prompt" in document["settings"]["warm_up"]
    plain, lookup, _, medusa = document["rows"]
    assert [row["draft"] for row in document["rows"]] == ["none", "lookup", "recycling", "medusa"]
    for row in document["rows"]:
        assert row.keys() >= ROW
        assert (row["prompts"], row["new_tokens"]) == (2, 2 * 2 * 12)
        assert row["stages_ms"].keys() == {"draft", "verify", "accept", "commit", "host"}
        for figures in (row["ttft_ms"], row["itl_ms"], row["step_ms"], *row["stages_ms"].values()):
            assert figures.keys() == PERCENTILES
            assert 0 <= figures["p50"] <= figures["p99"]
        assert row["stages_ms"]["verify"]["p50"] <= row["step_ms"]["p99"]
    assert plain["speedup_vs_none"] == 1.0
    assert plain["tokens_per_step"] == 1.0
    assert plain["acceptance_by_depth"] == []
    assert len(medusa["acceptance_by_depth"]) == 3  # as deep as the heads' own tree
    assert lookup["tokens_per_step"] >= 1.0
    decoder = next(graph for graph in open_bundle(bundle).manifest.graphs if graph.role == "decoder")
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 64 * 2 * 96 + 96 * 64
    assert decoder.weight_bytes == pytest.approx(4 * (2 * layer + 64 * 320), rel=0.01)  # of the embedding, a row
    assert plain["gb_per_second"] == pytest.approx(decoder.weight_bytes / plain["step_ms"]["p50"] / 1e6, abs=1e-3)
    ratio = medusa["tokens_per_second"] / plain["tokens_per_second"]
    assert medusa["speedup_vs_none"] == pytest.approx(ratio, rel=1e-3)


def test_table(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    result = seqrt(
        *("profile", bundle, "--prompts", prompts, "--max-new-tokens", 4, "--draft", "medusa", "--tree", "0 00"),
        "--no-adaptive",
    )
    assert result.code == 0
    assert "warm-up" in result.err
    assert [line.split()[0] for line in result.out.splitlines() if line.strip()][-3:-1] == ["none", "medusa"]
    assert "medusa: acceptance by depth" in result.out


def test_bad_values(seqrt: Seqrt, bundle: Path) -> None:
    result = seqrt("profile", bundle, "--repeat", 0)
    assert (result.code, result.error) == (2, "--repeat is 0; give 1 or more")
    result = seqrt("profile", bundle, "--draft", "medusa", "--tree", "00")
    assert result.code == 2
    assert "--tree '00': path 00 of the tree has no parent" in result.error
    result = seqrt("profile", bundle, "--draft", "lookup", "--tree", "0")
    text = "--tree is of no use to --draft lookup; choose --draft recycling or medusa"
    assert (result.code, text in result.error) == (2, True)
