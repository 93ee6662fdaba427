"""What all tests of the exporter share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
import pytest
import torch
import transformers

from seqrt.exporter.stitch import compaction_graph, decoder_graph, model_of
from seqrt.exporter.weights import parameter_names
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.decoder import Decoder
from seqrt.graphs.rope import RopeConfig

SOURCE: Final[dict[str, Any]] = {
    "vocab_size": 150,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they give on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def stitched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    """A random decoder with every option of a rotating family, and the folder of its graphs."""
    torch.manual_seed(0)
    decoder = Decoder(
        DecoderConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=40,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=12,
            max_positions=128,
            norm="rms_plus_one",
            norm_eps=1e-5,
            activation="gelu_tanh",
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            qk_norm=True,
            post_norms=True,
            tied_embeddings=False,
            embedding_scale=3.0,
            attention_scale=0.3,
            layer_kinds=("sliding", "full", "sliding"),
            sliding_window=5,
            ropes={
                "sliding": RopeConfig(kind="default", theta=100.0, dim=12, parameters={}),
                "full": RopeConfig(kind="linear", theta=1000.0, dim=12, parameters={"factor": 2.0}),
            },
        )
    ).eval()
    folder = tmp_path_factory.mktemp("stitched")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.3)
    graph, state = decoder_graph(decoder.config), dict(decoder.named_parameters())
    for own, name in parameter_names(decoder).items():
        graph.initializers[name].const_value = ir.tensor(state[own].detach().numpy())
    for role, made in (("decoder", graph), ("compaction", compaction_graph(decoder.config))):
        ir.save(model_of(made), folder / f"{role}.onnx")
    return decoder, folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, as transformers saves it."""
    path = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SOURCE))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
            else:  # norms
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(path)
    return path
