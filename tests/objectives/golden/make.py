"""Writes the golden files of this folder: losses and gradients of TRL's own trainers on a tiny model.

    python make.py          in an environment with trl==1.16.*, torch and transformers; the tests need none of them

    models.safetensors      weights of the policy, the reference and a reward model, `initializer_range=0.2`: at the
                            usual 0.02 log-ratios are about 0 and mistakes do not show
    inputs.json             token ids, rewards, old / reference / sampler log-probabilities of every case
    gradients.safetensors   `case/parameter`, computed in float64, stored in float32
    results.json            loss of every case, its settings, and the versions that made it

Each case calls the loss of a TRL trainer that its own `__init__` has set up. It does not handle what TRL 1.16 no longer
has (PPO, cDPO), for which the tests hold written-out references.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

HERE = Path(__file__).parent
VOCAB, PAD, END = 48, 0, 1
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "bos_token_id": None,
    "attention_dropout": 0.0,
}
COMMON: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
WORK = tempfile.mkdtemp()


def model_of(kind: type, seed: int) -> Any:
    torch.manual_seed(seed)
    extra = {"num_labels": 1} if kind is LlamaForSequenceClassification else {}
    model = kind(LlamaConfig(**CONFIG, **extra)).double()
    with torch.no_grad():  # norms away from 1, so that their gradients and uses are seen
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, dtype=torch.float64))
            parameter.copy_(parameter.float())  # the stored weights are float32: both sides start from the same numbers
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<end>": END, **{f"w{i}": i for i in range(2, VOCAB)}}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


def some(rng: random.Random, low: int, high: int) -> list[int]:
    return [rng.randrange(2, VOCAB) for _ in range(rng.randrange(low, high))]


def make_inputs() -> dict[str, Any]:
    rng = random.Random(5)
    pairs = [{"prompt": some(rng, 2, 6), "chosen": some(rng, 1, 8), "rejected": some(rng, 1, 8)} for _ in range(5)]
    for pair in pairs:
        for side in ("chosen", "rejected"):
            pair[side] = [*pair[side], END]
    short = [{**pair, "prompt": pair["prompt"][:1]} for pair in pairs]
    feedback = [
        {"prompt": pair["prompt"], "answer": pair["chosen" if i % 2 else "rejected"], "desirable": i in (0, 1, 3)}
        for i, pair in enumerate(pairs)
    ]
    prompts = [some(rng, 2, 6) for _ in range(2)]
    answers = []
    for i in range(6):
        ids = some(rng, 1, 10)
        answers.append({"prompt": prompts[i // 3], "answer": [*ids, END] if i % 3 else ids})
    advantages = [round(rng.uniform(-1.5, 1.5), 3) for _ in answers]
    conversations = []
    for _ in range(4):
        ids = some(rng, 5, 14)
        learned = [rng.random() < 0.5 for _ in ids]
        conversations.append({"ids": [*ids, END], "learned": [*learned, True]})
    margins = [round(rng.uniform(0, 2), 3) for _ in pairs]
    return {
        "pairs": pairs,
        "short": short,
        "feedback": feedback,
        "answers": answers,
        "advantages": advantages,
        "conversations": conversations,
        "margins": margins,
    }


def padded(rows: list[list[int]], left: bool = False, value: int = PAD) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[value] * (width - len(r)) + r if left else r + [value] * (width - len(r)) for r in rows])


def scored(prompts: list[list[int]], answers: list[list[int]]) -> dict[str, Tensor]:
    """Prompt and answer side by side, padded on the right."""
    whole = [p + a for p, a in zip(prompts, answers, strict=True)]
    return {
        "input_ids": padded(whole),
        "attention_mask": padded([[1] * len(w) for w in whole], value=0),
        "completion_mask": padded(
            [[0] * len(p) + [1] * len(a) for p, a in zip(prompts, answers, strict=True)], value=0
        ),
    }


def grads(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}


class Book:
    """The cases as they are made."""

    def __init__(self) -> None:
        self.inputs = make_inputs()
        self.gradients: dict[str, Tensor] = {}
        self.results: dict[str, Any] = {}

    def add(self, name: str, settings: dict[str, Any], model: Any, loss: Callable[[], Tensor]) -> None:
        model.train()
        value = loss()
        self.results[name] = {"loss": float(value.detach()), "settings": settings}
        self.gradients |= {f"{name}/{k}": g for k, g in grads(model, value).items()}
        print(f"{name:28s} {float(value):.8f}")


def trainer_of(kind: Any, config: Any, model: Any, row: dict[str, Any], settings: dict[str, Any], **more: Any) -> Any:
    args = config(output_dir=WORK, **COMMON, **settings)
    data = Dataset.from_list([row] * 4)
    return kind(model=model, args=args, train_dataset=data, processing_class=tokenizer(), **more)


def preferences(book: Book) -> None:
    pairs = book.inputs["pairs"]
    prompts = [p["prompt"] for p in pairs] * 2
    batch = scored(prompts, [p["chosen"] for p in pairs] + [p["rejected"] for p in pairs])
    row = {"prompt": "w2 w3", "chosen": "w4", "rejected": "w5"}
    cases: dict[str, dict[str, Any]] = {
        "dpo_sigmoid": {"loss_type": ["sigmoid"]},
        "dpo_robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
        "dpo_ipo": {"loss_type": ["ipo"]},
        "dpo_hinge": {"loss_type": ["hinge"]},
        "dpo_sigmoid_sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
    }
    for name, own in cases.items():
        policy, reference = model_of(LlamaForCausalLM, 1), model_of(LlamaForCausalLM, 2)
        settings = {"beta": 0.4, **own}
        trainer = trainer_of(trl.DPOTrainer, trl.DPOConfig, policy, row, settings, ref_model=reference)
        book.add(name, settings, trainer.model, lambda t=trainer: t._compute_loss(t.model, dict(batch), False))


def reference_free(book: Book) -> None:
    row = {"prompt": "w2 w3", "chosen": "w4", "rejected": "w5"}
    cpo: dict[str, dict[str, Any]] = {
        "cpo_sigmoid": {"loss_type": "sigmoid", "cpo_alpha": 1.0},
        "cpo_simpo": {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.6},
        "cpo_hinge": {"loss_type": "hinge", "cpo_alpha": 0.0},
    }
    for name, own in cpo.items():
        policy = model_of(LlamaForCausalLM, 1)
        settings = {"beta": 1.5, **own}
        trainer = trainer_of(CPOTrainer, CPOConfig, policy, row, settings)
        batch = concatenable(book.inputs["pairs"])
        book.add(name, settings, trainer.model, lambda t=trainer, b=batch: t.get_batch_loss_metrics(t.model, b)[0])
    # TRL's NLL of ORPO is of the prompt, too: the whole loss is comparable where a prompt has one token, that nobody
    # predicts; where it has more, the odds' term by itself
    for name, key in (("orpo", "short"), ("orpo_odds", "pairs")):
        trainer = trainer_of(ORPOTrainer, ORPOConfig, model_of(LlamaForCausalLM, 1), row, {"beta": 0.3})
        batch = concatenable(book.inputs[key])
        loss = orpo_whole if name == "orpo" else orpo_odds
        book.add(name, {"beta": 0.3}, trainer.model, lambda t=trainer, b=batch, f=loss: f(t, b))


def orpo_whole(trainer: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = trainer.get_batch_loss_metrics(trainer.model, batch)[0]
    return loss


def orpo_odds(trainer: Any, batch: dict[str, Tensor]) -> Tensor:
    chosen, rejected = trainer.concatenated_forward(trainer.model, batch)[:2]
    gains: Tensor = trainer.odds_ratio_loss(chosen, rejected)[0]
    return -gains.mean()


def concatenable(pairs: list[dict[str, Any]]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for side in ("chosen", "rejected"):
        whole = [p["prompt"] + p[side] for p in pairs]
        made[f"{side}_input_ids"] = padded(whole)
        made[f"{side}_attention_mask"] = padded([[1] * len(w) for w in whole], value=0)
        labels = [[-100] * len(p["prompt"]) + p[side] for p in pairs]
        made[f"{side}_labels"] = padded(labels, value=-100)
    return made


def unpaired(book: Book) -> None:
    """KTO. The mismatched answers that estimate its KL are the others', moved on by one."""
    rows = book.inputs["feedback"]
    prompts, answers = [r["prompt"] for r in rows], [r["answer"] for r in rows]
    moved = answers[1:] + answers[:1]
    batch: dict[str, Any] = scored(prompts, answers)
    batch |= {f"KL_{name}": x for name, x in scored(prompts, moved).items()}
    batch["label"] = torch.tensor([r["desirable"] for r in rows])
    row = {"prompt": "w2 w3", "completion": "w4", "label": True}
    for name, swapped in (("kto", False), ("kto_clamped", True)):
        policy, reference = model_of(LlamaForCausalLM, 1 + swapped), model_of(LlamaForCausalLM, 2 - swapped)
        settings = {"beta": 0.4, "desirable_weight": 1.2, "undesirable_weight": 0.8, "per_device_train_batch_size": 4}
        trainer = trainer_of(trl.KTOTrainer, trl.KTOConfig, policy, row, settings, ref_model=reference)
        found = {**settings, "policy": "reference" if swapped else "policy"}
        book.add(name, found, trainer.model, lambda t=trainer: t._compute_loss(t.model, dict(batch), False))
        book.results[name]["kl"] = trainer._metrics["train"]["kl"][-1]


