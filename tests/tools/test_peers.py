import io
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from tools.bench.peers.__main__ import main
from tools.bench.peers.client import Client, PeerError, Variant
from tools.bench.peers.measure import Facts, Measurement, Run, measure
from tools.bench.peers.report import document, markdown, summarise
from tools.bench.peers.variants import REFERENCE, chosen, peer_variants, seqrt_variants
from tools.bench.peers.worker import Generation, mean_nll, peak_bytes, serve, timed

FAKE = """
import os, sys, time
from tools.bench.peers.worker import Generation

class Fake:
    version = "fake 1"
    def __init__(self, options):
        self.options = options
    def generate(self, token_ids, max_new_tokens):
        print("a library's chatter on standard output")
        if self.options.get("die_on") in token_ids:
            print("last words", file=sys.stderr, flush=True)
            os._exit(7)
        if self.options.get("raise_on") in token_ids:
            raise ValueError("cannot do that\\nwith details")
        if self.options.get("sleep"):
            time.sleep(self.options["sleep"])
        step = self.options.get("step", 1)
        tokens = [token_ids[-1] + step * (index + 1) for index in range(max_new_tokens)]
        return Generation(tokens, 0.25, 0.25 + (max_new_tokens - 1) / self.options["rate"])
    def score(self, token_ids):
        if self.options.get("unscored"):
            raise RuntimeError("no logits")
        return 2.0

def load(options):
    if options.get("missing"):
        raise ImportError("No module named 'peer'")
    return Fake(options)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_peer.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def variant(name: str, plain: str | None = None, note: str = "", **options: Any) -> Variant:
    settings = {"threads": 1, "rate": 10.0, **options}
    return Variant(name=name, python=Path(sys.executable), module="fake_peer", options=settings, plain=plain, note=note)


def measured(variants: list[Variant], tmp_path: Path, repeats: int = 2) -> Measurement:
    return measure(
        variants,
        [[1, 2], [3, 4]],
        [1, 2, 3],
        max_new_tokens=5,
        repeats=repeats,
        logs=tmp_path / "logs",
        progress=lambda line: None,
    )


class TestWorker:
    def serve(self, requests: list[dict[str, Any]], module: str = "fake_in_process") -> list[dict[str, Any]]:
        answers = io.StringIO()
        serve(module, {}, [json.dumps(request) for request in requests], answers)
        return [json.loads(line) for line in answers.getvalue().splitlines()]

    @pytest.fixture
    def peer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "fake_in_process.py").write_text(FAKE)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "fake_in_process", raising=False)

    def test_greets_with_its_version_and_answers_in_order(self, peer: None) -> None:
        ready, scored, memory = self.serve([{"op": "score", "token_ids": [1, 2]}, {"op": "memory"}])
        assert ready["version"] == "fake 1"
        assert ready["load_s"] >= 0
        assert scored == {"mean_nll": 2.0}
        assert memory["peak_bytes"] > 1_000_000

    def test_an_unknown_request_is_an_answer_and_not_the_end(self, peer: None) -> None:
        _, unknown, scored = self.serve([{"op": "fly"}, {"op": "score", "token_ids": [1, 2]}])
        assert unknown == {"error": "ValueError: unknown request 'fly'; known: generate, score, memory"}
        assert scored == {"mean_nll": 2.0}

    def test_a_peer_that_is_not_installed_says_so_and_stops(self) -> None:
        assert self.serve([{"op": "memory"}], "no_such_peer") == [
            {"error": "ModuleNotFoundError: No module named 'no_such_peer'"}
        ]

    def test_timed_stops_at_the_limit_or_after_end_of_sequence(self) -> None:
        start_s = time.perf_counter()
        limited = timed(iter(range(10, 100)), 3, [2], start_s)
        assert limited.token_ids == [10, 11, 12]
        assert timed(iter([5, 2, 9]), 8, [2], start_s).token_ids == [5, 2]
        assert 0 < limited.first_s <= limited.total_s

    def test_mean_nll_is_that_of_the_softmax(self) -> None:
        probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
        logits = (np.log(probabilities) + np.array([[7.0], [-3.0]])).astype(np.float32)
        assert mean_nll(logits, [1, 2]) == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2, rel=1e-6)

    def test_mean_nll_refuses_rows_without_a_target(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            mean_nll(np.zeros((3, 4), np.float32), [0, 1])

    def test_peak_grows_with_what_is_held(self) -> None:
        before = peak_bytes()
        held = np.ones(before // 8 + 8_000_000)  # more than everything until now
        assert peak_bytes() > before
        assert held[-1] == 1


@pytest.mark.usefixtures("fake")
class TestClient:
    def test_chatter_on_standard_output_does_not_reach_the_protocol(self, tmp_path: Path) -> None:
        with Client(variant("a"), tmp_path / "log") as client:
            answer = client.ask(op="generate", token_ids=[1, 5], max_new_tokens=2)
        assert Generation(**answer) == Generation([6, 7], 0.25, 0.35)
        assert "chatter" in (tmp_path / "log").read_text()
        assert client.process.returncode == 0

    def test_a_failed_load_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(PeerError, match=r"^a: ImportError: No module named 'peer'$"):
            Client(variant("a", missing=True), tmp_path / "log")

    def test_an_error_is_one_line_and_the_worker_lives_on(self, tmp_path: Path) -> None:
        with Client(variant("a", raise_on=9), tmp_path / "log") as client:
            with pytest.raises(PeerError, match=r"^a: ValueError: cannot do that$"):
                client.ask(op="generate", token_ids=[9], max_new_tokens=2)
            assert client.ask(op="score", token_ids=[1, 2]) == {"mean_nll": 2.0}

    def test_a_crash_gives_the_exit_code_and_the_last_words(self, tmp_path: Path) -> None:
        with Client(variant("a", die_on=9), tmp_path / "log") as client:
            with pytest.raises(PeerError, match=r"^a: ended with exit code 7: last words$"):
                client.ask(op="generate", token_ids=[9], max_new_tokens=2)
            with pytest.raises(PeerError, match="exit code 7"):
                client.ask(op="memory")

    def test_a_hanging_worker_is_given_up(self, tmp_path: Path) -> None:
        with Client(variant("a", sleep=1.5), tmp_path / "log") as client:
            client.timeout_s = 0.1
            with pytest.raises(PeerError, match=r"^a: no answer in 0 s$"):
                client.ask(op="generate", token_ids=[1], max_new_tokens=2)

    def test_a_missing_interpreter_is_named(self, tmp_path: Path) -> None:
        missing = Variant(name="a", python=tmp_path / "python", module="fake_peer", options={"threads": 1})
        with pytest.raises(PeerError, match=r"^a: cannot start .*/python: No such file or directory$"):
            Client(missing, tmp_path / "log")


@pytest.mark.usefixtures("fake")
class TestMeasure:
    def test_every_prompt_meets_every_peer_before_the_next(self, tmp_path: Path) -> None:
        result = measured([variant("a"), variant("b")], tmp_path)
        order = [(run.repeat, run.prompt) for run in result.runs]
        assert order == sorted(order)
        assert [run.variant for run in result.runs] == ["a", "b", "b", "a", "a", "b", "b", "a"]
        assert result.failures == {}

    def test_a_peer_that_dies_is_left_out_and_the_others_go_on(self, tmp_path: Path) -> None:
        result = measured([variant("a"), variant("b", die_on=3), variant("c", missing=True)], tmp_path)
        assert {run.variant for run in result.runs} == {"a"}
        assert len(result.runs) == 4
        assert result.failures == {
            "b": "b: ended with exit code 7: last words",
            "c": "c: ImportError: No module named 'peer'",
        }

    def test_a_peer_without_perplexity_keeps_its_speed(self, tmp_path: Path) -> None:
        result = measured([variant("a", unscored=True)], tmp_path, repeats=1)
        assert result.facts["a"].mean_nll is None
        assert result.failures == {"a, perplexity": "a: RuntimeError: no logits"}
        assert "| a | 10.0 |" in markdown(result, "a", {})


def example() -> Measurement:
    def run(name: str, prompt: int, repeat: int, rate: float, last: int = 3) -> Run:
        return Run(name, prompt, repeat, [1, 2, last], 0.1, 0.1 + 2 / rate)

    runs = [
        run("plain", 0, 0, 10), run("plain", 1, 0, 20), run("plain", 0, 1, 10),
        run("draft", 0, 0, 30), run("draft", 1, 0, 20, last=9), run("draft", 0, 1, 20),
    ]  # fmt: skip
    facts = {
        "plain": Facts("library 1", 0.5, 100_000_000, math.log(25)),
        "draft": Facts("library 1", 1.5, 200_000_000, None),
    }
    variants = [variant("plain"), variant("draft", plain="plain", note="drafts two"), variant("gone")]
    return Measurement(variants, runs, facts, {"gone": "gone: no such file"})


class TestReport:
    def test_medians_and_paired_ratios(self) -> None:
        plain, draft = summarise(example(), "plain")
        assert plain.tokens_per_second == pytest.approx(10)
        assert plain.ratio == 1
        assert plain.same_text is None
        assert draft.tokens_per_second == pytest.approx(20)
        assert draft.ratio == pytest.approx(2)  # of 3, 1 and 2; the ratio of the medians would be 2, too
        assert draft.same_text == pytest.approx(2 / 3)
        assert plain.perplexity == pytest.approx(25)

    def test_ratios_pair_the_same_prompt_and_repeat(self) -> None:
        runs = [Run(name, prompt, 0, [1, 2], 0.0, 1 / rate) for name, prompt, rate in [
            ("a", 0, 1.0), ("a", 1, 10.0), ("a", 2, 100.0), ("b", 0, 5.0), ("b", 1, 20.0), ("b", 2, 100.0),
        ]]  # fmt: skip
        facts = {name: Facts("v", 0.0, 0, None) for name in "ab"}
        rows = summarise(Measurement([variant("a"), variant("b")], runs, facts, {}), "a")
        assert rows[1].ratio == pytest.approx(2)  # of 5, 2 and 1

    def test_table(self) -> None:
        assert markdown(example(), "plain", {"model": "m.gguf", "threads": 2}) == (
            "| peer | tok/s | × plain | first token, ms | memory, MB | perplexity | same text | load, s |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
            "| plain | 10.0 | 1.00 | 100 | 100 | 25.00 | – | 0.5 |\n"
            "| draft | 20.0 | 2.00 | 100 | 200 | – | 67% | 1.5 |\n"
            "\n"
            "model m.gguf, threads 2.\n"
            "Versions: library 1.\n"
            "draft: drafts two.\n"
            "gone: not measured (gone: no such file).\n"
        )

    def test_document_is_strict_json_without_the_reference_too(self) -> None:
        result = json.loads(json.dumps(document(example(), "absent", {"threads": 2}), allow_nan=False))
        assert [row["ratio"] for row in result["rows"]] == [None, None]
        assert [row["name"] for row in result["rows"]] == ["plain", "draft"]
        assert result["runs"][0] == {
            "name": "plain", "prompt": 0, "repeat": 0, "new_tokens": 3, "first_s": 0.1,
            "total_s": pytest.approx(0.3), "token_ids": [1, 2, 3],
        }  # fmt: skip
        assert result["failures"] == {"gone": "gone: no such file"}

    def test_a_single_token_has_no_decoding_rate(self) -> None:
        assert math.isnan(Run("a", 0, 0, [2], 0.1, 0.1).tokens_per_second)


COMMON = {"threads": 2, "capacity": 64, "eos_token_ids": [2]}


class TestVariants:
    def test_drafting_variants_name_the_plain_one_they_must_repeat(self) -> None:
        rows = seqrt_variants(Path("python"), "int8", Path("bundle"), COMMON)
        rows += peer_variants(Path("python"), Path("m.gguf"), Path("build"), COMMON)
        names = [row.name for row in rows]
        assert names == [
            "seqrt int8", "seqrt int8 lookup", "seqrt int8 medusa", REFERENCE, f"{REFERENCE} lookup",
            "genai int4", "genai int8", "transformers fp32",
        ]  # fmt: skip
        for row in rows:
            drafts = row.options.get("lookup", 0) > 0 or row.options.get("draft", "none") != "none"
            assert drafts == (row.plain is not None)
            assert row.plain is None or row.plain in names
            assert row.options["threads"] == 2

    def test_only(self) -> None:
        rows = [variant("llama.cpp"), variant("llama.cpp lookup"), variant("genai int4")]
        assert [row.name for row in chosen(rows, ["lookup", "genai"])] == ["llama.cpp lookup", "genai int4"]
        assert chosen(rows, []) == rows
        with pytest.raises(ValueError, match=r"^--only vllm matches none of: llama.cpp, llama.cpp lookup, genai int4$"):
            chosen(rows, ["vllm"])


class TestCommand:
    def test_without_the_peers_environment_it_says_how_to_make_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(typer.Exit) as stopped:
            main(tmp_path / "m.gguf", python=tmp_path / "python")
        assert stopped.value.exit_code == 1
        assert capsys.readouterr().err == (
            f"Error: no interpreter at {tmp_path}/python: run `make peers` first (it compiles for ten minutes)\n"
        )

    def test_a_failed_preparation_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho noise >&2\necho OSError: the file is damaged >&2\nexit 1\n")
        python.chmod(0o755)
        with pytest.raises(typer.Exit):
            main(tmp_path / "m.gguf", python=python, folder=tmp_path / "build")
        assert capsys.readouterr().err.splitlines()[-1] == ("Error: prepare.py failed: OSError: the file is damaged")
