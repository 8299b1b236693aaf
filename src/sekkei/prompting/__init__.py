"""Strategies of reasoning at inference time, on anything that speaks the protocol of `llm/`.

    few_shot.py          in-context examples: which, in what order, with how many of each label
    cot.py               direct answers and chains of thought, zero- and few-shot
    self_consistency.py  many chains, the majority's answer
    best_of_n.py         many chains, the one that a verifier or a reward model likes best
    tot.py               Tree of Thoughts: search over partial solutions; thoughts.py asks a model for them
    tasks/               Game of 24 (exact), modular chain arithmetic
    study.py             every strategy over a set of problems: accuracy against tokens

Every strategy has `await solve(llm, question)` and returns a `Solution`: the answer, the tree of what was tried, every
call that was made and what it cost. `solve_with` is the plain face.
"""
