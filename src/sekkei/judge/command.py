"""A judging from files to files: what `sekkei judge run` and `sekkei judge compare` do once their options are read.

    answers → requests → estimate of tokens and costs → ask → annotations.json, scorecards.json, report.html

Without a judge nothing is asked: what programs have verified in the answers' rows, and what reward models score, is
filled in, and the rest says that it needs an external judge. `judged` is the part that a program calls (the recipe's
judge stage); `score` and `contrast` are the two verbs.

What it does not handle: parsing options (cli/judge.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core.errors import UserError
from sekkei.core.progress import Console
from sekkei.judge.annotations import to_row
from sekkei.judge.bias import family_of
from sekkei.judge.candidates import Candidate, read_candidates, shared_instructions
from sekkei.judge.cheats import Cheats, find_cheats
from sekkei.judge.compare import Comparison, compare
from sekkei.judge.intervals import Estimate
from sekkei.judge.ledger import Ledger
from sekkei.judge.rubric import Rubric, load_rubric
from sekkei.judge.runner import Outcome, ask, estimate
from sekkei.judge.scorecard import NEEDS_JUDGE, Scorecard
from sekkei.judge.session import Asked, Scores, Session, disputed
from sekkei.llm.open import open_llm
from sekkei.llm.reward import is_reward_spec, open_reward

OWN = ("flag", "leave-out", "refuse")


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Prices of a million tokens, in any one currency; both or none."""

    prompt: float | None = None
    completion: float | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.completion is None):
            raise UserError("--price-prompt and --price-completion go together")


