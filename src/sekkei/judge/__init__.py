"""Judging models where no single number can: agreement, win rates, rankings, and the biases of the judge itself.

    agreement      how far raters agree beyond chance, with intervals
    annotations    pairwise judgements in AlpacaEval's format, keyed by instruction
    length_control the GLM behind the length-controlled win rate
    winrate        raw and length-controlled win rates of many models, with intervals
    bradley_terry  one scale for many models from pairwise judgements
    bias           position, length and self-preference of judges, measured and removed
    cheats         answers that are made to fool a judge
    jury           several judges in one, with weights learnt from a few human labels
    simulate       judges with planted biases, to check all of the above

Everything here computes from judgements that are already there; it asks no model anything.
"""
