"""Opening a bundle: every malformed or hostile one is refused with one line, and damage is noticed."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrt.errors import BundleError
from seqrt.runtime.bundle import (
    MANIFEST,
    RESERVED_NAMES,
    SCHEMA,
    Bundle,
    FileInfo,
    GraphInfo,
    HeadInfo,
    Manifest,
    ModelInfo,
    Quality,
    cache_folder,
    describe_files,
    open_bundle,
    sha256,
)
from seqrt.runtime.drafters.build import draft_names

Raw = dict[str, Any]

MODEL = ModelInfo(
    vocab_size=300,
    hidden_size=64,
    num_layers=2,
    num_kv_heads=2,
    head_dim=16,
    num_candidates=256,
    eos_token_ids=(2, 7),
    bos_token_id=None,
)
GRAPHS = tuple(
    GraphInfo(role=role, path=f"graphs/{role}.onnx", dtype="fp32", profile="ort", opset=24, weight_bytes=1)
    for role in ("decoder", "logits", "score", "compaction", "medusa")
)
HEADS = HeadInfo(
    name="medusa",
    kind="medusa",
    num_heads=4,
    top_k=10,
    graphs=("medusa",),
    tree=("0", "00"),
    accuracy=((0.5, 0.25), (1.0,)),
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose graphs are arbitrary bytes: no engine sees them here."""
    path = tmp_path / "bundle"
    (path / "graphs").mkdir(parents=True)
    for name in (*(graph.path for graph in GRAPHS), "graphs/weights.bin"):
        (path / name).write_bytes(name.encode() * 1000)
    (path / "chat_template.jinja").write_text("größer {{ messages }}", encoding="utf-8")
    manifest = Manifest(
        name="tiny",
        family="decoder",
        task="generate",
        capacity=128,
        quantization="int8",
        model=MODEL,
        graphs=GRAPHS,
        heads=(HEADS,),
        quality=Quality(tokens=100, perplexity=12.0, source_perplexity=11.5, top1_agreement=0.99),
        files=describe_files(path),
    )
    (path / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return path


def edit(bundle: Path, change: Callable[[Raw], object]) -> None:
    raw = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(raw)
    (bundle / MANIFEST).write_text(json.dumps(raw), encoding="utf-8")


def refusal(bundle: Path) -> str:
    """The message of the refusal, which must be a single line."""
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    message = str(caught.value)
    assert "\n" not in message
    assert str(bundle) in message
    return message


def test_what_was_written_is_read(bundle: Path) -> None:
    opened = open_bundle(bundle)
    manifest = opened.manifest
    assert (manifest.name, manifest.capacity, manifest.schema) == ("tiny", 128, SCHEMA)
    assert (manifest.model, manifest.graphs, manifest.heads) == (MODEL, GRAPHS, (HEADS,))
    assert manifest.quality == Quality(tokens=100, perplexity=12.0, source_perplexity=11.5, top1_agreement=0.99)
    assert opened.graph("logits") == bundle / "graphs" / "logits.onnx"
    assert opened.file("graphs/weights.bin") == bundle / "graphs" / "weights.bin"
    assert opened.text("chat_template.jinja") == "größer {{ messages }}"
    assert opened.text("tokenizer.json") is None


def test_optional_parts_may_be_absent(bundle: Path) -> None:
    def strip(raw: Raw) -> None:
        del raw["heads"], raw["quality"]

    edit(bundle, strip)
    manifest = open_bundle(bundle).manifest
    assert (manifest.heads, manifest.quality) == ((), None)


def test_files_are_described_by_size_and_hash(bundle: Path) -> None:
    content = (bundle / "graphs" / "weights.bin").read_bytes()
    described = describe_files(bundle)
    assert described["graphs/weights.bin"] == FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    assert set(described) == {"chat_template.jinja", "graphs/weights.bin"} | {graph.path for graph in GRAPHS}


def test_hash_of_a_file_larger_than_a_chunk(tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 5
    (tmp_path / "large").write_bytes(content)
    assert sha256(tmp_path / "large") == hashlib.sha256(content).hexdigest()


def test_what_is_not_in_a_bundle_is_named(bundle: Path) -> None:
    opened = open_bundle(bundle)
    with pytest.raises(
        BundleError,
        match=r"has no 'hydra' graph for ort-fp32; it has decoder, logits, score, compaction, medusa for ort-fp32",
    ):
        opened.graph("hydra")
    with pytest.raises(BundleError, match=r"has no tree\.json; export the model again"):
        opened.file("tree.json")


def test_no_bundle(tmp_path: Path) -> None:
    assert "is not a bundle: it has no seqrt.json; make one with: seqrt export SOURCE" in refusal(tmp_path)
    assert "is not a bundle" in refusal(tmp_path / "missing")
    (tmp_path / "file").write_text("{}")
    assert "is not a bundle" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b'{"schema": 1', b"\xff\xfe{}", b"[" * 100_000, b'{"capacity": ' + b"9" * 10_000 + b"}"],
    ids=["empty", "cut", "cut later", "no UTF-8", "nested too deep", "number too long"],
)
def test_damaged_manifest(bundle: Path, text: bytes) -> None:
    (bundle / MANIFEST).write_bytes(text)
    assert f"{MANIFEST} is no valid JSON" in refusal(bundle)


