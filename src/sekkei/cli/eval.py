"""`sekkei eval`: tasks that a program can check, on a run, a Hugging Face folder or an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekkei.core.errors import UserError

if TYPE_CHECKING:
    from sekkei.evals.suite import Subject

URLS = ("http://", "https://", "env", "cassette:")


def command(
    model: Annotated[str, typer.Argument(help="runs/NAME, runs/NAME:STAGE, a Hugging Face folder, https://HOST/v1#MODEL")],
    tasks: Annotated[str, typer.Option(help="comma-separated: bpb, bpb:TEXT, maths:FILE, choice:FILE, ifeval:FILE, "
                                            "code:FILE, legacy:FILE, needle, needle:TEXT, chain")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write all results here; FILE.parts keeps what "
                                                                  "is finished, and the same command goes on")] = None,
    html: Annotated[Path | None, typer.Option(help="draw them into this page")] = None,
    limit: Annotated[int | None, typer.Option(help="items of each file, drawn by the seed [default: all]")] = None,
    samples: Annotated[int, typer.Option(help="replies per problem (maths, code), for pass@k and majority@n")] = 1,
    pass_at: Annotated[str, typer.Option(help="values of k, comma-separated")] = "1",
    temperature: Annotated[float | None, typer.Option(help="[default: 0 for one sample, 0.8 for several]")] = None,
    top_p: Annotated[float, typer.Option(help="nucleus sampling, 1 = off")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="of one reply")] = 512,
    thinking: Annotated[bool, typer.Option(help="let a model that can think do so")] = True,
    prompt: Annotated[str, typer.Option(help="template with {question}, for maths and choice")] = "",
    tokens: Annotated[int, typer.Option(help="bpb: of each domain")] = 60_000,
    context: Annotated[int, typer.Option(help="bpb: tokens of a window; 0 = the model's context")] = 0,
    lengths: Annotated[str, typer.Option(help="needle: tokens, comma-separated [default: up to the context]")] = "",
    depths: Annotated[str, typer.Option(help="needle: 0 = first, 1 = last")] = "0,0.25,0.5,0.75,1",
    trials: Annotated[int, typer.Option(help="needle: keys per length and depth")] = 8,
    problems: Annotated[int, typer.Option(help="chain: how many")] = 128,
    budgets: Annotated[str, typer.Option(help="chain: tokens of thought")] = "0,8,16,32,64",
    seed: Annotated[int, typer.Option(help="of items, sampling and intervals")] = 0,
    concurrency: Annotated[int, typer.Option(help="endpoint: requests under way at once")] = 16,
    device: Annotated[str, typer.Option(help="folder: auto, cpu, cuda …")] = "auto",
    dtype: Annotated[str, typer.Option(help="folder: of the weights, float32 or bfloat16")] = "float32",
) -> None:  # fmt: skip
    """Measure a model with tasks that a program can check; every figure has its 95% interval.

    bpb needs the model itself, choice its log-likelihoods, chain an aligned model of a run; the others take anything
    that answers. For a run's model every task also says how many of its items share words with the training data.

    \b
    Examples:
      sekkei eval runs/laptop --tasks bpb,chain,needle --json results.json --html results.html
      sekkei eval runs/laptop:pretrain.long --tasks bpb:book.txt,choice:arc.jsonl --json base.json
      sekkei eval ./Llama-3.2-1B-Instruct --tasks maths:gsm8k_test.jsonl --samples 8 --pass-at 1,4 --json maths.json
      sekkei eval https://HOST/v1#MODEL --tasks ifeval:input_data.jsonl,code:HumanEval.jsonl --json chat.json
    """
    from sekkei.core import atomic
    from sekkei.core.progress import Console
    from sekkei.evals import suite

    config = suite.SuiteConfig(
        samples=samples, temperature=temperature, top_p=top_p, max_tokens=max_tokens, thinking=thinking, seed=seed,
        ks=numbers(pass_at, "--pass-at", int), limit=limit, prompt=prompt, tokens=tokens, context=context,
        lengths=numbers(lengths, "--lengths", int), depths=numbers(depths, "--depths", float), trials=trials,
        problems=problems, budgets=numbers(budgets, "--budgets", int),
    )  # fmt: skip
    wanted = suite.parse_tasks(tasks)
    work = json_file.with_name(f"{json_file.name}.parts") if json_file is not None else None
    subject = open_subject(model, work, concurrency, device, dtype)
    with subject.llm:
        found = suite.measure(subject, wanted, config, work, Console())
    report = suite.results(subject, wanted, config, found)
    for line in lines(found):
        print(line)
    if json_file is not None:
        atomic.write_json(json_file, report)
        print(f"results: {json_file}")
    if html is not None:
        from sekkei.evals.page import write_page

        print(f"page: {write_page(html, report['model'], found)}")


def open_subject(model: str, work: Path | None, concurrency: int, device: str, dtype: str) -> Subject:
    """What `model` names, with a cache of its replies in `work`.

    Raises:
        UserError: it names nothing.
    """
    from sekkei.evals.suite import Subject

    cache = work / "replies" if work is not None else None
    if model.startswith(URLS):
        from dataclasses import asdict

        from sekkei.llm.open import LLMConfig, open_llm

        llm = open_llm(LLMConfig(spec=model, concurrency=concurrency, cache=str(cache) if cache else ""))
        return Subject(llm=llm, about={"kind": "endpoint", "can": asdict(llm.capabilities)})
    folder, stage = _folder(model)
    from sekkei.evals.local import LocalBackend
    from sekkei.llm import LLM
    from sekkei.llm.cache import Cached

    local = open_local(folder, stage, device, dtype)
    backend = LocalBackend(local)
    about = {
        "kind": "run" if local.run_dir else "Hugging Face folder",
        "stage": local.stage,
        "parameters": sum(parameter.numel() for parameter in local.model.parameters()),
        "context": local.model.config.max_context,
        "chats": local.chat is not None,
        "dtype": dtype,
        "device": str(backend.engine.device),
    }
    return Subject(llm=LLM(Cached(backend, cache) if cache else backend), local=local, backend=backend, about=about)


def open_local(folder: Path, stage: str | None, device: str, dtype: str) -> Any:
    """The model of a folder, with what it speaks, for evals/local.py."""
    from sekkei.evals.local import LocalModel, byte_lengths, own_model
    from sekkei.serve.opened import open_model
    from sekkei.serve.words import OwnWords, Pieces

    opened = open_model(folder, stage, dtype=dtype, device=device)
    words, stage = opened.words, opened.stage or ""
    name, run_dir = (f"{folder}#{stage}", folder) if stage else (str(folder), None)
    if isinstance(words, OwnWords):
        return own_model(
            name, opened.model, words.tokenizer, words.inner, chats=words.chats, stage=stage, run_dir=run_dir
        )
    return LocalModel(
        name=name,
        model=opened.model,
        plain=words.plain,
        chat=(lambda messages, thinking: words.chat(messages, (), thinking)) if words.chats else None,
        encode=lambda text: words.inner.encode(text, add_special_tokens=False).ids,
        inner=words.inner,
        stop_tokens=words.stop_tokens,
        token_bytes=byte_lengths(words.inner, Pieces(words.inner).raw),
        stage=stage,
        run_dir=run_dir,
    )


def _folder(model: str) -> tuple[Path, str | None]:
    """Folder and stage of RUN, RUN:STAGE or RUN#STAGE."""
    if Path(model).is_dir():
        return Path(model), None
    for sign in ("#", ":"):
        place, found, stage = model.rpartition(sign)
        if found and Path(place).is_dir():
            return Path(place), stage
    raise UserError(f"{model}: names no model; give a folder (runs/NAME, runs/NAME:STAGE) or https://HOST/v1#MODEL")


def numbers(text: str, option: str, kind: type) -> tuple[Any, ...]:
    """Comma-separated numbers of an option."""
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"{option} {text}: must be numbers, comma-separated") from None


def lines(outcomes: Any) -> list[str]:
    """For people: every figure with its interval, what overlaps with the training data, notes."""
    told = []
    for outcome in outcomes:
        told.append(f"{outcome.task}  ({outcome.items} items)")
        for name, one in outcome.ordered():
            if name.startswith(("kind.", "length.")):
                continue
            interval = f"  [{one.low:.3f}, {one.high:.3f}]" if one.low is not None and one.high is not None else ""
            told.append(f"  {name:<24} {one.value:8.3f}{interval}")
        seen = outcome.overlap
        if "overlapping" in seen:
            told.append(f"  {seen['overlapping']} of {seen['items']} items overlap with {seen['against']}")
        else:
            told.append(f"  overlap with the training data: {seen['overlap']} ({seen['why']})")
        told += [f"  note: {note}" for note in outcome.notes]
    return told
