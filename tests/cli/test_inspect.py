import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Seqrt = Callable[..., Any]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle to spoil, which this user has never opened."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_json_is_the_manifest(seqrt: Seqrt, bundle: Path) -> None:
    result = seqrt("inspect", bundle, "--json")
    document = json.loads(result.out)
    manifest = json.loads((bundle / "seqrt.json").read_text())
    assert result.code == 0
    assert manifest.items() <= document.items()
    assert document["bytes"] == sum(file["size"] for file in manifest["files"].values())
    assert document["verified"] is False


def test_text(seqrt: Seqrt, bundle: Path) -> None:
    result = seqrt("inspect", bundle, "--verify")
    assert result.code == 0
    fields = dict(line.split("  ", 1) for line in result.out.splitlines())
    assert fields["quantization"].strip() == "none"
    assert fields["draft medusa"].strip() == "medusa: 3 heads, 10 candidates each"
    assert fields["verified"].strip().startswith("all ")


def test_verify_finds_a_changed_file(seqrt: Seqrt, copy: Path) -> None:
    assert seqrt("inspect", copy).code == 0
    file = copy / "tokenizer.json"
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    result = seqrt("inspect", copy, "--verify", "--json")
    assert result.code == 1
    assert "tokenizer.json is not the file that was exported (SHA-256 differs)" in result.error
    assert result.out == ""


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = bundle / "seqrt.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def rename(manifest: dict[str, Any], name: str) -> None:
    manifest["files"][name] = manifest["files"].pop("tokenizer.json")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.update(schema=99), "has schema 99, this seqrt reads 1"),
        (lambda m: m.update(capacity=-1), "capacity is -1, expected 1 to"),
        (lambda m: m["model"].update(vocab_size=1 << 60), "vocab_size is 1152921504606846976, expected 1 to"),
        (lambda m: m["model"].update(hidden_size="64"), "hidden_size is '64', expected int"),
        (lambda m: m.pop("graphs"), "lacks ['graphs']"),
        (lambda m: m.update(colour="red"), "has unknown keys ['colour']"),
        (lambda m: rename(m, "../tokenizer.json"), "a path outside the bundle"),
        (lambda m: rename(m, "/etc/passwd"), "a path outside the bundle"),
        (lambda m: rename(m, "gone.json"), "gone.json is missing"),
        (lambda m: m["files"]["tokenizer.json"].update(size=3), "bytes, the manifest says 3"),
        (lambda m: m["files"]["tokenizer.json"].update(sha256="0" * 64), "SHA-256 differs"),
    ],
)
@pytest.mark.parametrize("command", [["inspect"], ["run", "--prompt", "x"]])
def test_bad_manifests(
    seqrt: Seqrt, copy: Path, command: list[str], change: Callable[[dict[str, Any]], None], text: str
) -> None:
    edit(copy, change)
    result = seqrt(command[0], copy, *command[1:])
    assert result.code == 1
    assert text in result.error
    assert result.out == ""


def test_links_are_refused(seqrt: Seqrt, copy: Path) -> None:
    file = copy / "tokenizer.json"
    target = file.rename(copy.parent / "elsewhere.json")
    file.symlink_to(target)
    result = seqrt("inspect", copy)
    assert result.code == 1
    assert "is a link; a bundle holds regular files only" in result.error


def test_not_a_bundle(seqrt: Seqrt, tmp_path: Path) -> None:
    result = seqrt("inspect", tmp_path / "nothing")
    assert result.code == 1
    assert "is not a bundle: it does not exist; make one with: seqrt export" in result.error
    (tmp_path / "seqrt.json").write_text("{")
    assert "is no valid JSON" in seqrt("inspect", tmp_path).error
