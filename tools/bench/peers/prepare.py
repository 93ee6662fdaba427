"""Make what the peers read, under the peers' interpreter: `prepare.py GGUF PROMPTS TEXT FOLDER`.

From a GGUF file come a Hugging Face directory with its dequantised weights (`hf`), two onnxruntime-genai
models built from that (`genai-int4`, `genai-int8`), and `inputs.json`: the token ids of every prompt, chat
template applied, and of the text for perplexity, the same for all peers. Models that exist already are kept.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
import transformers

GENAI_PRECISIONS = ("int4", "int8")


def save_hf(gguf: Path, folder: Path) -> None:
    """Write the dequantised model and its tokenizer to `folder`."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):  # else it cannot be saved: 'quantised'
        del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model.save_pretrained(folder)


def build_genai(hf: Path, folder: Path, precision: str) -> None:
    """Run the builder of onnxruntime-genai with its defaults for a CPU."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(hf), "-o", str(folder), "-p", precision, "-e", "cpu"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def first_turn(line: str) -> list[dict[str, str]]:
    """Return the messages of one line: its `messages`, else the first of its `turns`, else `prompt`."""
    row = json.loads(line)
    if "messages" in row:
        messages: list[dict[str, str]] = row["messages"]
        return messages
    return [{"role": "user", "content": row["turns"][0] if "turns" in row else row["prompt"]}]


def save_inputs(hf: Path, prompts: Path, text: Path, path: Path) -> None:
    """Tokenise the prompts and the text, and note which tokens end a sequence."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf)
    lines = [line for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    eos = transformers.GenerationConfig.from_pretrained(hf).eos_token_id
    inputs = {
        "prompts": [
            tokenizer.apply_chat_template(first_turn(line), add_generation_prompt=True)["input_ids"] for line in lines
        ],
        "text": tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"],
        "eos_token_ids": eos if isinstance(eos, list) else [eos],
    }
    path.write_text(json.dumps(inputs))


def main() -> None:
    """Entry point."""
    gguf, prompts, text, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    hf = folder / "hf"
    if not (hf / "config.json").exists():
        save_hf(gguf, hf)
    for precision in GENAI_PRECISIONS:
        genai = folder / f"genai-{precision}"
        if not (genai / "genai_config.json").exists():
            build_genai(hf, genai, precision)
    save_inputs(hf, prompts, text, folder / "inputs.json")


if __name__ == "__main__":
    main()
