"""Mark lexical units: score a corpus with a bundle, and write where the model is sure of several tokens in a row.

    python -m tools.lud.mark --bundle BUNDLE --corpus answers.jsonl --out units.jsonl --alpha 0.9

Texts are scored one after another and written as they are done; a run that was stopped goes on where it was. What
exceeds the bundle's capacity is cut off. Beside the file, `units.histogram.json` counts units by their length. A prompt
that is text goes through the bundle's chat template, unless `--raw`.

tools.lud.train draws windows of its own lookahead from units, so `--longest` should be well above that.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from tools.lud.corpus import read_corpus
from tools.lud.units import HEADS, Marked, Marking, read_marked
from tqdm import tqdm  # type: ignore[import-untyped]

from seqrt.errors import SeqrtError
from seqrt.runtime.model import Model, load


def mark(model: Model, corpus: Path, out: Path, marking: Marking, *, raw: bool = False) -> None:
    """Marks the texts of `corpus` that `out` does not hold yet.

    Args:
        model: What is to learn.
        corpus: JSON lines.
        out: As `Marked.line` has them.
        marking: How units are found.
        raw: Prompts that are text are taken as they are, without the chat template.

    Raises:
        ValueError: The corpus or what is there of `out` cannot be gone on with.
        SeqrtError: A text cannot be scored.
    """
    scorer = hashlib.sha256(model.bundle.manifest.to_json().encode()).hexdigest()[:16]
    done = _done(out, marking, scorer)
    special, most = special_tokens(model), model.bundle.manifest.capacity - 1

    def encode(text: str, part: str) -> list[int]:
        if part == "prompt" and not raw:
            return model.prompt_tokens(text)
        ids: list[int] = model.tokenizer.encode(text, add_special_tokens=part != "answer").ids
        return ids

    with (
        out.open("a", encoding="utf-8") as file,
        tqdm(total=corpus.stat().st_size, desc="units", unit="B", unit_scale=True, mininterval=2) as bar,
    ):
        for read, text in read_corpus(corpus, encode):
            ids = text.ids[:most]
            if text.resp_start < len(ids) and done.setdefault(text.id, ids) != ids:
                raise ValueError(
                    f"{out} holds another text {text.id!r} than {corpus}; give texts an id of their own, or take"
                    " another --out"
                )
            if text.resp_start < len(ids) and done[text.id] is ids:
                units = marking.units(ids, model.score(ids).log_probabilities, text.resp_start, special)
                marked = Marked(text.id, text.task, ids, text.resp_start, units, **asdict(marking), scorer=scorer)
                file.write(marked.line())
                file.flush()
            bar.update(read - bar.n)


def special_tokens(model: Model) -> set[int]:
    """Tokens that stand for no text, those that end an answer among them."""
    added = model.tokenizer.get_added_tokens_decoder()
    return {token for token, info in added.items() if info.special} | set(model.bundle.manifest.decoder.eos_token_ids)


def histogram(path: Path) -> dict[str, object]:
    """Units by length, and how many tokens of responses are in units, by task."""
    lengths: collections.Counter[int] = collections.Counter()
    tokens: dict[str, list[int]] = {}
    for marked in read_marked(path):
        sizes = [last - first + 1 for first, last in marked.units]
        lengths.update(sizes)
        counts = tokens.setdefault(marked.task, [0, 0])
        counts[0] += sum(sizes)
        counts[1] += len(marked.ids) - marked.resp_start
    return {
        "units_by_length": {str(length): lengths[length] for length in sorted(lengths)},
        "tokens_in_units_by_task": {task: {"in_units": a, "all": b} for task, (a, b) in sorted(tokens.items())},
    }


def _done(out: Path, marking: Marking, scorer: str) -> dict[str, list[int]]:
    """The tokens of the texts that `out` holds, by id; a last line that was cut short is taken off."""
    if not out.exists():
        return {}
    whole = out.read_bytes()
    if (end := whole.rfind(b"\n") + 1) < len(whole):
        with out.open("r+b") as file:
            file.truncate(end)
    done = {}
    for marked in read_marked(out):
        made = Marking(marked.alpha, marked.head, marked.longest)
        if (made, marked.scorer) != (marking, scorer):
            raise ValueError(
                f"{out} was marked with {made} by scorer {marked.scorer}, wanted are {marking} and {scorer};"
                " take another --out, or delete the file"
            )
        done[marked.id] = marked.ids
    return done


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="of the model that is to learn")
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines with prompt and answer, or text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--alpha", type=float, default=Marking().alpha, help="a token more probable than this is sure")
    parser.add_argument("--unit-head", default=Marking().head, help=f"first token of a unit: {' or '.join(HEADS)}")
    parser.add_argument("--longest", type=int, default=Marking().longest, help="tokens of a unit at most")
    parser.add_argument("--raw", action="store_true", help="take prompts as they are, without the chat template")
    options = parser.parse_args()
    marking = Marking(options.alpha, options.unit_head, options.longest)
    with load(options.bundle) as model:
        mark(model, options.corpus, options.out, marking, raw=options.raw)
    found = histogram(options.out)
    options.out.with_suffix(".histogram.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found["units_by_length"]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError, SeqrtError) as error:
        raise SystemExit(f"mark: {error}") from error
