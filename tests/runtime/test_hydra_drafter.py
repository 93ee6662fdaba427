"""Hydra drafting on an exported model: trees as the authors' algorithm makes them from transformers' hidden states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from seqrt.errors import RequestError
from seqrt.exporter.export import export
from seqrt.runtime.drafters.hydra import HydraDrafter
from seqrt.runtime.generate import Loop
from seqrt.runtime.model import Model, load
from seqrt.runtime.options import Options
from seqrt.runtime.tree import Template

TEMPLATE = "0 00 1 000 01 10 11 001"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def model(hydra_bundle: Path) -> Model:
    return load(hydra_bundle, threads=1)


def states(llama: Any, tokens: list[int], name: str, tensors: Tensors) -> Any:
    """The state `[H]` that the heads read after `tokens`: an inner layer's, or what the prefix layer makes of it."""
    with torch.no_grad():
        outputs = llama.model(torch.tensor([tokens]), output_hidden_states=True)
        if name == "hydra":
            return outputs.hidden_states[-2][0, -1]
        prefix = transformers.LlamaModel(transformers.LlamaConfig(**{**llama.config.to_dict(), "num_hidden_layers": 1}))
        weights = {
            key.removeprefix("prefix_embeding_layer."): value
            for key, value in tensors.items()
            if key.startswith("prefix_embeding_layer.")
        }
        prefix.load_state_dict(weights, strict=False)
        return prefix.eval()(inputs_embeds=outputs.last_hidden_state).last_hidden_state[0, -1]


