"""What the documents say exists, exists; what they show, runs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
# A path with a folder, such as runtime/tree.py or docs/bundle.md; placeholders are in capitals.
PATHS = re.compile(r"(?<![\w/.*~$-])((?:[a-z_.][\w.-]*/)+(?:[\w.-]+\.(?:py|md|txt|toml|mk))?)(?![\w*])")
BUILT = ("build/", "dist/", "graphs/decoder", "heads/", ".venv/", ".cache/", ".venv-peers/")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_in_documents_exist(page: Path) -> None:
    named = {name for name in PATHS.findall(page.read_text(encoding="utf-8")) if not name.startswith(BUILT)}
    assert [name for name in named if not any((base / name).exists() for base in (ROOT, page.parent))] == []


def test_paths_are_found_in_text() -> None:
    text = "`runtime/tree.py` and (docs/decisions/), not https://a.example/b.py or a/B"
    assert PATHS.findall(text) == ["runtime/tree.py", "docs/decisions/"]


def test_the_drafter_of_the_documents_works() -> None:
    text = (ROOT / "docs/drafters.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    drafter = names["RepeatDrafter"]()
    output = StepOutput(
        np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32), np.zeros(1, np.float32), np.zeros((1, 4), np.float32)
    )
    drafter.begin([3, 7], output)
    proposal: Proposal = drafter.propose(7, 16)
    assert proposal.tree.tokens.tolist() == [7, 7, 7, 7]
    assert proposal.tree.parents.tolist() == [-1, 0, 1, 2]
    assert proposal.probability == pytest.approx([1, 0.1, 0.01, 0.001])
    drafter.observe(proposal, [0, 1], [7, 8], output)
    assert drafter.propose(8, 2).probability == pytest.approx([1, 0.19])


def names_of(schema: dict[str, Any]) -> set[str]:
    """All keys that a JSON Schema knows."""
    found = set(schema.get("properties", {}))
    for value in schema.values():
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            found |= names_of(part) if isinstance(part, dict) else set()
        found |= names_of(value) if isinstance(value, dict) else set()
    return found


def test_every_number_of_a_profile_is_defined() -> None:
    text = (ROOT / "docs/profiling.md").read_text(encoding="utf-8")
    known = names_of(json.loads((ROOT / "docs/profile.schema.json").read_text(encoding="utf-8")))
    assert len(known) > 80
    assert sorted(name for name in known if f"`{name}`" not in text and f".{name}`" not in text) == []