def test_huge_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / MANIFEST).open("r+b") as file:
        file.truncate(1 << 30)  # sparse
    assert f"has {1 << 30} bytes; a manifest has at most {1 << 24}; export again" in refusal(bundle)


@pytest.mark.parametrize("schema", [0, 2, "1", None, [1]])
def test_other_schema(bundle: Path, schema: object) -> None:
    edit(bundle, lambda raw: raw.update(schema=schema))
    assert f"has schema {schema!r}, this seqrt reads {SCHEMA}" in refusal(bundle)


@pytest.mark.parametrize("document", ["[]", "3", "null", '"text"'])
def test_manifest_that_is_no_object(bundle: Path, document: str) -> None:
    (bundle / MANIFEST).write_text(document)
    assert "has schema None" in refusal(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("capacity"), "lacks ['capacity']"),
        (lambda raw: raw["model"].pop("head_dim"), "model lacks ['head_dim']"),
        (lambda raw: raw["graphs"][1].pop("path"), "graphs[1] lacks ['path']"),
        (lambda raw: raw.update(colour="red"), "has unknown keys ['colour']"),
        (lambda raw: raw["heads"][0].update(rank=1), "heads[0] has unknown keys ['rank']"),
        (lambda raw: raw.update(capacity="128"), "capacity is '128', expected int"),
        (lambda raw: raw.update(capacity=True), "capacity is True, expected int"),
        (lambda raw: raw.update(capacity=128.0), "capacity is 128.0, expected int"),
        (lambda raw: raw.update(schema=True), "schema is True, expected int"),
        (lambda raw: raw.update(name=None), "name is None, expected str"),
        (lambda raw: raw.update(model=[]), "model is [], expected an object"),
        (lambda raw: raw.update(graphs={}), "graphs is {}, expected tuple"),
        (lambda raw: raw.update(graphs=[3]), "graphs[0] is 3, expected an object"),
        (lambda raw: raw.update(files=[]), "files is [], expected Mapping"),
        (lambda raw: raw["model"].update(bos_token_id="1"), "bos_token_id is '1', expected int"),
        (lambda raw: raw["model"].update(eos_token_ids=[1, "2"]), "eos_token_ids[1] is '2', expected int"),
        (lambda raw: raw["heads"][0].update(accuracy=[["0.5"]]), "accuracy[0][0] is '0.5', expected float"),
        (
            lambda raw: raw["files"]["graphs/weights.bin"].update(size=None),
            "graphs/weights.bin: size is None",
        ),
    ],
)
def test_malformed_values(bundle: Path, change: Callable[[Raw], object], message: str) -> None:
    edit(bundle, change)
    assert message in refusal(bundle)


@pytest.mark.parametrize(
    "name", ["vocab_size", "hidden_size", "num_layers", "num_kv_heads", "head_dim", "num_candidates"]
)
@pytest.mark.parametrize("value", [0, -1, 1 << 31, 10**30])
def test_absurd_shape(bundle: Path, name: str, value: int) -> None:
    edit(bundle, lambda raw: raw["model"].update({name: value}))
    assert f"{name} is {value}, expected 1 to {(1 << 31) - 1}; export again" in refusal(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["graphs"].pop(0), "has 0 graphs for 'decoder' and ort-fp32, expected 1; export again"),
        (lambda raw: raw["graphs"].pop(3), "has 0 graphs for 'compaction' and ort-fp32, expected 1; export again"),
        (
            lambda raw: raw["graphs"].append(raw["graphs"][1]),
            "has 2 graphs for 'logits' and ort-fp32, expected 1; export again",
        ),
        (lambda raw: raw["heads"][0].update(graphs=["hydra.0"]), "has 0 graphs for 'hydra.0'"),
        (lambda raw: raw["heads"][0].update(prefix="hydra.p"), "has 0 graphs for 'hydra.p'"),
        (lambda raw: raw["heads"][0].update(name="lookup"), "has draft heads called lookup, a reserved name"),
    ],
)
def test_graphs_that_do_not_fit_their_roles(bundle: Path, change: Callable[[Raw], object], message: str) -> None:
    edit(bundle, change)
    assert message in refusal(bundle)


