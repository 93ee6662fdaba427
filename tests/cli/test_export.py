import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seqrt.cli.export import _head_paths, _measured, _print
from seqrt.errors import RequestError
from seqrt.exporter.export import Report
from seqrt.runtime.bundle import open_bundle

Seqrt = Callable[..., Any]


@pytest.fixture
def damaged(source: Path, tmp_path: Path) -> Path:
    """The source, to be spoilt."""
    return Path(shutil.copytree(source, tmp_path / "damaged"))


def nothing_written(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if "bundle" in path.name]


def test_int8_reports_differences_and_quality(seqrt: Seqrt, source: Path, tmp_path: Path) -> None:
    result = seqrt("export", source, tmp_path / "bundle", "--quantize", "int8", "--capacity", 200, "--json")
    document = json.loads(result.out)
    assert result.code == 0, result.err
    assert document.keys() >= {"bundle", "name", "quantization", "bytes", "seconds", "differences", "quality"}
    assert document["differences"]["decoder"].keys() >= {"topk_ids", "topk_logits", "logsumexp", "hidden"}
    assert all(value < 1e-3 for value in document["differences"]["decoder"].values())
    quality = document["quality"]
    assert quality["tokens"] == 198
    assert quality["perplexity"] == pytest.approx(quality["source_perplexity"], rel=0.05)
    assert 0.8 < quality["top1_agreement"] <= 1
    assert json.loads((tmp_path / "bundle" / "seqrt.json").read_text())["quality"] == quality
    opened = open_bundle(tmp_path / "bundle")
    opened.verify()
    text = seqrt("inspect", tmp_path / "bundle").out
    assert f" {quality['perplexity']:.2f}, source {quality['source_perplexity']:.2f}\n" in text


def test_without_quantisation_the_measures_agree(source: Path, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    quality = _measured(source, None, copy, lambda _: None)
    assert quality is not None
    assert quality.perplexity == pytest.approx(quality.source_perplexity, rel=1e-4)
    assert quality.top1_agreement == 1.0
    assert quality.tokens == 254


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [
        (RequestError("the prompt is empty"), 0, "the prompt is empty"),
        (RuntimeError("not enough\nmemory"), 0, "RuntimeError: not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted\nseqrt: error: interrupted"),
    ],
)
def test_what_fails_while_measuring_leaves_the_bundle(
    seqrt: Seqrt,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    why: str,
) -> None:
    def failing(*arguments: object) -> None:
        raise error

    bundle = tmp_path / "bundle"
    monkeypatch.setattr("seqrt.exporter.reference.reference_scores", failing)
    result = seqrt("export", source, bundle, "--quantize", "int8", "--capacity", 64, "--no-check", "--json")
    assert result.code == code
    assert f"seqrt: quality is not measured, {bundle} is complete without it: {why}\n" in result.err
    opened = open_bundle(bundle)
    opened.verify()
    assert opened.manifest.quality is None
    assert code or json.loads(result.out)["quality"] is None


def test_source_says_what_it_kept_and_what_it_rounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path, "tiny", {"a": 1_000_000, "b": 1_500_000}, {"c": 300_000}, {})
    _print(report, None)
    assert capsys.readouterr().out == (
        "blocks of the source: 2 weights (2.5 MB) kept as they are; 1 weight (0.3 MB) rounded to int8\n"
    )


