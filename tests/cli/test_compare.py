import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Seqrt = Callable[..., Any]


@pytest.fixture(scope="module")
def document(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real profile of a dozen prompts, each answer with the same times: a profile of a calm machine."""
    import contextlib
    import io

    from seqrt.cli import main

    prompts = tmp_path_factory.mktemp("compare") / "prompts.txt"
    prompts.write_text("".join(f"the {word} fox\n" for word in range(12)))
    arguments = ["profile", str(bundle), "--prompts", str(prompts), "--max-new-tokens", "6", "--ignore-eos", "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*arguments, "--draft", "lookup", "--pp", "16", "--tg", "0"]) == 0
    made = json.loads(out.getvalue())
    for row in made["rows"]:
        for answer in row["answers"]:
            answer |= {"decode_seconds": 0.01, "ttft_ms": 5.0}
    made["tests"] = [{"test": "pp16", "tokens_per_second": 500.0, "stddev": 1.0, "repeats": 5}]
    return made


@pytest.fixture
def files(document: Any, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """The profile, and it again with all times scaled and some values changed."""

    def write(scale: float = 1.0, **changes: Any) -> tuple[Path, Path]:
        other = copy.deepcopy(document)
        for row in other["rows"]:
            for answer in row["answers"]:
                answer["decode_seconds"] *= scale
                answer["ttft_ms"] *= scale
        for test in other["tests"]:
            test["tokens_per_second"] /= scale
        for name, value in changes.items():
            *outer, last = name.split("__")
            place = other
            for key in outer:
                place = place[int(key) if key.isdigit() else key]
            place[last] = value
        paths = tmp_path / "first.json", tmp_path / "second.json"
        for file, each in zip(paths, (document, other), strict=True):
            file.write_text(json.dumps(each))
        return paths

    return write


def test_the_same_is_the_same(seqrt: Seqrt, files: Callable[..., tuple[Path, Path]]) -> None:
    result = seqrt("compare", *files(), "--fail-if-slower", "0%", "--json")
    found = json.loads(result.out)
    assert (result.code, found["slower"], found["remarks"]) == (0, 0, [])
    assert [(one["draft"], one["metric"]) for one in found["figures"]] == [
        ("none", "tokens_per_second"),
        ("none", "ttft_ms"),
        ("lookup", "tokens_per_second"),
        ("lookup", "ttft_ms"),
        ("none", "pp16"),
    ]
    assert all((one["ratio"], one["verdict"]) == (1.0, "same") for one in found["figures"])


@pytest.mark.parametrize(
    ("scale", "limit", "code"), [(1.25, "5%", 3), (1.25, "30", 0), (1.25, None, 0), (0.8, "5%", 0)]
)
def test_slower(
    seqrt: Seqrt, files: Callable[..., tuple[Path, Path]], scale: float, limit: str | None, code: int
) -> None:
    result = seqrt("compare", *files(scale), "--json", *(("--fail-if-slower", limit) if limit else ()))
    found = json.loads(result.out)
    assert result.code == code
    for one in found["figures"][:4]:
        assert one["ratio"] == pytest.approx(1 / scale, abs=1e-3)
        assert one["interval"] == pytest.approx([1 / scale] * 2, abs=1e-3)
    expected = {1.25: "same" if limit == "30" else "slower", 0.8: "faster"}[scale]
    assert {one["verdict"] for one in found["figures"][:4]} == {expected}
    if code:
        assert "figures are slower by more than 5.00%, beyond chance" in result.err


def test_chance_is_no_regression(seqrt: Seqrt, files: Callable[..., tuple[Path, Path]], document: Any) -> None:
    """One answer of twelve took twice as long: slower on average, and nothing that must happen again."""
    first, second = files()
    other = json.loads(second.read_text())
    other["rows"][0]["answers"][0]["decode_seconds"] *= 2
    second.write_text(json.dumps(other))
    result = seqrt("compare", first, second, "--fail-if-slower", "5%", "--json")
    figure = json.loads(result.out)["figures"][0]
    assert figure["ratio"] < 0.95
    assert (result.code, figure["verdict"]) == (0, "same")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"environment__cpu": "Another"}, "environment.cpu is"),
        ({"environment__gpu": "NVIDIA H100"}, "environment.gpu is None and 'NVIDIA H100'"),
        ({"settings__max_new_tokens": 7}, "settings.max_new_tokens is 6 and 7"),
        ({"settings__prompts_sha256": "0"}, "settings.prompts_sha256 is"),
        ({"complete": False}, "the second is of an interrupted run"),
        ({"rows__1__draft": "hydra"}, "--draft lookup is in the first only"),
    ],
)
def test_different_runs_are_refused(
    seqrt: Seqrt, files: Callable[..., tuple[Path, Path]], changes: dict[str, Any], named: str
) -> None:
    paths = files(**changes)
    result = seqrt("compare", *paths)
    assert result.code == 1
    assert named in result.error
    assert result.error.endswith("add --force if that is meant")
    forced = seqrt("compare", *paths, "--force")
    assert forced.code == 0
    assert named in forced.err


def test_versions_are_told(seqrt: Seqrt, files: Callable[..., tuple[Path, Path]]) -> None:
    result = seqrt("compare", *files(environment__seqrt="9.9", settings__new_option=1, environment__platform="new"))
    assert result.code == 0
    assert "seqrt: seqrt: 0.1.0 and 9.9" in result.err
    assert "seqrt: only one knows settings.new_option" in result.err
    assert "verdict" in result.out


def test_answers_that_changed_are_told(seqrt: Seqrt, files: Callable[..., tuple[Path, Path]]) -> None:
    result = seqrt("compare", *files(rows__0__answers__3__text="0" * 12))
    assert result.code == 0
    assert "seqrt: none: 1 of 12 answers are not the same" in result.err


@pytest.mark.parametrize(("scale", "verdict"), [(1.25, "unknown"), (0.8, "faster")])
def test_where_the_machine_was_slower_nothing_is_known_to_be(
    seqrt: Seqrt, files: Callable[..., tuple[Path, Path]], document: Any, scale: float, verdict: str
) -> None:
    slow = {"median": document["stability"]["copy_gb_per_second"]["median"] / 2, "variation": 0.0}
    paths = files(scale, stability__copy_gb_per_second=slow)
    result = seqrt("compare", *paths, "--fail-if-slower", "5%", "--json")
    found = json.loads(result.out)
    assert result.code == 0
    assert {one["verdict"] for one in found["figures"]} == {verdict}
    assert "the machine itself had 0.50 times memory bandwidth in the second run" in found["remarks"][0]


def test_few_answers_say_nothing(seqrt: Seqrt, files: Callable[..., tuple[Path, Path]]) -> None:
    first, second = files(1.5, tests=[])
    for file in (first, second):
        shorter = json.loads(file.read_text())
        for row in shorter["rows"]:
            row["answers"] = row["answers"][:5]
        file.write_text(json.dumps(shorter))
    result = seqrt("compare", first, second, "--fail-if-slower", "5%", "--json")
    assert result.code == 0
    assert {one["verdict"] for one in json.loads(result.out)["figures"]} == {"unknown"}


def test_two_runs_of_a_test_have_no_interval(seqrt: Seqrt, files: Callable[..., tuple[Path, Path]]) -> None:
    test = {"test": "pp16", "tokens_per_second": 100.0, "stddev": 1.0, "repeats": 2}
    result = seqrt("compare", *files(tests=[test]), "--json")
    assert json.loads(result.out)["figures"][-1]["verdict"] == "unknown"


def test_nothing_in_common(seqrt: Seqrt, files: Callable[..., tuple[Path, Path]]) -> None:
    nothing = seqrt("compare", *files(rows=[], tests=[]), "--force")
    assert nothing.code == 1
    assert "have no figure in common; profile the same drafters and prompts" in nothing.error


def test_markdown(seqrt: Seqrt, files: Callable[..., tuple[Path, Path]]) -> None:
    result = seqrt("compare", *files(), "--format", "markdown")
    assert result.out.startswith("| draft | figure |")
    assert seqrt("compare", *files(), "--format", "csv").code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is not JSON"),
        ("[]", "is no profile; give the output of seqrt profile --json"),
        ('{"traceEvents": []}', "is no profile; give the output of seqrt profile --json"),
        ('{"schema": 1, "rows": []}', "has profile schema 1, expected 2; measure again"),
        ('{"schema": 2, "rows": []}', "is a damaged profile (KeyError('"),
        ('{"schema": 2, "rows": NaN}', "is not JSON: NaN is no number"),
        ('{"schema": 2, "rows": [{"draft": "none", "answers": [1]}], "tests": []}', "is a damaged profile"),
    ],
)
def test_what_is_no_profile(
    seqrt: Seqrt, files: Callable[..., tuple[Path, Path]], tmp_path: Path, content: str | None, message: str
) -> None:
    first, _ = files()
    second = tmp_path / "other.json"
    if content is not None:
        second.write_text(content)
    result = seqrt("compare", first, second)
    assert result.code == 1
    assert message in result.error


@pytest.mark.parametrize("value", ["x", "-1", "200%", "nan"])
def test_bad_limits(seqrt: Seqrt, files: Callable[..., tuple[Path, Path]], value: str) -> None:
    result = seqrt("compare", *files(), "--fail-if-slower", value)
    assert result.code == 2
    assert result.error == f"--fail-if-slower is {value!r}; give per cent from 0 to 100, for example 5%"
