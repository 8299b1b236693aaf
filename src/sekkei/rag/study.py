"""What retrieval does against made-up answers: the same questions, with documents and without, counted.

    kind of question    the documents       right is            shown by
    answerable          hold the answer     to answer           correct, supported, refused (needlessly)
    left out            do not, the world   to refuse           refused; correct says that the model knew it anyway
    invented            do not, nobody      to refuse           refused; every other answer is made up

Two arms: "retrieval" (the passages of answer.py, fenced, behind its rules) and "alone" (the question, with leave to say
that it is not known). A reply is taken apart into sentences and each is held against the documents the same way in both
arms: it is *supported* if one passage has `SUPPORT` of its content tokens, all its numbers, and every token that it
takes over from the question. That is a count of words, no judgement of entailment; for the retrieval arm the share of
sentences with verified quotes (cite.py) stands beside it. A reply is *correct* if it has `CORRECT` of the content
tokens of the known answer.

Every question is asked once, without the evidence limit of answer.py; what the limit would have refused is worked out
afterwards for many limits (`trade_off`), since it decides before the model is asked. Both arms' prompts can be `plain`,
for small models that cannot follow rules: one passage, then the question.

Not handled: answers that are right in other words (they count as wrong), replies that refuse in other words.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sekkei.core import atomic
from sekkei.core.errors import ConfigError, UserError
from sekkei.llm.face import LLM
from sekkei.llm.protocol import Message, Settings, system, user
from sekkei.rag.answer import AnswerConfig, extract, grounds, is_refusal, messages
from sekkei.rag.chunk import ChunkConfig
from sekkei.rag.cite import checked, numbers, sentences, taken_apart
from sekkei.rag.embed import Embedder, Hashed
from sekkei.rag.index import Index
from sekkei.rag.retrieve import Hit, search
from sekkei.rag.store import LanceStore
from sekkei.rag.tokens import content

SUPPORT = 0.75  # share of a sentence's content tokens; paraphrases change some
CORRECT = 0.7  # share of the known answer's content tokens
LIMITS = (0.0, 0.25, 0.5, 0.6, 0.75, 1.0)
SIMILARITY = AnswerConfig().min_similarity
Kind = Literal["answerable", "left out", "invented"]
Arm = Literal["retrieval", "alone"]

UNKNOWN = "I do not know"
ALONE = f"Answer the question in one or two sentences. If you do not know the answer, write only: {UNKNOWN}"


@dataclass(frozen=True)
class Question:
    """A question, of which kind it is, and the known answer ("" for invented ones)."""

    text: str
    kind: Kind
    gold: str = ""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """How the study asks.

    Args:
        k: passages. max_tokens: of a reply.
        plain: prompts for small models: the best passage without a fence, so only for documents that one trusts.
    """

    k: int = 4
    plain: bool = False
    max_tokens: int = 200

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError("k", f"{self.k} must be at least 1")


DEFAULT = StudyConfig()


@dataclass(frozen=True)
class Outcome:
    """One question in one arm.

    Args:
        supported: per sentence of the reply. cited: per sentence, by verified quotes (retrieval arm only).
        correct: None where there is no known answer.
        share, similarity: evidence of the passages (answer.py); of the "alone" arm 1, as no limit applies to it.
    """

    question: Question
    arm: Arm
    reply: str
    refused: bool
    supported: tuple[bool, ...]
    cited: tuple[bool, ...]
    correct: bool | None
    share: float = 1.0
    similarity: float = 1.0


def study(
    index: Index,
    questions: Sequence[Question],
    llm: LLM | None,
    config: StudyConfig = DEFAULT,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Ask every question in both arms; `llm` None is the extractive answer of answer.py, which has only one arm.

    Args:
        progress: called with the number of questions whose passages are found.
    Raises:
        LLMError: the model cannot answer.
    """
    found: list[list[Hit]] = []
    for done, question in enumerate(questions):
        progress(done)
        found.append(search(index, question.text, config.k))
    if llm is None:
        return [_extracted(index, question, hits) for question, hits in zip(questions, found)]
    asked = [_prompt(question, hits, config) for question, hits in zip(questions, found)]
    asked += [[user(question.text)] if config.plain else [system(ALONE), user(question.text)] for question in questions]
    # A small model of ours is asked as it was trained: behind a think block closed for it, only chains had answers.
    settings = Settings(max_tokens=config.max_tokens, thinking=config.plain)
    said = [reply.text.strip() for reply in llm.chat_many(asked, settings)]
    outcomes = []
    for question, hits, reply in zip(questions, found, said):
        cited = tuple(sentence.supported for sentence in sentences(reply, hits, index))
        share, similarity = grounds(question.text, hits)
        outcomes.append(_outcome(index, question, "retrieval", reply, cited, share, similarity))
    return outcomes + [
        _outcome(index, question, "alone", reply) for question, reply in zip(questions, said[len(questions) :])
    ]


