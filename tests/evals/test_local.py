"""A model folder as a backend: it says what llm/engine.py says, and scores what the model computes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sekkei.cli.eval import open_local
from sekkei.data.tasks.chain import ChainConfig
from sekkei.evals.ask import sample_all, score_all
from sekkei.evals.chains import chains_of, evaluate_chain, exam_ids
from sekkei.evals.heldout import evaluate_bits, heldout_documents, text_documents, training_texts
from sekkei.evals.local import LocalBackend
from sekkei.evals.reasoning import Exam, held_out_problems
from sekkei.llm import LLM, LLMError, Settings
from sekkei.llm.protocol import user
from sekkei.llm.run_folder import open_run
from sekkei.model.attention import DenseAttend
from sekkei.text.tokenizer import THINK, THINK_END

QUESTIONS = ["start at 7, add 3, modulo 23", "Hello", "What does json.dumps do?"]


@pytest.fixture(scope="module")
def aligned(smoke_run: Path) -> Iterator[LocalBackend]:
    backend = LocalBackend(open_local(smoke_run, None, "cpu", "float32"))
    yield backend
    with LLM(backend):
        pass


@pytest.fixture(scope="module")
def base(smoke_run: Path) -> Iterator[LocalBackend]:
    backend = LocalBackend(open_local(smoke_run, "pretrain.long", "cpu", "float32"))
    yield backend
    with LLM(backend):
        pass


@pytest.mark.parametrize("thinking", [True, False])
def test_it_answers_as_the_other_backend_of_a_run(aligned: LocalBackend, smoke_run: Path, thinking: bool) -> None:
    settings = Settings(max_tokens=24, n=2, temperature=1.0, seed=5, thinking=thinking)
    asked = [[user(question)] for question in QUESTIONS]
    ours = sample_all(LLM(aligned), asked, settings)
    with LLM(open_run(smoke_run)) as other:
        theirs = sample_all(other, asked, settings)
    for mine, known in zip(ours, theirs):
        assert [(r.text, r.thinking, r.finish_reason, r.usage) for r in mine] == [
            (r.text, r.thinking, r.finish_reason, r.usage) for r in known
        ]


def test_it_scores_as_the_other_backend_and_as_the_model_itself(
    aligned: LocalBackend, base: LocalBackend, smoke_run: Path
) -> None:
    options = [" answer: 10", " no", " a longer text that goes on"]
    asked = [([user(question)], options) for question in QUESTIONS]
    for backend, stage in ((aligned, None), (base, "pretrain.long")):
        ours = score_all(LLM(backend), asked, Settings())
        with LLM(open_run(smoke_run, stage)) as other:
            theirs = score_all(other, asked, Settings())
        for mine, known in zip(ours, theirs):
            assert [s.logprob for s in mine] == pytest.approx([s.logprob for s in known], abs=1e-3)
            assert [(s.tokens, s.greedy) for s in mine] == [(s.tokens, s.greedy) for s in known]
    prompt, row = base.local.plain(QUESTIONS[0]), base.local.encode(options[0])
    ids = torch.tensor([[*prompt, *row]])
    with torch.no_grad():
        hidden = base.local.model.hidden(ids, torch.arange(ids.shape[1])[None], DenseAttend(None))
        logprobs = base.local.model.logits(hidden)[0].log_softmax(-1)
    by_hand = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(row))
    (score,) = LLM(base).loglikelihood([user(QUESTIONS[0])], [options[0]])
    assert score.logprob == pytest.approx(by_hand, abs=1e-3)


def test_what_it_cannot_do_is_said(base: LocalBackend) -> None:
    with pytest.raises(LLMError, match="fewer than"):
        LLM(base).chat([user("word " * 2000)])
    with pytest.raises(LLMError, match="is empty"):
        LLM(base).loglikelihood([user("a")], [""])
    with pytest.raises(LLMError, match="cannot go on from an assistant's message"):
        LLM(base).chat([user("a"), {"role": "assistant", "content": "b"}])


def test_bits_per_byte_count_every_byte_and_equal_the_stage(base: LocalBackend, tmp_path: Path) -> None:
    held = heldout_documents(base.local, 100_000, seed=0)
    found = evaluate_bits(base.local, held, context=64)
    assert set(found.figures) == set(held)
    assert all(0.5 < figure.value < 8 for figure in found.figures.values())
    text = "Grün ist die Farbe 色 of the garden.\n\n" * 40
    path = tmp_path / "garden.txt"
    path.write_text(text)
    documents = text_documents(base.local, path, 100_000)
    sizes = sum(base.local.token_bytes[token] for ids in documents["garden"] for token in ids)
    assert sizes == len(f"{text}\n\n".encode())
    one = evaluate_bits(base.local, documents, context=64)
    assert one.figures["garden"].value > 0
    assert any("garden" not in text for text in training_texts(base.local))


def test_bits_of_documents_add_up_to_those_of_the_domain(base: LocalBackend, smoke_run: Path) -> None:
    from sekkei.data.shards import open_shards
    from sekkei.evals.bits import document_bits, domain_bits
    from sekkei.parallel.ops import LocalOps
    from sekkei.train.step import PlainStep

    step = PlainStep({"policy": base.local.model}, LocalOps(), torch.device("cpu"), None)
    shard = open_shards(smoke_run / "tokens" / "shards")["math.heldout"]

    def score(batch: object) -> object:
        with torch.inference_mode():
            return step.score("policy", batch, frozenset({"logprobs"}), 1.0)  # type: ignore[arg-type]

    bits, sizes = document_bits(score, [shard[i] for i in range(len(shard))], 64, base.local.token_bytes)  # type: ignore[arg-type]
    whole = domain_bits(score, shard, 64, base.local.token_bytes, 10**9)  # type: ignore[arg-type]
    assert sum(bits) / sum(sizes) == pytest.approx(whole, rel=1e-5)


def test_the_chain_task_counts_as_the_exam_does(aligned: LocalBackend, smoke_run: Path) -> None:
    own, chains = aligned.local.own, chains_of(smoke_run)
    assert own is not None
    found = evaluate_chain(aligned.engine, own, chains, problems=12, max_tokens=32, budgets=(0, 4))
    exam = Exam(aligned.engine, own, held_out_problems(chains, chains.held_out_operations, 12, 0), 32)
    assert found.figures["think"].value == exam.greedy()["pass1_greedy"]
    assert found.figures["direct"].value == exam.greedy(thinking=False)["pass1_greedy"]
    assert found.figures["chance"].value == 1 / chains.modulus
    assert chains_of(None) == ChainConfig()
    inside = own.encode(" 7 add 3 = 10")
    begin, end = own.id_of(THINK), own.id_of(THINK_END)
    assert exam_ids(own, [begin, *inside, end, 5, own.end_id]) == inside  # type: ignore[list-item]
    assert exam_ids(own, [5, own.end_id]) == []


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_foreign_folder_answers_in_its_own_template(family: str, tmp_path: Path) -> None:
    """Greedy text, scores and bytes beside transformers on the same folder."""
    transformers = pytest.importorskip("transformers")
    folder = foreign_writer()(tmp_path / family, family)
    local = open_local(folder, None, "cpu", "float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    messages = [user("hello there, what is this")]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=True)["input_ids"]
    assert local.own is None
    assert local.chat is not None
    assert local.chat(messages, True) == prompt
    options = [" one", " two words"]
    with LLM(LocalBackend(local)) as llm:
        reply = llm.chat(messages, Settings(max_tokens=8))
        scores = llm.loglikelihood(messages, options)
    out = peer.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    stopped = out[-1] in local.stop_tokens
    assert reply.usage.completion_tokens == len(out)
    assert reply.text == tokenizer.decode(out[:-1] if stopped else out)
    for option, score in zip(options, scores):
        row = local.encode(option)
        with torch.no_grad():
            logprobs = peer(torch.tensor([[*prompt, *row]])).logits[0].log_softmax(-1)
        by_peer = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(row))
        assert score.logprob == pytest.approx(by_peer, abs=1e-3)
    text = "Grün 色 and green"
    assert sum(local.token_bytes[token] for token in local.encode(text)) == len(text.encode())


def foreign_writer() -> Callable[[Path, str], Path]:
    """What writes a small foreign folder in tests/serve, loaded by its path."""
    path = Path(__file__).parents[1] / "serve" / "conftest.py"
    spec = importlib.util.spec_from_file_location("eval_foreign", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["eval_foreign"] = module
    spec.loader.exec_module(module)
    return module.write_foreign  # type: ignore[no-any-return]
