"""Retrieval: a folder becomes an index; a question becomes passages, and an answer whose citations are checked.

    read -> chunk -> embed -> index          (sekkei rag index)
    question -> retrieve -> answer           (sekkei rag search, sekkei ask)

Every chunk is an exact slice of the text that was read from its file, so that a citation is a file and two numbers,
and can be looked up. Lewis et al. 2020, "Retrieval-Augmented Generation"; Karpukhin et al. 2020 (dense passages).
"""