def _prompt(question: Question, hits: Sequence[Hit], config: StudyConfig) -> list[Message]:
    if not config.plain:
        return messages(question.text, hits)
    return [user(f"{hits[0].chunk.text}\n\n{question.text}" if hits else question.text)]


def _extracted(index: Index, question: Question, hits: Sequence[Hit]) -> Outcome:
    said = extract(question.text, hits)
    cited = tuple(checked(text, [(number, text)], hits, index).supported for number, text in said)
    reply = " ".join(text for _, text in said)
    return _outcome(index, question, "retrieval", reply, cited, *grounds(question.text, hits))


def _outcome(
    index: Index,
    question: Question,
    arm: Arm,
    reply: str,
    cited: tuple[bool, ...] = (),
    share: float = 1.0,
    similarity: float = 1.0,
) -> Outcome:
    refused = refuses(reply)
    texts = [] if refused else [text for text, _ in taken_apart(reply) if content(text)]
    wanted = content(question.gold)
    correct = not refused and len(wanted & content(" ".join(texts))) >= CORRECT * len(wanted) if wanted else None
    supported = tuple(stands(index, question.text, text) for text in texts)
    return Outcome(question, arm, reply, refused, supported, () if refused else cited, correct, share, similarity)


def refuses(reply: str) -> bool:
    """Whether a reply says that there is no answer, in the words that either arm was given, or is empty."""
    return is_refusal(reply) or reply.lower().replace("don't", "do not").lstrip(' *"').startswith(UNKNOWN.lower())


def stands(index: Index, question: str, sentence: str, k: int = 5) -> bool:
    """Whether one passage of the documents has the words of a sentence; see the top of this file."""
    said, asked = content(sentence), content(question)
    for hit in search(index, sentence, k):
        has = content(hit.chunk.context)
        if (
            len(said & has) >= SUPPORT * len(said)
            and asked & said <= has
            and numbers(sentence) <= numbers(hit.chunk.context)
        ):
            return True
    return False


def figures(
    outcomes: Sequence[Outcome], min_evidence: float = 0.0, min_similarity: float = SIMILARITY
) -> dict[str, Any]:
    """The shares of each arm, as if answers below the limit of evidence had not been asked for.

    Returns:
        {arm: {"questions", "refused": {kind: share}, "correct", "supported", "cited"}}; `correct` is of the answerable
        questions, refused ones are not; `supported` and `cited` are of the sentences that were said in reply to
        answerable questions. A share of nothing is None. "unfounded" is the share of "left out" and "invented"
        questions that got an answer.
    """
    result: dict[str, Any] = {}
    for arm in get_args(Arm):
        rows = [outcome for outcome in outcomes if outcome.arm == arm]
        if not rows:
            continue
        held = [(row, row.refused or (row.share < min_evidence and row.similarity < min_similarity)) for row in rows]
        said = [row for row, refused in held if not refused and row.question.kind == "answerable"]
        of_kind = {kind: [refused for row, refused in held if row.question.kind == kind] for kind in get_args(Kind)}
        result[arm] = {
            "questions": len(rows),
            "refused": {kind: _share(refusals) for kind, refusals in of_kind.items()},
            "unfounded": _share([not refused for kind in ("left out", "invented") for refused in of_kind[kind]]),
            "correct": _share(
                [bool(row.correct) and not refused for row, refused in held if row.question.kind == "answerable"]
            ),
            "supported": _share([good for row in said for good in row.supported]),
            "cited": _share([good for row in said for good in row.cited]),
        }
    return result


def trade_off(
    outcomes: Sequence[Outcome], limits: Sequence[float] = LIMITS, min_similarity: float = SIMILARITY
) -> list[dict[str, Any]]:
    """What each limit of evidence costs and saves in the retrieval arm: one row of `figures` per limit."""
    return [{"min_evidence": at, **figures(outcomes, at, min_similarity)["retrieval"]} for at in limits]


