"""`sekkei ask`: a question answered from an index, each sentence with its evidence, and the evidence checked."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from sekkei.cli.rag import INDEX, IndexOption, open_index, where

if TYPE_CHECKING:
    from sekkei.rag.answer import Answer


def command(
    question: Annotated[str, typer.Argument(help="what to answer")],
    address: IndexOption = INDEX,
    model: Annotated[str | None, typer.Option(help="who writes: runs/NAME, https://HOST/v1#MODEL or env")] = None,
    k: Annotated[int, typer.Option("-k", help="passages to read")] = 6,
    rerank: Annotated[bool, typer.Option("--rerank", help="let the model order the passages first")] = False,
    always: Annotated[bool, typer.Option("--always", help="ask the model however weak the evidence is")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> int:
    """Answer a question from indexed documents; citations name file and characters, and are checked.

    Sentences that no quote supports are marked. Where the documents do not answer it says so, and the exit code is 1.
    Without --model the answer is made of the documents' own sentences (SEKKEI_LLM_URL and SEKKEI_LLM_MODEL, where they
    are set, are a model).

    \b
    Examples:
      sekkei ask "How is a checkpoint written?"
      sekkei ask "How is a checkpoint written?" --model https://api.openai.com/v1#gpt-4o-mini --json
      sekkei ask "索引はどこにありますか" --index docs-index --model env
    """
    from sekkei.core.progress import Console
    from sekkei.llm.open import open_llm
    from sekkei.rag.answer import AnswerConfig, answer

    config = AnswerConfig(k=k, rerank=rerank)
    if always:
        config = AnswerConfig(k=k, rerank=rerank, min_evidence=0.0)
    if model is None and os.environ.get("SEKKEI_LLM_URL"):
        model = "env"
    opened = open_index(address)
    if model is None:
        Console().say("no --model: the answer is made of sentences from the documents")
        found = answer(opened, question, None, config)
    else:
        with open_llm(model) as llm:
            found = answer(opened, question, llm, config)
    print(json.dumps(as_mapping(found), ensure_ascii=False, indent=1) if as_json else shown(found))
    return 0 if found.status == "answered" else 1


def shown(found: Answer) -> str:
    """The answer for people: sentences with numbers, then what the numbers stand for."""
    if found.status != "answered":
        return f"Not in the documents: {found.reason}."
    lines, notes, number = [], [], 0
    for sentence in found.sentences:
        marks = ""
        for citation in sentence.citations:
            if citation.problem:
                continue
            number += 1
            marks += f" [{number}]"
            place = where(citation.path, citation.place, citation.start, citation.end)
            notes.append(f'  [{number}] {place}: "{" ".join(citation.quote.split())}"')
        flag = f"  (UNSUPPORTED: {'; '.join(sentence.problems)})" if sentence.problems else ""
        lines.append(f"{sentence.text}{marks}{flag}")
    supported = sum(sentence.supported for sentence in found.sentences)
    return "\n".join([*lines, "", *notes, f"{supported} of {len(found.sentences)} sentences are supported"])


def as_mapping(found: Answer) -> dict[str, object]:
    """The answer for programs."""
    from dataclasses import asdict

    sentences = [asdict(sentence) | {"supported": sentence.supported} for sentence in found.sentences]
    return {
        "question": found.question,
        "status": found.status,
        "reason": found.reason,
        "text": found.text,
        "sentences": sentences,
        "supported_share": found.supported_share,
        "passages": [asdict(hit.chunk) for hit in found.hits],
        "tokens": found.usage.total_tokens,
    }
