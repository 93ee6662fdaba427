"""tune.json: read where it was made, ignored with the reason elsewhere."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrt.errors import BundleError
from seqrt.runtime.backends import open_engines
from seqrt.runtime.bundle import Bundle, open_bundle
from seqrt.runtime.model import load
from seqrt.runtime.options import Options
from seqrt.runtime.tuned import Choice, Machine, Plan, Tuning, is_chain, read_tuning


@pytest.fixture
def bundle(llama_bundle: Path, tmp_path: Path) -> Bundle:
    return open_bundle(Path(shutil.copytree(llama_bundle, tmp_path / "bundle")))


def here_(bundle: Bundle) -> Machine:
    """This machine with two threads."""
    return Machine.here(bundle, open_engines(bundle, "cpu", 2), 2)


def tuning(bundle: Bundle, **changes: Any) -> Tuning:
    choice = Choice(
        draft="medusa",
        tree="0 00",
        rows=3,
        draft_ms=0.5,
        acceptance=((0.5, 0.1), (0.2,)),
        tokens_per_step=1.7,
        tokens_per_second=99.0,
    )
    values: dict[str, Any] = {"rows": (1, 2, 8), "step_ms": (8.0, 9.0, 20.0), "choices": (choice,), "prompts": 3}
    values |= {"positions": 190, "plain_tokens_per_second": 80.0, "machine": here_(bundle)}
    return Tuning(**values | changes)


def test_what_is_written_is_read(bundle: Bundle) -> None:
    written = tuning(bundle)
    assert written.save(bundle) == bundle.path / "tune.json"
    assert read_tuning(bundle, here_(bundle)) == (written, None)
    assert load(bundle.path, threads=2).tuning == written
    assert not list(bundle.path.glob(".*"))
    assert written.choice("medusa") == written.choices[0]
    assert written.choice("hydra") is None


def test_without_a_file_nothing_is_said(bundle: Bundle) -> None:
    assert read_tuning(bundle, here_(bundle)) == (None, None)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Machine) if field.name != "backend"])
def test_another_machine_is_ignored_and_named(bundle: Bundle, field: str) -> None:
    """Another backend has a file of its own."""
    here = here_(bundle)
    other: Any = 99 if isinstance(getattr(here, field), int) else "another"
    tuning(bundle, machine=dataclasses.replace(here, **{field: other})).save(bundle)
    found, why = read_tuning(bundle, here_(bundle))
    assert found is None
    assert why is not None
    assert why.startswith(
        f"tune.json is ignored, it was made with {field} {other!r}, here {getattr(here, field)!r}"[:90]
    )
    assert why.endswith(f"; run: seqrt tune {bundle.path}")


def spoil(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        raw = json.loads(file.read_text())
        change(raw)
        file.write_text(json.dumps(raw))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(b"{"), "tune.json is ignored: Expecting property name"),
        (lambda file: file.write_bytes(b"\xff\xfe\x00"), "tune.json is ignored: "),
        (lambda file: file.write_bytes(b"[" * 100_000), "tune.json is ignored: "),
        (lambda file: file.write_bytes(b" " * (1 << 23)), "has 8388608 bytes, expected at most"),
        (spoil(lambda raw: raw.update(schema=9)), "has not schema 1"),
        (spoil(lambda raw: raw.pop("rows")), "lacks ['rows']"),
        (spoil(lambda raw: raw.update(extra=1)), "has unknown keys ['extra']"),
        (spoil(lambda raw: raw.update(step_ms=[1.0])), "rows are (1, 2, 8) for 1 times"),
        (spoil(lambda raw: raw.update(rows=[2, 1, 8])), "expected rising numbers"),
        (spoil(lambda raw: raw.update(rows=[1, 2, 1 << 40])), "expected rising numbers"),
        (spoil(lambda raw: raw.update(step_ms=[1.0, 0.0, 2.0])), "expected times above 0"),
        (spoil(lambda raw: raw["choices"][0].update(rows="3")), "rows is '3', expected int"),
    ],
)
def test_a_damaged_file_is_ignored_with_the_reason(
    bundle: Bundle, damage: Callable[[Path], object], message: str
) -> None:
    tuning(bundle).save(bundle)
    damage(bundle.path / "tune.json")
    found, why = read_tuning(bundle, here_(bundle))
    assert found is None
    assert why is not None
    assert message in why
    assert "\n" not in why
    assert load(bundle.path, threads=2).tuning is None


def test_a_bundle_that_cannot_be_written_says_so(bundle: Bundle) -> None:
    (bundle.path / "tune.json").mkdir()
    with pytest.raises(BundleError, match=r"^cannot write .*tune.json: Is a directory; copy the bundle elsewhere$"):
        tuning(bundle).save(bundle)
    assert not list(bundle.path.glob(".*"))


def test_relative_costs_lie_on_lines_between_those_measured(bundle: Bundle) -> None:
    expected = [1.0, 1.125, *(1.125 + (2.5 - 1.125) * part / 6 for part in range(1, 7))]
    assert tuning(bundle).relative == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tree", "changes", "exact", "plan"),
    [
        ("0 00", {}, True, Plan(None, 64)),  # the loop adapts: it cuts the drafter's own tree
        ("0 00", {"adaptive": False}, True, Plan("0 00", 3)),
        ("0 00", {"adaptive": False}, False, Plan("0 00", 3)),
        ("0 1", {"adaptive": False}, True, Plan("0 1", 3)),
        ("0 1", {"adaptive": False}, False, Plan(None, 64)),  # branches may change the text: only if asked for
        ("dynamic", {}, True, Plan("dynamic", 64)),
        ("dynamic", {}, False, Plan(None, 64)),
        ("dynamic", {"tree": "dynamic"}, False, Plan("dynamic", 64)),
        ("dynamic", {"adaptive": False, "max_rows": 9}, True, Plan("dynamic", 9)),
        ("0 00", {"adaptive": False, "tree": "0"}, True, Plan("0", 64)),
        (None, {"adaptive": False}, False, Plan(None, 3)),
        (None, {"max_rows": 5}, False, Plan(None, 5)),
    ],
)
def test_requests_come_first_and_then_what_was_tuned(
    tree: str | None, changes: dict[str, Any], exact: bool, plan: Plan, bundle: Bundle
) -> None:
    choice = dataclasses.replace(tuning(bundle).choices[0], tree=tree)
    assert Plan.of(Options(draft="medusa", **changes), choice, exact=exact) == plan


def test_without_tuning_a_plan_is_what_the_request_says() -> None:
    assert Plan.of(Options(tree="0", adaptive=False), None, exact=True) == Plan("0", 64)
    assert Plan.of(Options(max_rows=7), None, exact=False) == Plan(None, 7)


@pytest.mark.parametrize(
    ("tree", "chain"), [(None, True), ("0 00", True), ("0 1", False), ("dynamic", False), ("mc_sim_7b_63", False)]
)
def test_what_is_a_chain(tree: str | None, chain: bool) -> None:
    assert is_chain(tree) is chain


def test_choices_for_other_drafters_are_kept(bundle: Bundle) -> None:
    before = tuning(bundle)
    other = dataclasses.replace(before.choices[0], draft="lookup", tree=None)
    better = dataclasses.replace(before.choices[0], rows=5)
    now = tuning(bundle, choices=(other,)).with_others(before)
    assert [choice.draft for choice in now.choices] == ["lookup", "medusa"]
    assert tuning(bundle, choices=(better,)).with_others(before).choices == (better,)
