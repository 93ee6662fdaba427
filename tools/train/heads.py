"""Draft heads over a reduced vocabulary: what they compute, their loss, and how often they are right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, cast

import torch
from tools.train.answers import Answer
from tools.train.base import LlamaShape
from tools.train.features import Rows
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel

TOP_RANKS = 10
"""Ranks of a head's guesses that are measured: as many as a static tree branches into."""


class MedusaHeads(nn.Module):
    """Residual blocks on the base's state (arXiv 2401.10774), before the shared output layer."""

    def __init__(self, num_heads: int, num_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_layers)) for _ in range(num_heads)
        )
        for parameter in self.parameters():
            if parameter.ndim == 2:  # at the start a head says what the base says
                nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor, path: Tensor, head: int) -> Tensor:
        """States ``[N, H]`` of the base -> states ``[N, H]`` of one head; it does not know the ``path``."""
        state = hidden
        for layer in cast("nn.ModuleList", self.blocks[head]):
            state = state + functional.silu(layer(state))
        return state

    def config(self) -> dict[str, object]:
        """What config.json says of them."""
        num_layers = len(cast("nn.ModuleList", self.blocks[0]))
        return {"model_type": "medusa", "num_heads": len(self.blocks), "num_layers": num_layers}

    def tensors(self) -> dict[str, Tensor]:
        """The weights in the layout that vLLM reads."""
        state = self.state_dict()
        return {re.sub(r"blocks\.(\d+)\.", r"blocks.\1.layers.", name): value for name, value in state.items()}