@pytest.mark.parametrize(
    ("texts", "paths"),
    [
        (["h"], {"medusa": "h"}),
        (["big=h", "small=g"], {"big": "h", "small": "g"}),
        (["h", "small=g=x"], {"medusa": "h", "small": "g=x"}),
        (["a/b=c"], {"medusa": "a/b=c"}),
    ],
)
def test_head_names(texts: list[str], paths: dict[str, str]) -> None:
    assert _head_paths(texts, lambda path: "medusa") == {name: Path(path) for name, path in paths.items()}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "b"], "^--heads b: the name 'medusa' is taken"),
        (["none=a"], "^--heads none=a: 'none' cannot be a name"),
        (["=a"], "^--heads =a: '' cannot be a name"),
    ],
)
def test_bad_head_names(texts: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        _head_paths(texts, lambda path: "medusa")


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def widen(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((64, 64), np.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (truncate, "model.safetensors"),
        (widen, "up"),
        (lambda folder: edit_config(folder, architectures=["RwkvForCausalLM"], model_type="rwkv"), "rwkv"),
        (lambda folder: edit_config(folder, rope_scaling={"rope_type": "spiral", "factor": 2.0}), "spiral"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
    ],
)
def test_damaged_sources(seqrt: Seqrt, damaged: Path, tmp_path: Path, spoil: Callable[[Path], None], text: str) -> None:
    spoil(damaged)
    result = seqrt("export", damaged, tmp_path / "bundle")
    assert result.code == 1
    assert text.lower() in result.error.lower()
    assert nothing_written(tmp_path)


def test_sources_that_are_none(seqrt: Seqrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = seqrt("export", "someone/some-model", "bundle")
    assert result.code == 1
    assert "download it first with `hf download someone/some-model --local-dir some-model`" in result.error
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\0\0\0")
    result = seqrt("export", "broken.gguf", "bundle")
    assert result.code == 1
    assert "broken.gguf" in result.error
    assert nothing_written(tmp_path)


def test_heads_for_another_model(seqrt: Seqrt, source: Path, heads: Path, tmp_path: Path) -> None:
    tensors = {
        name: np.zeros([32] * value.ndim, np.float32)
        for name, value in load_file(heads / "medusa_lm_head.safetensors").items()
    }
    save_file(tensors, tmp_path / "medusa_lm_head.safetensors")
    result = seqrt("export", source, tmp_path / "bundle", "--heads", tmp_path)
    assert result.code == 1
    assert "draft heads of another hidden size" in result.error
    result = seqrt("export", source, tmp_path / "bundle", "--heads", f"big={tmp_path / 'none'}")
    assert result.code == 1
    assert "does not exist" in result.error
    assert nothing_written(tmp_path)


def test_values_out_of_range(seqrt: Seqrt, source: Path, tmp_path: Path) -> None:
    for capacity in (0, 513, -4):
        result = seqrt("export", source, tmp_path / "bundle", "--capacity", capacity)
        assert result.code == 2
        assert result.error == f"--capacity {capacity} is out of range; tiny takes 1 to 512"
    assert nothing_written(tmp_path)


def test_an_existing_directory_is_kept(seqrt: Seqrt, source: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("mine")
    result = seqrt("export", source, tmp_path / "bundle")
    assert result.code == 1
    assert "exists; choose another directory or replace it with --force" in result.error
    assert (tmp_path / "bundle" / "mine.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written(seqrt: Seqrt, source: Path) -> None:
    result = seqrt("export", source, "/proc/bundle")  # read-only for root too
    assert result.code == 1
    assert result.error.startswith("cannot write to /proc: ")


def test_a_full_disk(seqrt: Seqrt, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("seqrt.exporter.assemble.decoder_graph", full)
    result = seqrt("export", source, tmp_path / "bundle")
    assert result.code == 1
    assert result.error.endswith("No space left on device; free some space or choose another disk")
    assert nothing_written(tmp_path)


def test_without_the_extra(seqrt: Seqrt, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("seqrt.exporter.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    result = seqrt("export", source, tmp_path / "bundle")
    assert result.code == 1
    assert result.error == "onnx_ir is not installed; run: pip install 'seqrt[export]'"


def test_an_interrupt_leaves_nothing(
    seqrt: Seqrt, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("seqrt.exporter.assemble.decoder_graph", interrupt)
    result = seqrt("export", source, tmp_path / "bundle", "--json")
    assert (result.code, result.error, result.out) == (130, "interrupted", "")
    assert nothing_written(tmp_path)


def test_a_killed_export_leaves_no_bundle(spawn: Callable[..., Any], source: Path, tmp_path: Path) -> None:
    process = spawn("export", source, tmp_path / "there" / "bundle")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("there/.bundle*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.random())
    process.kill()
    process.communicate(timeout=60)
    assert list(tmp_path.glob("there/.bundle*"))  # it was at work
    assert not (tmp_path / "there" / "bundle").exists()
