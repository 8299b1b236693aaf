"""Writes the golden files of this folder with PEFT: an adapter on disk, scores and gradients of the model that has it.

python make.py            in an environment with peft, torch and transformers; the tests need none of them

adapter/                  as PEFT saves it (two targets, rank 3, rslora)
expected.safetensors      ids, scores, the base's scores, gradients of every adapter tensor, float64
base/                     the tiny model
"""

from __future__ import annotations

import json
from pathlib import Path

import peft
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=False,
        rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    base.save_pretrained(HERE / "base")
    ids = torch.randint(0, 32, (2, 11))
    base = base.double()
    plain = base(ids).logits.detach()
    lora = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], use_rslora=True, lora_dropout=0.0)
    model = get_peft_model(base, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_((0.3 * torch.randn(parameter.shape)).to(parameter))
    model.save_pretrained(HERE / "adapter")
    (HERE / "adapter" / "README.md").unlink(missing_ok=True)
    scores = model(ids).logits
    scores.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).mean().backward()
    found = {"ids": ids, "scores": scores.detach(), "base_scores": plain}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"grad/{name.replace('.default', '')}"] = parameter.grad
    save_file({k: v.contiguous() for k, v in found.items()}, HERE / "expected.safetensors")
    (HERE / "versions.json").write_text(json.dumps({"peft": peft.__version__, "torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main()