@dataclass(frozen=True)
class Order:
    """What a judging was asked to do; see the options of `sekkei judge compare`.

    Args:
        judges: who judges, as `llm.open_llm` knows them; RUN#STAGE is a reward model where that stage's model has such
            a head. scorers: reward models that are open already.
    """

    answers: Sequence[Path]
    judges: Sequence[str] = ()
    families: dict[str, str] = field(default_factory=dict)
    own_family: str = "flag"
    concurrency: int = 16
    costs: Costs = Costs()
    dry_run: bool = False
    scorers: Sequence[Scores] = ()

    def __post_init__(self) -> None:
        if self.own_family not in OWN:
            raise UserError(f"--own-family {self.own_family}: must be one of {', '.join(OWN)}")
        if self.concurrency < 1:
            raise UserError(f"--concurrency {self.concurrency}: must be >= 1")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A judging by a rubric: scorecards, what looks like cheating, and how the asking went (None: nobody to ask)."""

    rubric: Rubric
    cards: list[Scorecard]
    cheats: list[tuple[str, Cheats]]
    outcome: Outcome | None

    @property
    def missing(self) -> list[str]:
        """Criteria that no model has a score for."""
        return [c.key for c in self.rubric.criteria if all(c.key in card.missing for card in self.cards)]


def judged(order: Order, rubric_file: Path | None, out: Path) -> Judged | None:
    """Score all answers and write scorecards.json and scorecards.html into `out`; None after a dry run.

    Raises:
        UserError: nothing could be scored; among others, nobody judges and no row holds anything verified.
    """
    rubric, session = load_rubric(rubric_file), open_session(order)
    _check_verified(session.candidates, rubric)
    with Ledger(out) as ledger:
        asked = session.rubric_requests(rubric)
        outcome = _ask(session, asked, ledger, order) if session.judges else None
        if order.dry_run:
            return None
        cards = session.scorecards(asked, ledger, rubric)
        if not cards:
            raise UserError(_nothing(outcome))
        cheats = _cheats(session.candidates)
        _write_scores(out / "scorecards.json", cards, rubric, session, cheats)
    from sekkei.judge.page import cheats_section, scorecard_section, write_page

    write_page(out / "scorecards.html", "Scorecards", [scorecard_section(cards, rubric), cheats_section(cheats)])
    return Judged(rubric=rubric, cards=cards, cheats=cheats, outcome=outcome)


def score(order: Order, rubric_file: Path | None, out: Path) -> int:
    """`sekkei judge run`. Returns 1 where judgements are missing."""
    found = judged(order, rubric_file, out)
    if found is None:
        return 0
    for line in [*scorecard_lines(found.cards, found.rubric), *_warnings(found.cheats)]:
        print(line)
    if found.missing:
        print(f"note: {', '.join(found.missing)}: {NEEDS_JUDGE}")
    print(f"figures: {out / 'scorecards.json'}\npage: {out / 'scorecards.html'}")
    return _exit(found.outcome)


def contrast(order: Order, rubric_file: Path | None, out: Path, scorecards: bool) -> int:
    """`sekkei judge compare`. Returns 1 where judgements are missing."""
    rubric, session = load_rubric(rubric_file), open_session(order)
    if len(session.candidates) < 2:
        raise UserError("compare needs the answers of at least two models; score one with sekkei judge run")
    _check_verified(session.candidates, rubric)
    if not shared_instructions(session.candidates):
        raise UserError("no instruction is answered by all models: their files must hold the same instructions")
    folder = out.with_name(f"{out.stem}.judging")
    with Ledger(folder) as ledger:
        pairs = session.pair_requests()
        scores = session.rubric_requests(rubric) if scorecards else []
        outcome = _ask(session, [*pairs, *scores], ledger, order) if session.judges else None
        if order.dry_run:
            return 0
        rows = session.annotations(pairs, ledger)
        if not rows:
            raise UserError(_nothing(outcome))
        cards = session.scorecards(scores, ledger, rubric)
        cheats = _cheats(session.candidates)
        atomic.write_json(folder / "annotations.json", rows)
        if cards:
            _write_scores(folder / "scorecards.json", cards, rubric, session, cheats)
    found = _compare(session, rows, order)
    atomic.write_json(folder / "comparison.json", found.as_json())
    _write_report(out, found, cards, rubric, cheats, rows)
    for line in [*comparison_lines(found), *(scorecard_lines(cards, rubric) if cards else []), *_warnings(cheats)]:
        print(line)
    print(f"report: {out}\nfigures, annotations and judgements: {folder}")
    return _exit(outcome)


def open_session(order: Order) -> Session:
    """Read the answers, open the judges, and look at whose family they are of.

    Raises:
        UserError: among others, a judge of a candidate's own family under `--own-family refuse`.
    """
    candidates = read_candidates(order.answers)
    rewarding = [spec for spec in order.judges if is_reward_spec(spec)]
    judges = [open_llm({"spec": s, "concurrency": order.concurrency}) for s in order.judges if s not in rewarding]
    scorers = [
        *order.scorers,
        *(open_reward(Path(run), stage) for run, _, stage in (s.partition("#") for s in rewarding)),
    ]
    session = Session(candidates, judges, order.families, order.own_family == "leave-out", scorers)
    if len(set(session.names)) < len(session.names):
        raise UserError(f"--judge: two judges have one name ({', '.join(session.names)}); leave one out")
    own = session.own_pairs()
    if own and order.own_family == "refuse":
        raise UserError(
            f"{own[0][0]} judges {own[0][1]}, a model of its own family; judges favour their own: take another judge, "
            "or --own-family leave-out, or --own-family flag to see the effect"
        )
    for judge, candidate in own:
        print(f"note: {judge} judges {candidate} of its own family ({order.own_family})")
    return session


def scorecard_lines(cards: Sequence[Scorecard], rubric: Rubric) -> Iterator[str]:
    """The scorecards as a table of text."""
    width = max(len("model"), *(len(card.name) for card in cards))
    heads = "".join(f"{criterion.key[:12]:>13}" for criterion in rubric.criteria)
    yield f"{'model':<{width}}{heads}  {'total of ' + format(rubric.points, 'g'):>22}  grade      unparsed"
    for card in cards:
        parts = "".join(_short(card.criteria[criterion.key]) for criterion in rubric.criteria)
        total = "–"
        if math.isfinite(card.total.value):
            total = f"{card.total.value:.2f} [{card.total.low:.2f}, {card.total.high:.2f}]"
        yield f"{card.name:<{width}}{parts}  {total:>22}  {card.grade:<10} {card.unparsed}"
    for card in cards:
        for name, reward in card.rewards.items():
            yield f"{card.name:<{width}}  mean of {name} {reward.value:.3f} [{reward.low:.3f}, {reward.high:.3f}]"


def _short(estimate: Estimate) -> str:
    return f"{estimate.value:13.2f}" if math.isfinite(estimate.value) else f"{'–':>13}"


def comparison_lines(found: Comparison) -> Iterator[str]:
    """Ranking and biases as tables of text."""
    ranked = found.ranking.candidates
    width = max(len("model"), *(len(one.name) for one in ranked))
    yield f"rank  {'model':<{width}}  {'Elo':>20}  95% of ranks"
    for one in ranked:
        elo = f"{one.elo.value:.0f} [{one.elo.low:.0f}, {one.elo.high:.0f}]"
        yield f"{one.rank:>4}  {one.name:<{width}}  {elo:>20}  {one.rank_low}-{one.rank_high}"
    for name, rates in found.raw.items():
        whole, outside, equal = (_share(rates[kind]) for kind in ("all", "without_own_family", "equally_long"))
        yield f"{name}: raw win rate {whole}, without judges of its family {outside}, of equally long answers {equal}"
    for a, b, rate in found.win:
        share = rate.scaled(100)
        yield f"{a} against {b}: {share.value:.1f}% [{share.low:.1f}, {share.high:.1f}]"
    for judge in found.biases.judges if found.biases else ():
        flips = f"{100 * judge.flip_rate:.1f}%" if judge.both_orders else "unknown (one order only)"
        own = judge.own_bonus
        yield (
            f"judge {judge.name}: prefers the first {100 * judge.first_share:.1f}%, flips {flips}, length slope "
            f"{judge.length_slope.value:.2f} [{judge.length_slope.low:.2f}, {judge.length_slope.high:.2f}]"
            + (f", own family {own.value:+.2f} [{own.low:.2f}, {own.high:.2f}]" if own else "")
        )
    for name, share in found.agreement.items():
        yield f"agreement, {name}: {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
    for note in [*found.ranking.notes, *found.notes, *(found.biases.notes if found.biases else [])]:
        yield f"note: {note}"


def _share(rate: Estimate) -> str:
    return (
        f"{100 * rate.value:.1f}% [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" if math.isfinite(rate.value) else "–"
    )


def _ask(session: Session, asked: Sequence[Asked], ledger: Ledger, order: Order) -> Outcome | None:
    """Say what it will cost, ask, say what it cost. None: a dry run, which asks nothing."""
    requests = [one.request for one in asked]
    ahead = estimate(requests, ledger)
    costs = ""
    if order.costs.prompt is not None and order.costs.completion is not None:
        costs = f", at most {ahead.cost(order.costs.prompt, order.costs.completion):.2f} in the prices' currency"
    print(
        f"{ahead.requests:,} requests to ask, {ahead.done:,} done before; about {ahead.prompt_tokens:,} prompt tokens "
        f"and at most {ahead.completion_tokens:,} written ones{costs}"
    )
    if ledger.unknown:
        print(f"note: {ledger.unknown} earlier requests were cut off under way: asked again, their cost is unknown")
    if order.dry_run:
        return None
    with Console().bar("judging", ahead.requests) as bar:
        outcome = ask(session.judges, requests, ledger, order.concurrency, bar.update)
    usage = outcome.usage
    if outcome.answered:
        print(f"{outcome.answered:,} answered: {usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens")
    return outcome


def _compare(session: Session, rows: Sequence[dict[str, Any]], order: Order) -> Comparison:
    """Rows of a session, with the families that its options give."""
    read = [row for row in rows if row["preference"] is not None]
    judges = sorted({row["annotator"] for row in read})
    names = sorted({row[key] for row in read for key in ("generator_1", "generator_2")})
    judge_family, candidate_family = ([family_of(name, order.families) for name in group] for group in (judges, names))
    judgements = [to_row(row, f"verdict {n}") for n, row in enumerate(rows, start=1)]
    return compare(judgements, None, judge_family, candidate_family)


def _write_report(
    out: Path,
    found: Comparison,
    cards: Sequence[Scorecard],
    rubric: Rubric,
    cheats: Sequence[tuple[str, Cheats]],
    rows: Sequence[dict[str, Any]],
) -> None:
    from sekkei.judge import page

    order = [one.name for one in found.ranking.candidates]
    sections = [page.ranking_section(found.ranking), page.win_section(found.win, order)]
    sections += [page.scorecard_section(cards, rubric)] if cards else []
    sections += [page.agreement_section(found.agreement, found.judges)] if found.agreement else []
    biases = page.bias_section(found.biases, found.raw) if found.biases else page.plain_section(found.notes, found.raw)
    sections.append(biases)
    sections += [page.cheats_section(cheats), page.disputed_section(disputed(rows))]
    page.write_page(out, "Models compared", sections)


def _write_scores(
    path: Path,
    cards: Sequence[Scorecard],
    rubric: Rubric,
    session: Session,
    cheats: Sequence[tuple[str, Cheats]],
) -> None:
    atomic.write_json(
        path,
        {
            "rubric": rubric.name,
            "points": rubric.points,
            "judges": session.names,
            "models": {card.name: card.as_json() for card in cards},
            "cheats": {name: found.as_json() for name, found in cheats},
        },
    )


def _check_verified(candidates: Sequence[Candidate], rubric: Rubric) -> None:
    known = [criterion.key for criterion in rubric.criteria]
    for one in candidates:
        for key in sorted({key for found in one.verified.values() for key in found}):
            if key not in known:
                has = f"the rubric {rubric.name} has no such criterion; it has {', '.join(known)}"
                raise UserError(f"{one.name}: verified.{key}: {has}")


def _cheats(candidates: Sequence[Candidate]) -> list[tuple[str, Cheats]]:
    return [
        (one.name, find_cheats(list(one.answers), list(one.answers.values()), list(one.reasons.values())))
        for one in candidates
    ]


def _warnings(cheats: Sequence[tuple[str, Cheats]]) -> list[str]:
    return [f"warning: {name}: {what}; its scores mean nothing" for name, found in cheats for what in found.suspicious]


def _nothing(outcome: Outcome | None) -> str:
    if outcome is None:
        return f"nobody judges, and no row holds anything that a program has verified; it {NEEDS_JUDGE}"
    why = outcome.stopped or (outcome.failures[0] if outcome.failures else "no judge replied in the form asked for")
    return f"no judgement could be read: {why}"


def _exit(outcome: Outcome | None) -> int:
    if outcome is None or not (outcome.failures or outcome.stopped):
        return 0
    print(f"{len(outcome.failures)} requests failed; the same command asks them again. Last: {outcome.failures[-1:]}")
    if outcome.stopped:
        print(f"stopped early: {outcome.stopped}")
    return 1
