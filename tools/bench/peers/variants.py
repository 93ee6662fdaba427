"""Which rows the table has: peers, their options, and where their models lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.peers.client import Variant

REFERENCE = "llama.cpp"
FLOAT = "transformers fp32"
SEQRT_DRAFTS = ("none", "lookup", "medusa")
LLAMA_CPP_LOOKUP = 2  # draft tokens a step: its documentation's advice for a CPU; the default, 10, is for GPUs
GENAI_NOTES = {
    "int4": "its builder's default, round-to-nearest, so a second rounding after the GGUF file's own",
    "int8": "",
}


def seqrt_variants(python: Path, name: str, bundle: Path, common: dict[str, Any]) -> list[Variant]:
    """Return one variant for each drafter on one bundle; one named "none" has the weights that transformers has."""
    plain = f"seqrt {name}"
    return [
        Variant(
            name=plain if draft == "none" else f"{plain} {draft}",
            python=python,
            module="tools.bench.peers.seqrt_peer",
            options={**common, "bundle": str(bundle), "draft": draft},
            plain=plain if draft != "none" else FLOAT if name == "none" else None,
        )
        for draft in SEQRT_DRAFTS
    ]


def peer_variants(python: Path, gguf: Path, folder: Path, common: dict[str, Any]) -> list[Variant]:
    """Return the variants that are not seqrt.

    Args:
        python: Interpreter of the peers' environment.
        gguf: The model file, read as it is by llama.cpp.
        folder: What prepare.py wrote.
        common: Options that all share: threads, capacity, eos_token_ids.
    """

    def peer(name: str, module: str, note: str = "", plain: str | None = None, **options: Any) -> Variant:
        return Variant(
            name=name,
            python=python,
            module=f"tools.bench.peers.{module}",
            options={**common, **options},
            plain=plain,
            note=note,
        )

    lookup_note = f"num_pred_tokens {LLAMA_CPP_LOOKUP}; room for the logits of every row is part of its memory"
    lookup = f"{REFERENCE} lookup"
    genai = [
        peer(f"genai {precision}", "genai_peer", note, model=str(folder / f"genai-{precision}"))
        for precision, note in GENAI_NOTES.items()
    ]
    return [
        peer(REFERENCE, "llama_cpp_peer", gguf=str(gguf), lookup=0),
        peer(lookup, "llama_cpp_peer", lookup_note, REFERENCE, gguf=str(gguf), lookup=LLAMA_CPP_LOOKUP),
        *genai,
        peer(FLOAT, "transformers_peer", model=str(folder / "hf")),
    ]


def chosen(variants: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """Return the variants whose name contains one of `only`, or all when it is empty.

    Raises:
        ValueError: A piece of `only` matches nothing.
    """
    for piece in only:
        if not any(piece in variant.name for variant in variants):
            names = ", ".join(variant.name for variant in variants)
            raise ValueError(f"--only {piece} matches none of: {names}")
    return [variant for variant in variants if not only or any(piece in variant.name for piece in only)]