def reward_models(book: Book) -> None:
    pairs = book.inputs["pairs"]
    whole = [p["prompt"] + p["chosen"] for p in pairs] + [p["prompt"] + p["rejected"] for p in pairs]
    row = {"chosen": "w2 w3 w4", "rejected": "w2 w3 w5"}
    for name, center, margin in (
        ("reward", None, False),
        ("reward_margin", None, True),
        ("reward_center", 0.05, False),
    ):
        batch = {"input_ids": padded(whole), "attention_mask": padded([[1] * len(w) for w in whole], value=0)}
        if margin:
            batch["margin"] = torch.tensor(book.inputs["margins"], dtype=torch.float64)
        model = model_of(LlamaForSequenceClassification, 3)
        settings = {"center_rewards_coefficient": center}
        trainer = trainer_of(trl.RewardTrainer, trl.RewardConfig, model, row, settings)
        if margin:  # TRL hands the margin to the model as well, which a plain transformers model refuses
            plain = trainer.model.forward
            trainer.model.forward = lambda margin=None, f=plain, **kw: f(**kw)
        found = {**settings, "margin": margin}
        book.add(name, found, trainer.model, lambda t=trainer, b=batch: t.compute_loss(t.model, dict(b)))


def sft(book: Book) -> None:
    rows = book.inputs["conversations"]
    ids = [r["ids"] for r in rows]
    labels = [[t if on else -100 for t, on in zip(r["ids"], r["learned"], strict=True)] for r in rows]
    batch = {
        "input_ids": padded(ids),
        "attention_mask": padded([[1] * len(w) for w in ids], value=0),
        "labels": padded(labels, value=-100),
    }
    trainer = trainer_of(trl.SFTTrainer, trl.SFTConfig, model_of(LlamaForCausalLM, 1), {"text": "w2 w3 w4"}, {})
    book.add("sft", {}, trainer.model, lambda: trainer.compute_loss(trainer.model, dict(batch)))