def flat_figures(outcomes: Sequence[Outcome], prefix: str = "rag") -> dict[str, float]:
    """Flat figures for results.json: {prefix}.{arm}.{correct | supported | cited | unfounded | refused.KIND}.

    Arms: "alone"; "retrieval", the model asked whatever was found; "limited", retrieval with the default limit of
    evidence (answer.AnswerConfig). Shares of nothing are left out.
    """
    asked = figures(outcomes)
    arms = asked | {"limited": figures(outcomes, AnswerConfig().min_evidence)["retrieval"]}
    found: dict[str, float] = {}
    for arm, row in arms.items():
        shares = {name: row[name] for name in ("correct", "supported", "cited", "unfounded")}
        shares |= {f"refused.{kind.replace(' ', '_')}": share for kind, share in row["refused"].items()}
        found |= {f"{prefix}.{arm}.{name}": float(share) for name, share in shares.items() if share is not None}
    return found


def docstring_study(
    llm: LLM | None,
    folder: Path,
    facts: Sequence[tuple[str, str]] | None = None,
    count: int = 40,
    seed: int = 0,
    config: StudyConfig = StudyConfig(plain=True),
    embedder: Embedder | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """The study on docstrings that a model of ours was taught: documents and index are made in `folder`, anew.

    Args:
        llm: None = extraction. facts: (name, sentence) that the recipe taught; None: see `docstring_questions`.
        embedder: None = `Hashed`, which needs no download and gives the same vectors everywhere.
    """
    documents, questions = docstring_questions(count, seed, facts)
    with atomic.new_folder(folder / "documents") as files:
        for name, text in documents.items():
            (files / name).write_text(text, encoding="utf-8")
    store = LanceStore(str(folder / "index"))
    index = Index.create(store, embedder or Hashed(), folder / "documents", ChunkConfig())
    index.update()
    return study(index, questions, llm, config, progress)


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def docstring_questions(
    count: int = 40, seed: int = 0, facts: Sequence[tuple[str, str]] | None = None
) -> tuple[dict[str, str], list[Question]]:
    """Questions about functions of the standard library, `count` of each kind, and the documents that they go with.

    Left out: functions that are documented elsewhere only. Invented: a module that is documented with the name of
    another module's function, which it does not have.

    Args:
        facts: (qualified name, one sentence) that a recipe teaches, so that a model of ours knows them; None: 600 of
            this Python's docstrings.
    Returns:
        (file name -> text, questions)
    """
    from sekkei.data.code import docstring_facts

    known = list(facts) if facts is not None else docstring_facts(600)
    draw = random.Random(f"docstring questions {seed}")
    if len(known) < 2 * count + 1:
        raise ConfigError("count", f"{count} of each kind need {2 * count + 1} docstrings, there are {len(known)}")
    left_out = set(draw.sample(range(len(known)), count))
    written = [fact for place, fact in enumerate(known) if place not in left_out]
    documents = {f"{name}.txt": f"{name}\n\n{sentence}\n" for name, sentence in written}
    questions = [Question(_asked(name), "answerable", gold) for name, gold in draw.sample(written, count)]
    questions += [Question(_asked(known[place][0]), "left out", known[place][1]) for place in sorted(left_out)]
    names = {name for name, _ in known}
    for _ in range(1000 * count):
        if len(questions) == 3 * count:
            break
        module, function = (draw.choice(written)[0].partition(".")[part] for part in (0, 2))
        name = f"{module}.{function}"
        if name not in names and not _mentions(module, function):
            names.add(name)
            questions.append(Question(_asked(name), "invented"))
    else:
        raise ConfigError("count", f"{count} names that no module has are not to be found among {len(known)} functions")
    return documents, questions


def _mentions(module: str, word: str) -> bool:
    """Whether a module's source has the word anywhere; the module is not run."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return True  # a module that cannot be looked into is not drawn
    return (
        re.search(rf"\b{re.escape(word)}\b", Path(spec.origin).read_text(encoding="utf-8", errors="replace"))
        is not None
    )


def _asked(name: str) -> str:
    return f"What does {name} do?"


def read_questions(path: Path) -> list[Question]:
    """Questions of one's own, one JSON object per line: {"question": "…", "kind": "answerable", "gold": "…"}.

    Raises:
        UserError: the file cannot be read, or a line of it; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.append(Question(str(row["question"]), row["kind"], str(row.get("gold", ""))))
            if row["kind"] not in get_args(Kind):
                raise ValueError(f"kind is one of {', '.join(get_args(Kind))}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{number}: {type(error).__name__}: {error}") from None
    return found
