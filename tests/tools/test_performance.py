"""docs/performance.md says what the profiles beside it say, and nothing else."""

import json
import shlex
from pathlib import Path

import jsonschema
import pytest
from tools import performance

PAGES = sorted(performance.PROFILES.glob("*.json"))
SCHEMA = json.loads((performance.PROFILES.parent / "profile.schema.json").read_text())


def test_the_page_is_what_the_profiles_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert performance.main(["--check"]) == 0
    assert PAGES


def test_a_typed_figure_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "performance.md"
    monkeypatch.setattr(performance, "PAGE", page)
    assert performance.main([]) == 0
    assert performance.main(["--check"]) == 0
    page.write_text(page.read_text().replace("1.00", "2.00"))
    assert performance.main(["--check"]) == 1
    assert "is not what the profiles say; run: python -m tools.performance" in capsys.readouterr().err


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_profiles_follow_the_schema(file: Path) -> None:
    document = json.loads(file.read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["complete"]


def test_the_command_of_a_profile() -> None:
    document = json.loads(PAGES[0].read_text())
    plain = shlex.split(performance.command(document))
    assert plain[:3] == ["seqrt", "profile", "BUNDLE"]
    assert "--prompts" not in plain
    changes = {"repeat": 3, "max_new_tokens": 32, "tree": "0 00", "adaptive": False, "ignore_eos": True, "top_p": 0.9}
    settings = document["settings"] | changes | {"stop": ["a b", "c"], "tg": 64, "prompts_sha256": "of others"}
    words = shlex.split(performance.command(document | {"settings": settings}))
    for flag, value in (("--tree", "0 00"), ("--repeat", "3"), ("--top-p", "0.9"), ("--tg", "64"), ("--stop", "a b")):
        assert words[words.index(flag) + 1] == value
    assert {"--no-adaptive", "--ignore-eos", "--json", "--prompts", "FILE"} <= set(words)
    assert words.count("--stop") == 2


def test_a_profile_of_one_conversation() -> None:
    document = json.loads(PAGES[0].read_text())
    pulse = {"median": 30.0, "variation": None}
    stability = document["stability"] | {"copy_gb_per_second": pulse, "sha256_mb_per_second": pulse}
    assert "copies of 30.0 GB/s, SHA-256 of 30.0 MB/s" in performance.section("x", document | {"stability": stability})
