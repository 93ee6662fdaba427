"""What a loaded bundle, or loading one, refuses: one line that says what was wrong and what to do."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrt.errors import BundleError, EngineError, RequestError
from seqrt.runtime.backends import open_engines
from seqrt.runtime.model import Model, load


@pytest.fixture
def model(llama_bundle: Path) -> Model:
    return load(llama_bundle, threads=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"^the prompt is empty; give some text$"),
        (("",), r"^the prompt is empty; give some text$"),
        (("  \n",), r"^the prompt is empty; give some text$"),
        (([5] * 1024,), r"^the prompt has 1024 tokens, the bundle's capacity is 1024 with the answer; shorten it or"),
        (([5] * 3000,), r"^the prompt has 3000 tokens"),
        (([5, 272],), r"^the prompt has token 272; ids are whole numbers from 0 to 271$"),
        (([5, 6.0],), r"^the prompt has token 6\.0; ids are whole numbers from 0 to 271$"),
        (([5, True],), r"^the prompt has token True; ids are whole numbers from 0 to 271$"),
        (([5, np.True_],), r"^the prompt has token (np\.)?True_?; ids are whole numbers from 0 to 271$"),
        (([5, None],), r"^the prompt has token None; ids are whole numbers from 0 to 271$"),
        (([5, np.int32(-7)],), r"^the prompt has token -7; ids are whole numbers from 0 to 271$"),
        (([5, -1],), r"^the prompt has token -1; ids are whole numbers from 0 to 271$"),
    ],
)
def test_prompts_that_cannot_be_served(model: Model, arguments: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.generate(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"draft": "hydra"},
            r"^--draft hydra is not in this bundle; choose one of none, lookup, recycling, corpus, medusa$",
        ),
        ({"draft": "lookup", "tree": "0 1"}, r"^--tree is of no use to --draft lookup; choose --draft recycling or"),
        ({"tree": "0 1"}, r"^--tree is of no use to --draft none; choose --draft recycling or medusa"),
        ({"draft": "medusa", "tree": "no_such"}, r"^--tree 'no_such': no tree is called 'no_such'"),
        ({"draft": "medusa", "tree": "00"}, r"^--tree '00': path 00 of the tree has no parent before it"),
        (
            {"draft": "medusa", "tree": "0 12."},
            r"^--tree '0 12\.': the tree asks for candidate 12 of a draft head, which gives 10",
        ),
        ({"accept": "reject", "temperature": 1.0}, r"--accept"),
        ({"accept": "greedy", "temperature": 1.0}, r"^--accept greedy goes with --temperature 0"),
        ({"logit_bias": {272: 1.0}}, r"^--logit-bias names token 272; the vocabulary has ids 0 to 271$"),
        ({"max_new_tokens": 0}, r"^--max-new-tokens is 0; give 1 or more$"),
        ({"min_new_tokens": -1}, r"^--min-new-tokens is -1; give 0 or more$"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, r"^--min-new-tokens is 9, above --max-new-tokens, 8; raise that$"),
        ({"max_new_tokens": 2.5}, r"^--max-new-tokens is 2\.5; give a whole number$"),
        ({"min_new_tokens": True}, r"^--min-new-tokens is True; give a whole number$"),
        ({"stop_ids": (3, -2)}, r"^--stop-ids is -2; ids are whole numbers from 0 to 271$"),
        ({"stop_ids": (np.int64(272),)}, r"^--stop-ids is 272; ids are whole numbers from 0 to 271$"),
        ({"stop_ids": (3.0,)}, r"^--stop-ids is 3\.0; ids are whole numbers from 0 to 271$"),
        ({"stop": "end"}, r"^--stop is 'end'; give a tuple of texts, of one too$"),
        ({"top_k": float("inf")}, r"^--top-k is inf; give a whole number from 0 \(off\)$"),
        ({"seed": 1.5}, r"^--seed is 1\.5; give a whole number from 0 to 2\*\*64 - 1$"),
        ({"logit_bias": {3.5: 1.0}}, r"^--logit-bias is for token 3\.5; give whole numbers as token ids$"),
        ({"max_rows": 0}, r"^--max-rows is 0; give 1 or more$"),
        ({"posterior_threshold": float("nan")}, r"^--posterior-threshold is nan; give more than 0 and at most 1$"),
        ({"posterior_alpha": 0.0}, r"^--posterior-alpha is 0.0; give more than 0 and at most 1$"),
        ({"accept": "best"}, r"^--accept is 'best'; choose one of greedy, match, reject, typical$"),
        ({"stop": ("",)}, r"^--stop is empty; give the text to stop at$"),
        ({"temperature": -1.0}, r"^--temperature is -1.0; give 0 \(greedy\) or 0.001 or more$"),
        ({"temperature": float("nan")}, r"^--temperature is nan"),
    ],
)
def test_options_that_cannot_be_served(model: Model, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.generate([5, 6], **changes)


def test_conversations_that_cannot_be_served(model: Model, mistral_bundle: Path) -> None:
    with pytest.raises(RequestError, match=r"^the prompt is empty; give some text$"):
        model.chat([{"role": "user", "content": " "}])
    with pytest.raises(RequestError, match=r"^the conversation has no messages; give at least one from the user$"):
        model.chat([])
    for message in ({"role": "user"}, "hi", {"role": "user", "content": 3}):
        with pytest.raises(RequestError, match=r"^message 0 is .*; give an object with the strings 'role' and"):
            model.chat([message])  # type: ignore[list-item]
    plain = load(mistral_bundle, threads=1)
    with pytest.raises(RequestError, match="has no chat template; use --raw prompts"):
        plain.chat([{"role": "user", "content": "hi"}])
    with pytest.raises(RequestError, match="has no tokenizer; give the prompt as token ids"):
        plain.generate("hi")
    with pytest.raises(RequestError, match="has no tokenizer"):
        plain.score("hi there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tpu"}, r"^--backend tpu is unknown; choose one of cpu"),
        ({"threads": -1}, r"^--threads is -1; give 0 \(one a core\) or more$"),
    ],
)
def test_loads_that_cannot_be_served(llama_bundle: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load(llama_bundle, **arguments)


def test_loading_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path)


def test_heads_of_a_kind_that_this_version_does_not_know(model: Model) -> None:
    manifest = model.bundle.manifest
    (head,) = manifest.heads
    manifest = dataclasses.replace(manifest, heads=(dataclasses.replace(head, kind="eagle"),))
    bundle = dataclasses.replace(model.bundle, manifest=manifest)
    newer = Model(bundle, open_engines(bundle, "cpu", 1))
    with pytest.raises(BundleError, match="heads medusa of kind 'eagle', this seqrt knows medusa, hydra; upgrade"):
        newer.generate([5, 6], draft="medusa")


def test_what_is_closed_says_so(llama_bundle: Path) -> None:
    with load(llama_bundle, threads=1) as model:
        model.generate([5, 6], max_new_tokens=1)
    for use in (model.generate, model.score):
        with pytest.raises(EngineError, match=f"{llama_bundle} was closed; load it again"):
            use([5, 6])