def rollouts(book: Book) -> None:
    rows = book.inputs["answers"]
    prompts, answers = [r["prompt"] for r in rows], [r["answer"] for r in rows]
    base: dict[str, Any] = {
        "prompt_ids": padded(prompts, left=True),
        "prompt_mask": padded([[1] * len(p) for p in prompts], left=True, value=0),
        "completion_ids": padded(answers),
        "completion_mask": padded([[1] * len(a) for a in answers], value=0),
        "advantages": torch.tensor(book.inputs["advantages"], dtype=torch.float64),
        "num_items_in_batch": torch.tensor(sum(len(a) for a in answers)),
    }
    cases = grpo_cases()
    for temperature in (1.0, 0.7):
        book.inputs[f"logprobs_{temperature}"] = logprobs_at(base, answers, temperature)
    for name, (settings, more) in cases.items():
        temperature = settings.get("temperature", 1.0)
        known = book.inputs[f"logprobs_{temperature}"]
        tensors = {key: padded(known[key], value=0.0).double() for key in ("old", "ref", "sampled")}  # type: ignore[arg-type]
        inputs = {**base, "ref_per_token_logps": tensors["ref"]}
        if more.get("old", True):
            inputs["old_per_token_logps"] = tensors["old"]
        policy = model_of(LlamaForCausalLM, 1)
        policy.save_pretrained(f"{WORK}/policy")  # from where TRL loads the reference that it needs for beta > 0
        policy.config._name_or_path = f"{WORK}/policy"
        args = {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 12, **settings}
        trainer = trainer_of(
            trl.GRPOTrainer, trl.GRPOConfig, policy, {"prompt": "w2"}, args, reward_funcs=lambda completions, **_: [0.0]
        )
        trainer.current_gradient_accumulation_steps = 1
        if "correction" in more:
            trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
            inputs["importance_sampling_ratio"] = corrected(tensors, base["completion_mask"], more["correction"])
        book.add(name, {**settings, **more}, trainer.model, lambda t=trainer, i=inputs: t._compute_loss(t.model, i))
    known = book.inputs["logprobs_1.0"]
    old = torch.tensor([sum(row) for row in known["old"]], dtype=torch.float64)
    args = {"num_generations": 2, "per_device_train_batch_size": 2, "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.2}
    trainer = trainer_of(
        trl.RLOOTrainer,
        trl.RLOOConfig,
        model_of(LlamaForCausalLM, 1),
        {"prompt": "w2"},
        args,
        reward_funcs=lambda completions, **_: [0.0],
    )
    book.add("rloo", args, trainer.model, lambda: trainer._compute_loss(trainer.model, {**base, "old_logps": old}))


def grpo_cases() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for kind in ("grpo", "dr_grpo", "bnpo", "dapo"):
        cases[f"grpo_{kind}"] = {"loss_type": kind, "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.2}, {}
    cases["grpo_cispo"] = {"loss_type": "cispo", "beta": 0.0, "epsilon_high": 1.1}, {}
    cases["grpo_clip_higher"] = {"loss_type": "dapo", "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.28}, {}
    cases["grpo_dual_clip"] = {"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.2, "delta": 1.3}, {}
    gspo = {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.0}
    cases["grpo_gspo"] = {**gspo, "epsilon": 0.03, "epsilon_high": 0.04}, {}
    cases["grpo_gspo_dapo"] = {**gspo, "loss_type": "dapo", "epsilon": 0.03, "epsilon_high": 0.04}, {}
    for kind in ("grpo", "dapo"):
        for on in (False, True):
            settings = {"loss_type": kind, "beta": 0.1, "use_bias_correction_kl": on}
            cases[f"grpo_kl_{'ratio_' if on else ''}{kind}"] = settings, {}
    cases["grpo_kl_on_policy"] = {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": True}, {"old": False}
    cases["grpo_k3_on_policy"] = {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": False}, {"old": False}
    cases["grpo_temperature"] = {"loss_type": "dapo", "beta": 0.1, "temperature": 0.7}, {}
    for correction in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        cases[f"grpo_{correction}"] = {"loss_type": "dapo", "beta": 0.05}, {"correction": correction}
    return cases


def logprobs_at(base: dict[str, Any], answers: list[list[int]], temperature: float) -> dict[str, list[list[float]]]:
    """Log-probabilities of the answers under the policy, moved by noise: an older policy, a reference, a sampler."""
    policy, rng = model_of(LlamaForCausalLM, 1), random.Random(7)
    ids = torch.cat([base["prompt_ids"], base["completion_ids"]], 1)
    mask = torch.cat([base["prompt_mask"], base["completion_mask"]], 1)
    width = base["completion_ids"].shape[1]
    with torch.no_grad():
        logits = policy(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1] / temperature
    exact = logits.log_softmax(-1).gather(-1, base["completion_ids"][..., None]).squeeze(-1)
    found: dict[str, list[list[float]]] = {"old": [], "ref": [], "sampled": []}
    for row, answer in zip(exact.tolist(), answers, strict=True):
        old = [round(x + rng.gauss(0, 0.3), 4) for x in row[: len(answer)]]
        found["old"].append(old)
        found["ref"].append([round(x + rng.gauss(0, 0.8), 4) for x in row[: len(answer)]])
        found["sampled"].append([round(x + rng.gauss(0, 0.5), 4) for x in old])
    return found


def corrected(tensors: dict[str, Tensor], mask: Tensor, how: str, low: float = 0.5, high: float = 2.0) -> Tensor:
    """The factor that TRL computes while it generates, from the trainer's and the sampler's log-probabilities."""
    gap = (tensors["old"] - tensors["sampled"]) * mask
    ratio = (gap.sum(-1, keepdim=True) if how.startswith("sequence") else gap).exp()
    if how.endswith("truncate"):
        return ratio.clamp(min=None, max=high)
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


def main() -> None:
    book = Book()
    for family in (preferences, reference_free, unpaired, reward_models, sft, rollouts):
        family(book)
    weights: dict[str, Tensor] = {}
    for name, kind, seed in (
        ("policy", LlamaForCausalLM, 1),
        ("reference", LlamaForCausalLM, 2),
        ("reward", LlamaForSequenceClassification, 3),
    ):
        weights |= {f"{name}/{k}": p.detach().float().clone() for k, p in model_of(kind, seed).named_parameters()}
    save_file(weights, HERE / "models.safetensors")
    save_file(book.gradients, HERE / "gradients.safetensors")
    versions = {module.__name__: module.__version__ for module in (trl, torch, transformers)}
    result = {"versions": versions, "config": CONFIG, "cases": book.results}
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "inputs.json").write_text(json.dumps(book.inputs) + "\n")


if __name__ == "__main__":
    main()
