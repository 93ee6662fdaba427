"""Lexical units on the command line: export with an adapter, both modes, what each mistake says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

ANSWER = ("--prompt", "hello", "--max-new-tokens", 12)


@pytest.fixture(scope="session")
def adapter(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA as PEFT writes it, with random values, on one projection."""
    folder, rng = tmp_path_factory.mktemp("adapter"), np.random.default_rng(0)
    weights = load_file(source / "model.safetensors")
    norm = weights["model.norm.weight"].astype(np.float32)
    pad = rng.standard_normal(len(norm)).astype(np.float32)
    save_file({"pad_embedding": pad, "base_norm": norm}, folder / "lud.safetensors")
    (folder / "lud.json").write_text(json.dumps({"base_model": "tiny", "lookahead": 3, "beta": 0.7}))
    out, into = weights["model.layers.0.self_attn.q_proj.weight"].shape
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    parts = {key.format("A"): (2, into), key.format("B"): (out, 2)}
    lora = {name: 0.1 * rng.standard_normal(shape).astype(np.float32) for name, shape in parts.items()}
    save_file(lora, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return folder


@pytest.fixture(scope="session")
def units(source: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from seqrt.cli import main

    bundle = tmp_path_factory.mktemp("units") / "bundle"
    assert main(["export", str(source), str(bundle), "--lud", str(adapter), "--quantize", "int8", "--no-quality"]) == 0
    return bundle


def test_the_bundle_says_what_it_learnt(seqrt: Any, units: Path) -> None:
    document = json.loads(seqrt("inspect", units, "--json").out)
    vocab_size = document["model"]["vocab_size"]
    assert document["units"] == {"pad_token_id": vocab_size, "lookahead": 3, "beta": 0.7, "base": "tiny"}
    assert "lexical units of up to 3 tokens, beta 0.7; tiny" in seqrt("inspect", units).out


def test_quality_is_measured_against_the_merged_model(seqrt: Any, source: Path, adapter: Path, tmp_path: Path) -> None:
    result = seqrt("export", source, tmp_path / "bundle", "--lud", adapter, "--quantize", "int8", "--json")
    quality = json.loads(result.out)["quality"]
    assert quality["perplexity"] == pytest.approx(quality["source_perplexity"], rel=0.02)


def test_verify_is_the_default_and_says_nothing(seqrt: Any, units: Path) -> None:
    plain, drafted = (seqrt("run", units, *ANSWER, "--draft", name) for name in ("none", "lud"))
    assert plain.out == drafted.out
    assert "lossy" not in drafted.err
    assert seqrt("run", units, *ANSWER, "--draft", "lud", "--lud-mode", "verify").out == plain.out


def test_paper_mode_says_that_it_is_lossy(seqrt: Any, units: Path) -> None:
    result = seqrt("run", units, *ANSWER, "--draft", "lud", "--lud-mode", "paper", "--beta", 0.5, "--json")
    assert result.code == 0
    assert "seqrt: warning: --lud-mode paper is lossy" in result.err
    assert json.loads(result.out)["draft"] == "lud"


@pytest.mark.parametrize("command", ["verify", "tune", "profile"])
def test_other_commands_take_it(seqrt: Any, units: Path, command: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"turns": ["hello"]}\n')
    more = ["--budget-seconds", 1] if command == "tune" else []
    result = seqrt(command, units, "--draft", "lud", "--prompts", prompts, "--max-new-tokens", 8, *more)
    assert result.code == 0, result.err
    assert "lud" in result.out


def test_verify_compares_no_lossy_mode(seqrt: Any, units: Path) -> None:
    result = seqrt("verify", units, "--draft", "lud", "--lud-mode", "paper")
    assert result.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--draft", "lud", "--beta", "0"], "--beta is 0.0; give more than 0 and at most 1"),
        (["--draft", "lud", "--beta", "0.5"], "--beta 0.5 is of use in paper mode only"),
        (["--draft", "lud", "--lud-mode", "fast"], "--lud-mode is 'fast'; choose verify or paper"),
        (["--draft", "lud", "--lookahead", "70"], "--lookahead 70 needs 139 rows"),
        (["--draft", "lookup", "--lookahead", "3"], "--lookahead is of no use to --draft lookup"),
    ],
)
def test_mistakes(seqrt: Any, units: Path, arguments: list[str], words: str) -> None:
    result = seqrt("run", units, *ANSWER, *arguments)
    assert result.code == 2
    assert words in result.error


def test_a_bundle_without_units(seqrt: Any, bundle: Path) -> None:
    assert "or export with --lud" in seqrt("run", bundle, *ANSWER, "--draft", "lud").error


def test_adapters_that_do_not_fit(seqrt: Any, source: Path, adapter: Path, tmp_path: Path) -> None:
    result = seqrt("export", source, tmp_path / "bundle", "--lud", adapter, "--quantize", "source")
    assert (result.code, "--quantize source" in result.error) == (2, True)
    result = seqrt("export", source, tmp_path / "bundle", "--lud", tmp_path)
    assert (result.code, "has no lud.json" in result.error) == (2, True)
    assert not (tmp_path / "bundle").exists()
