"""Texts to mark: prompts with a model's answers, and source code.

    python -m tools.lud.corpus --out code.jsonl --texts 400 /usr/lib/python3.11

cuts Python files into texts of some 800 characters, whole lines, in an order that the seed decides.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """One text.

    Attributes:
        id: Names it in the corpus.
        task: What kind of text it is.
        ids: Token ids.
        resp_start: Position of the first token that the model is to learn.
    """

    id: str
    task: str
    ids: list[int]
    resp_start: int


def read_corpus(path: Path, encode: Callable[[str, str], list[int]]) -> Iterator[tuple[int, Text]]:
    """The texts of a file of JSON lines, one at a time, each with the number of bytes read so far.

    A line has `prompt` and `answer`, as token ids (tools.train.answers writes them) or as text, or `text` alone, all of
    which is learnt; `id` and `task` if it likes.

    Args:
        path: The file.
        encode: A text to tokens, told what it is: "prompt", "answer" or "text".

    Raises:
        ValueError: The file is empty, or a line is no such text.
    """
    read = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            read += len(line)
            try:
                text = _parse(json.loads(line), f"{path.name}:{number}", encode)
            except (ValueError, TypeError, KeyError) as error:
                why = f"lacks {error}" if isinstance(error, KeyError) else error
                raise ValueError(
                    f"{path}, line {number}: {why}; a line is a JSON object with text, or prompt and answer"
                ) from error
            yield read, text
    if not read:
        raise ValueError(f"{path} is empty; give a corpus of JSON lines")


def _parse(row: dict[str, Any], name: str, encode: Callable[[str, str], list[int]]) -> Text:
    def ids(part: str) -> list[int]:
        value = row[part]
        return encode(value, part) if isinstance(value, str) else [int(token) for token in value]

    if not isinstance(row, dict):
        raise TypeError(f"{row!r:.40} is no object")
    if "text" in row and "prompt" not in row:
        prompt, answer = [], ids("text")
    else:
        prompt, answer = ids("prompt"), ids("answer")
    if len(prompt) + len(answer) < 2 or not answer:
        raise ValueError(f"has {len(prompt)} tokens of a prompt and {len(answer)} to learn, too few")
    identity = str(row.get("id", name)) + (f"/{row['turn']}" if "turn" in row else "")
    return Text(identity, str(row.get("task", "text")), prompt + answer, max(len(prompt), 1))


def code_texts(folder: Path, count: int, characters: int, seed: int) -> Iterator[dict[str, str]]:
    """Pieces of the Python files below `folder`, tests left out, at most two of a file."""
    rng = random.Random(seed)
    files = sorted(
        file
        for file in folder.rglob("*.py")
        if not {"test", "tests", "site-packages"} & set(file.relative_to(folder).parts)
    )
    rng.shuffle(files)
    made = 0
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        except UnicodeDecodeError:
            continue
        for start in sorted(rng.sample(range(len(lines)), min(2, len(lines)))):
            text = ""
            for line in lines[start:]:
                if len(text) + len(line) > characters:
                    break
                text += line
            if len(text) > characters // 2:
                yield {"id": f"{file.relative_to(folder)}:{start + 1}", "task": "code", "text": text}
                made += 1
                if made == count:
                    return


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of Python files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--characters", type=int, default=800, help="most of a text")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = list(code_texts(options.folder, options.texts, options.characters, options.seed))
    if not rows:
        parser.error(f"{options.folder} has no Python files to take texts from")
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} texts written to {options.out}")


if __name__ == "__main__":
    main()