def test_absurd_capacity_and_heads(bundle: Path) -> None:
    edit(bundle, lambda raw: raw.update(capacity=-4))
    assert "capacity is -4" in refusal(bundle)
    edit(bundle, lambda raw: raw.update(capacity=4))
    edit(bundle, lambda raw: raw["heads"][0].update(top_k=1 << 40))
    assert f"heads.medusa.top_k is {1 << 40}" in refusal(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "graphs/../../outside",
        "/etc/passwd",
        "..",
        "",
        ".",
        "graphs\\..\\..\\outside",
        "C:\\outside",
    ],
)
def test_path_outside(bundle: Path, name: str) -> None:
    (bundle.parent / "outside").write_bytes(b"secret")
    listed = {name: {"size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}}
    edit(bundle, lambda raw: raw["files"].update(listed))
    assert f"lists {name!r}, a path outside the bundle; do not use this bundle" in refusal(bundle)


def test_graph_that_is_not_listed(bundle: Path) -> None:
    (bundle.parent / "outside").write_bytes(b"secret")
    edit(bundle, lambda raw: raw["graphs"][0].update(path="../outside"))
    assert "names the graph '../outside' but does not list the file; export again" in refusal(bundle)


def test_linked_file(bundle: Path) -> None:
    weights = bundle / "graphs" / "weights.bin"
    weights.rename(bundle.parent / "weights.bin")
    weights.symlink_to(bundle.parent / "weights.bin")
    assert f"{weights} is a link; a bundle holds regular files only" in refusal(bundle)


def test_linked_folder(bundle: Path) -> None:
    (bundle / "graphs").rename(bundle.parent / "graphs")
    (bundle / "graphs").symlink_to(bundle.parent / "graphs")
    assert f"{bundle / 'graphs'} is a link" in refusal(bundle)


def test_missing_file(bundle: Path) -> None:
    (bundle / "graphs" / "weights.bin").unlink()
    assert "weights.bin is missing; export again" in refusal(bundle)


def test_directory_in_place_of_a_file(bundle: Path) -> None:
    (bundle / "graphs" / "weights.bin").unlink()
    (bundle / "graphs" / "weights.bin").mkdir()
    assert "weights.bin is missing" in refusal(bundle)


@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_size(bundle: Path, change: int) -> None:
    open_bundle(bundle)
    weights = bundle / "graphs" / "weights.bin"
    size = weights.stat().st_size
    os.truncate(weights, size + change)
    assert f"weights.bin has {size + change} bytes, the manifest says {size}; export again" in refusal(bundle)


def test_wrong_hash(bundle: Path) -> None:
    edit(bundle, lambda raw: raw["files"]["graphs/weights.bin"].update(sha256="0" * 64))
    assert "weights.bin is not the file that was exported (SHA-256 differs); export again" in refusal(bundle)
    assert "SHA-256 differs" in refusal(bundle)  # a failure leaves no stamp


def corrupt(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_change_after_the_first_load_is_noticed(bundle: Path) -> None:
    open_bundle(bundle)
    weights = bundle / "graphs" / "weights.bin"
    before = weights.stat().st_mtime_ns
    corrupt(weights)
    os.utime(weights, ns=(before + 1, before + 1))
    assert "SHA-256 differs" in refusal(bundle)


def test_hashes_are_computed_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr("seqrt.runtime.bundle.sha256", counted)
    open_bundle(bundle)
    graphs = [Path(graph.path).name for graph in GRAPHS]
    assert sorted(hashed) == sorted(["chat_template.jinja", *graphs, "weights.bin"])
    open_bundle(bundle)
    assert len(hashed) == 7
    bundle.rename(bundle.parent / "moved")
    open_bundle(bundle.parent / "moved")
    assert len(hashed) == 14


def test_verify_looks_behind_the_stamp(bundle: Path) -> None:
    opened = open_bundle(bundle)
    opened.verify()
    weights = bundle / "graphs" / "weights.bin"
    state = weights.stat()
    corrupt(weights)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(BundleError, match="SHA-256 differs"):
        opened.verify()


def test_cache_folder_that_cannot_be_written(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_bundle(bundle).manifest.name == "tiny"


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache" / "seqrt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "seqrt"


def test_names_of_drafters_are_not_for_heads(llama_bundle: Path) -> None:
    manifest = open_bundle(llama_bundle).manifest
    bare = Bundle(llama_bundle, dataclasses.replace(manifest, heads=()))
    assert set(draft_names(bare)) <= set(RESERVED_NAMES)