class HydraHeads(nn.Module):
    """Blocks on the base's state and the embeddings of the path so far (arXiv 2402.05109), before the output layer."""

    def __init__(self, num_heads: int, num_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for head in range(num_heads):
            width = (head + 2) * hidden_size
            linear, straight = nn.Linear(width, hidden_size), nn.Linear(width, hidden_size)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(straight.weight)
            nn.init.zeros_(straight.bias)
            with torch.no_grad():  # at the start a head says what the base says
                straight.weight[:, :hidden_size] = torch.eye(hidden_size)
            later = [nn.Linear(hidden_size, hidden_size) for _ in range(num_layers - 1)]
            for layer in later:
                nn.init.zeros_(layer.weight)
            self.blocks.append(nn.ModuleList([linear, straight, *later]))

    def forward(self, hidden: Tensor, path: Tensor, head: int) -> Tensor:
        """States of one head.

        Args:
            hidden: States of the base ``[N, H]``.
            path: Embeddings ``[N, head + 1, H]`` of the tokens that follow each position.
            head: Which one.
        """
        linear, straight, *later = cast("nn.ModuleList", self.blocks[head])
        x = torch.cat((hidden, path.flatten(1)), dim=1)
        state: Tensor = straight(x) + functional.silu(linear(x))
        for layer in later:
            state = state + functional.silu(layer(state))
        return state

    def config(self) -> dict[str, object]:
        """What config.json says of them, in the authors' words."""
        num_layers = len(cast("nn.ModuleList", self.blocks[0])) - 1
        return {
            "hydra_head_arch": "mlp",
            "hydra_num_heads": len(self.blocks),
            "hydra_num_layers": num_layers,
            "grounded_heads": True,
            "hidden_state_offset": 0,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The weights in the authors' layout, without what the base has."""
        found = {}
        for name, value in self.blocks.state_dict().items():
            head, place, kind = name.split(".")
            block = {"0": "0.linear", "1": "0.res_connection"}.get(place, f"{int(place) - 1}.linear")
            found[f"hydra_mlp.{head}.{block}.{kind}"] = value
        return found


class PrefixHydraHeads(HydraHeads):
    """Hydra++ (section 4): a decoder layer over the states of the whole text comes before the heads.

    Args:
        num_heads: As of :class:`HydraHeads`.
        num_layers: Likewise.
        shape: Of the base; the layer is one of the base's.
        inner_size: Width of its MLP.
    """

    def __init__(self, num_heads: int, num_layers: int, shape: LlamaShape, inner_size: int) -> None:
        hidden_size = shape.num_heads * shape.head_dim
        super().__init__(num_heads, num_layers, hidden_size)
        self.layer = LlamaModel(
            LlamaConfig(
                vocab_size=1,  # it embeds no tokens
                hidden_size=hidden_size,
                intermediate_size=inner_size,
                num_hidden_layers=1,
                num_attention_heads=shape.num_heads,
                num_key_value_heads=shape.num_kv_heads,
                head_dim=shape.head_dim,
                rms_norm_eps=shape.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
                max_position_embeddings=1 << 20,
                use_cache=False,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        for name, parameter in self.layer.named_parameters():
            if "o_proj" in name or "down_proj" in name:  # at the start the layer adds nothing
                nn.init.zeros_(parameter)

    def fit_norm(self, states: Sequence[Tensor]) -> None:
        """Let the norm behind the layer keep the size that states have, so that heads trained on these go on."""
        size = torch.cat([rows.float().square().mean(1).sqrt() for rows in states]).mean()
        nn.init.constant_(self.layer.norm.weight, float(size))

    def run(self, states: Sequence[Tensor]) -> Tensor:
        """States ``[length, H]`` of each text -> ``[texts, longest, H]``; rows past the end of a text mean nothing."""
        padded = nn.utils.rnn.pad_sequence([rows.float() for rows in states], batch_first=True)
        made: Tensor = self.layer(inputs_embeds=padded).last_hidden_state  # causal: what comes after is not seen
        return made

    @torch.inference_mode()
    def states(self, states: Sequence[Tensor]) -> list[Tensor]:
        """The layer's states of each text, one after the other."""
        return [self.run([rows])[0].half() for rows in states]

    def config(self) -> dict[str, object]:
        """What config.json says of them, in the authors' words."""
        return super().config() | {"hydra_head_arch": "prefix-mlp"}

    def tensors(self) -> dict[str, Tensor]:
        """The weights in the authors' layout (their spelling), without what the base has."""
        layer = {name: value for name, value in self.layer.state_dict().items() if not name.startswith("embed_tokens")}
        return super().tensors() | {f"prefix_embeding_layer.{name}": value for name, value in layer.items()}


Heads = MedusaHeads | HydraHeads
KINDS: Final[Mapping[str, type[MedusaHeads] | type[HydraHeads]]] = {"medusa": MedusaHeads, "hydra": HydraHeads}


def draft_vocabulary(answers: Sequence[Answer], size: int) -> Tensor:
    """The ``size`` most frequent tokens of the answers, in falling order; ties by the prompts, then by id."""
    said = Counter(token for answer in answers for token in answer.answer)
    read = Counter(token for answer in answers for token in answer.prompt)
    ranked = sorted(said.keys() | read.keys(), key=lambda token: (-said[token], -read[token], token))
    return torch.tensor(ranked[:size])


def draft_labels(future: Tensor, token_map: Tensor, vocab_size: int) -> Tensor:
    """Token ids ``[N, K]`` as indices into ``token_map``; -1 stays, a token outside the map becomes -2."""
    index = torch.full((vocab_size + 1,), -2)
    index[token_map] = torch.arange(len(token_map))
    index[-1] = -1
    return index[future]


def loss(state: Tensor, labels: Tensor, output: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Cross-entropy of one head's states.

    Args:
        state: ``[N, H]``.
        labels: Tokens ``[N]`` of the draft vocabulary.
        output: Output rows of the draft vocabulary ``[Vd, H]``.
        teacher: The base's own states ``[N, H]`` where it chose these tokens: what it thought of all the others counts
            too, and the labels do not (Hydra++, section 4).
    """
    logits = functional.linear(state.to(output.dtype), output).float()
    if teacher is None:
        return functional.cross_entropy(logits, labels)
    with torch.no_grad():
        target = functional.linear(teacher.to(output.dtype), output).float().softmax(1)
    return functional.cross_entropy(logits, target)


@torch.inference_mode()
def rank_accuracy(heads: Heads, rows: Rows, labels: Tensor, output: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """How often the guess of each rank is right, and the rank of the right token at every position.

    Returns:
        Shares ``[K, TOP_RANKS]`` of the positions at which the answer goes on that far (a token outside the
        draft vocabulary counts as missed), and ranks ``[N, K]``, TOP_RANKS where missed or past the end.
    """
    ranks = torch.full(labels.shape, TOP_RANKS)
    for part in torch.split(torch.arange(len(labels)), 1024):
        for k in range(labels.shape[1]):
            state = heads(rows.hidden[part].float(), rows.path(part, k, embedding), k)
            top = functional.linear(state.to(output.dtype), output).topk(TOP_RANKS).indices
            hit = top == labels[part, k, None]
            ranks[part, k] = torch.where(hit.any(-1), hit.to(torch.int8).argmax(-1), TOP_RANKS)
    inside = (labels != -1).sum(0)
    counts = torch.stack([(ranks == rank).sum(0) for rank in range(TOP_RANKS)], dim=1)
    return counts / inside[:, None], ranks
