"""The model that learns lexical units: a Hugging Face decoder, an embedding for PAD, and LoRA on its projections."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from tools.lud.packing import IGNORED, Packed
from torch import Tensor, nn
from torch.nn import functional

PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class UnitModel(nn.Module):
    """A decoder that reads PADs too.

    Args:
        decoder: A causal language model of transformers with V tokens.
        rank: Of a new LoRA on its projections; 0 trains all of its weights, None none of them.

    Attributes:
        pad_row: What PAD, token V, is embedded as ``[H]``.
        pad: V.
    """

    def __init__(self, decoder: Any, rank: int | None) -> None:
        super().__init__()
        self.decoder, self.rank = decoder, rank
        weight = decoder.get_input_embeddings().weight
        self.pad = len(weight)
        self.pad_row = nn.Parameter(weight.detach().float().mean(0))
        decoder.requires_grad_(rank == 0)
        if rank:
            from peft import LoraConfig

            names = {name.rpartition(".")[2] for name, part in decoder.named_modules() if isinstance(part, nn.Linear)}
            targets = [name for name in PROJECTIONS if name in names]
            if not targets:
                raise ValueError(f"the base has none of the projections {', '.join(PROJECTIONS)}; use --rank 0")
            decoder.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        for parameter in self.trained():
            parameter.data = parameter.data.float()  # in half precision small steps would be rounded away

    def final_norm(self) -> Tensor:
        """The weight ``[H]`` of the norm before the output layer: by it a base is known again.

        Raises:
            ValueError: There is none that we know.
        """
        inner = self.decoder.base_model
        norm = getattr(inner, "norm", None) or getattr(inner, "ln_f", None)
        if norm is None:
            raise ValueError(f"the base, {type(self.decoder).__name__}, has no final norm; seqrt exports none such")
        weight: Tensor = norm.weight.detach().float().clone()
        return weight

    def trained(self) -> nn.ParameterList:
        """What is trained."""
        return nn.ParameterList(parameter for parameter in self.parameters() if parameter.requires_grad)

    def hidden(self, ids: Tensor, positions: Tensor, sees: Tensor) -> Tensor:
        """Final hidden states ``[S, H]`` of rows as :class:`Packed` has them."""
        table = self.decoder.get_input_embeddings()
        rows = table(ids.clamp(max=self.pad - 1))
        scaled = self.pad_row * getattr(table, "embed_scale", 1.0)
        rows = torch.where((ids == self.pad)[:, None], scaled.to(rows.dtype), rows)
        mask = torch.where(sees, 0.0, torch.finfo(rows.dtype).min).to(rows.dtype)[None, None]
        with torch.autocast("cpu", rows.dtype, enabled=rows.dtype != torch.float32):
            out = self.decoder.base_model(
                inputs_embeds=rows[None], attention_mask=mask, position_ids=positions[None], use_cache=False
            )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """``[R, H]`` to float32 ``[R, V]``; where the tables are tied ``[R, V + 1]``, so that PAD is never said."""
        weight = self.decoder.get_output_embeddings().weight
        if weight is self.decoder.get_input_embeddings().weight:
            weight = torch.cat((weight, self.pad_row[None].to(weight.dtype)))
        return functional.linear(hidden.to(weight.dtype), weight).float()

    @torch.no_grad()
    def base_log_probabilities(self, packed: Packed) -> Tensor:
        """What the base says, ``[N, V]``, at the N rows that learn ordinary decoding."""
        text = torch.from_numpy(packed.ids != self.pad)
        ids, positions = (torch.from_numpy(values)[text] for values in (packed.ids, packed.positions))
        self.decoder.disable_adapters()
        try:
            hidden = self.hidden(ids, positions, torch.from_numpy(packed.sees)[text][:, text])
            chosen = hidden[torch.from_numpy(packed.text_labels)[text] != IGNORED]
            return functional.log_softmax(self.logits(chosen)[:, : self.pad], dim=-1)
        finally:
            self.decoder.enable_adapters()

    def losses(self, packed: Packed, *, distil: bool) -> tuple[Tensor, Tensor]:
        """Of ordinary decoding and of units, means over their rows.

        Args:
            packed: What to compute.
            distil: Ordinary decoding is learnt from the base's distribution and not from the text.
        """
        text, unit = torch.from_numpy(packed.text_labels), torch.from_numpy(packed.unit_labels)
        ids, positions, sees = (torch.from_numpy(values) for values in (packed.ids, packed.positions, packed.sees))
        hidden = self.hidden(ids, positions, sees)
        is_text, is_unit = text != IGNORED, unit != IGNORED
        plain = functional.log_softmax(self.logits(hidden[is_text]), dim=-1)
        if distil:
            said = self.base_log_probabilities(packed)
            text_loss = functional.kl_div(plain[:, : self.pad], said, reduction="batchmean", log_target=True)
        else:
            text_loss = functional.nll_loss(plain, text[is_text])
        return text_loss, functional.cross_entropy(self.logits(hidden[is_unit]), unit[is_unit])


def load(source: Path, rank: int | None, dtype: torch.dtype) -> tuple[UnitModel, Any]:
    """The model to train and its tokenizer, from a Hugging Face directory or a GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    folder, place, settings = source, {}, {}
    if source.is_file():
        folder, place = source.parent, {"gguf_file": source.name}
        settings = {"quantization_config": GgufConfig(dequantize=True)}  # packed weights would be multiplied in float32
    decoder = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", **place, **settings)
    return UnitModel(decoder, rank), AutoTokenizer.from_pretrained(folder, **place)