def guesses(llama: Any, tensors: Tensors, state: torch.Tensor, path: list[int]) -> torch.Tensor:
    """Log-probabilities of head i after a path of i + 1 tokens, written as the authors' modules compute them."""
    embedding, head = llama.get_input_embeddings().weight, len(path) - 1
    x = torch.cat([state, *(embedding[token] for token in path)])
    places = sorted({int(key.split(".")[2]) for key in tensors if key.startswith(f"hydra_mlp.{head}.")})
    block = f"hydra_mlp.{head}.{places[0]}"

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(value, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    y = linear(f"{block}.res_connection", x) + torch.nn.functional.silu(linear(f"{block}.linear", x))
    for place in places[1:]:
        y = y + torch.nn.functional.silu(linear(f"hydra_mlp.{head}.{place}.linear", y))
    output = next(key.removesuffix(".weight") for key in tensors if key.startswith(f"hydra_lm_head.{head}."))
    return linear(output, y).log_softmax(0)


def drafted(drafter: HydraDrafter, root: int) -> set[tuple[int, ...]]:
    tree = drafter.propose(root, 64).tree
    return {tuple(tree.tokens[tree.ancestors[node]].tolist()) for node in range(tree.num_nodes)}


@pytest.mark.parametrize("name", ["hydra", "hydra++"])
def test_trees_are_those_of_the_authors_algorithm(
    model: Model, llama: Any, hydra_tensors: dict[str, Tensors], name: str
) -> None:
    """After the prompt, and again after some steps, be they plain or drafted."""
    tensors, template = hydra_tensors[name], Template.parse(TEMPLATE)
    prompt = model.encode("the rest of the string in the tool")
    seen = []
    loop_step = Loop._step

    def step(loop: Loop, history: Any) -> list[int]:
        drafter = loop.drafter
        assert isinstance(drafter, HydraDrafter)
        seen.append((list(history.tokens), drafted(drafter, history.tokens[-1])))
        return loop_step(loop, history)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", step)
        model.generate(prompt, draft=name, tree=TEMPLATE, max_new_tokens=8, ignore_eos=True)
        model.generate([*prompt, *prompt[:5]], draft=name, tree=TEMPLATE, max_new_tokens=4, ignore_eos=True)
    assert len(seen) >= 6
    for tokens, found in seen:
        state = states(llama, tokens[:-1], name, tensors)
        expected: set[tuple[int, ...]] = {(tokens[-1],)}
        nodes: dict[tuple[int, ...], list[int]] = {(): [tokens[-1]]}
        for path in template.paths:
            above = nodes[path[:-1]]
            best = guesses(llama, tensors, state, above).argsort(descending=True)
            nodes[path] = [*above, int(best[path[-1]])]
            expected.add(tuple(nodes[path]))
        assert found == expected


@pytest.mark.parametrize("name", ["hydra", "hydra++"])
def test_text_is_that_of_plain_decoding(
    model: Model, llama: Any, continuation: Callable[[Any, list[int], int], list[int]], name: str
) -> None:
    prompt = model.encode("to the start of the list")
    expected = continuation(llama, prompt, 48)
    dynamic = {"tree": "dynamic", "adaptive": False}
    for options in ({"adaptive": False}, {"adaptive": True}, {"tree": "0 00 000"}, dynamic):
        made = model.generate(prompt, draft=name, max_new_tokens=48, ignore_eos=True, **options)
        assert made.token_ids == expected


@pytest.mark.parametrize("count", [2, 5, 16, 40])
def test_dynamic_trees_are_the_most_probable_nodes(
    model: Model, llama: Any, hydra_tensors: dict[str, Tensors], count: int
) -> None:
    """Against every path of three heads with ten candidates each, although few of them are ever computed."""
    prompt = model.encode("the tool in the list")
    model.generate(prompt, draft="hydra", tree="dynamic", max_new_tokens=1, ignore_eos=True)
    drafter = model.drafter(Options(draft="hydra", tree="dynamic"))
    assert isinstance(drafter, HydraDrafter)
    proposal = drafter.propose(9, count)
    state, scores = states(llama, prompt, "hydra", hydra_tensors["hydra"]), []
    level = [([9], 1.0)]
    for _ in range(3):
        below = []
        for path, probability in level:
            top = guesses(llama, hydra_tensors["hydra"], state, path).exp().topk(10)
            for token, share in zip(top.indices.tolist(), top.values.tolist(), strict=True):
                below.append(([*path, token], probability * min(share, 0.99)))
        level = sorted(below, key=lambda node: -node[1])[:count]
        scores += [probability for _, probability in level]
    expected = [1.0, *sorted(scores, reverse=True)][:count]
    np.testing.assert_allclose(proposal.probability, expected, rtol=1e-3)


def test_a_prefix_that_another_drafter_answered_is_left_out(model: Model) -> None:
    """Rows that were decoded without the prefix layer are not in its cache: it goes on without them."""
    prompt = model.encode("one and two")
    plain = model.generate(prompt, max_new_tokens=16, ignore_eos=True)
    longer = [*prompt, *plain.token_ids]
    expected = model.generate(longer, max_new_tokens=16, ignore_eos=True).token_ids
    model.forget()
    model.generate(prompt, max_new_tokens=16, ignore_eos=True)
    assert model.generate(longer, draft="hydra++", max_new_tokens=16, ignore_eos=True).token_ids == expected


@pytest.mark.parametrize("asked", [1, 20])
def test_a_prefix_goes_on_over_turns(hydra_bundle: Path, asked: int) -> None:
    """Rows of an answer's last step wait when the next turn begins; the state is as if all were told anew."""

    def state(model: Model, prompt: list[int]) -> Any:
        model.generate(prompt, draft="hydra++", max_new_tokens=1, ignore_eos=True)
        drafter = model.drafter(Options(draft="hydra++"))
        assert isinstance(drafter, HydraDrafter)
        assert drafter._prefix is not None
        return drafter._prefix.state().copy()

    model, fresh = load(hydra_bundle, threads=1), load(hydra_bundle, threads=1)
    prompt = model.encode("one and two")
    answer = model.generate(prompt, draft="hydra++", max_new_tokens=asked, ignore_eos=True, adaptive=False)
    longer = [*prompt, *answer.token_ids, *model.encode("and three")]
    for text in (longer, prompt[:-1], [*prompt[:-1], 9, 8]):  # and back to a part of it
        np.testing.assert_allclose(state(model, text), state(fresh, text), atol=1e-4)
        fresh.forget()
        fresh.forget(learnt=True)
        fresh._drafters.clear()


def test_a_head_that_was_slow_once_is_tried_again(model: Model) -> None:
    model.generate("the tool", draft="hydra", tree=TEMPLATE, max_new_tokens=4, raw=True, adaptive=False)
    drafter = model.drafter(Options(draft="hydra", tree=TEMPLATE))
    assert isinstance(drafter, HydraDrafter)
    drafter._seconds = [1.0, 0.0, 0.0]
    sizes = [drafter.propose(5, 64, rate=2.0).tree.num_nodes for _ in range(300)]
    assert sizes[0] == 1
    assert sizes[-1] > 1


def test_deeper_heads_run_only_while_they_pay(model: Model) -> None:
    model.generate("the tool", draft="hydra", tree=TEMPLATE, max_new_tokens=4, raw=True, adaptive=False)
    drafter = model.drafter(Options(draft="hydra", tree=TEMPLATE))
    assert isinstance(drafter, HydraDrafter)
    assert drafter.propose(5, 64).tree.num_nodes == 9
    assert drafter.propose(5, 64, rate=1e9).tree.num_nodes == 1
    drafter._seconds = [0.0, 1.0, 1.0]
    assert drafter.propose(5, 64, rate=0.999).tree.depth.max() == 1
    drafter._seconds = [1e-9, 1e-9, 1e-9]
    assert drafter.propose(5, 64, rate=1.0, prices=[0.9] * 8).tree.num_nodes == 1  # no node would be verified
    assert drafter.propose(5, 64, rate=1.0, prices=[1e-9] * 8).tree.num_nodes == 9
    assert np.isclose(drafter.propose(5, 4).probability[0], 1)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("0 00 000 0000", "the tree is 4 deep but there are 3 draft heads"),
        ("1", "the tree has path 1 without 0; add it before"),
        ("0 1 10", "the tree goes on from path 1 but not from 0, which is more probable; add 00"),
    ],
)
def test_trees_that_hydra_refuses(model: Model, tree: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.generate("the tool", draft="hydra", tree=tree, raw=True)


@pytest.mark.slow
def test_quantised_heads_share_the_embedding(llama: Any, hydra_tensors: dict[str, Tensors], tmp_path: Path) -> None:
    """Graphs are checked against torch with the rounded weights; the text stays the plain one's."""
    llama.save_pretrained(tmp_path / "source")
    torch.save(hydra_tensors["hydra"], tmp_path / "hydra_lm_head.pt")
    sizes = {}
    for name, heads in (("without", {}), ("with", {"hydra": tmp_path / "hydra_lm_head.pt"})):
        report = export(tmp_path / "source", tmp_path / name, heads=heads, quantize="int8")
        sizes[name] = (tmp_path / name / "graphs" / "weights.bin").stat().st_size
    assert {"hydra.0", "hydra.1", "hydra.2"} <= report.differences.keys()
    own = sum(value.numel() for name, value in hydra_tensors["hydra"].items() if name.endswith("weight"))
    page, tensors = 4096, 3 * 6
    assert sizes["with"] - sizes["without"] < own * 36 / 32 + page * tensors
    quantised = load(tmp_path / "with", threads=1)
    prompt = list(range(3, 20))
    plain = quantised.generate(prompt, max_new_tokens=24, ignore_eos=True)
    drafted = quantised.generate(prompt, draft="hydra", adaptive=False, max_new_tokens=24, ignore_eos=True)
    assert drafted.token_ids == plain.token_ids
