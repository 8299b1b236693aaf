"""One protocol for "something that answers": our own engine, any OpenAI-compatible endpoint, a cassette, a script.

    llm = open_llm("runs/laptop")                       # or "https://host/v1#model", "cassette:talk.jsonl"
    reply = llm.chat([user("start at 7, add 3, modulo 23")], Settings(temperature=0.0))
    reply.text, reply.thinking, reply.usage.total_tokens

`protocol.py` says what is exchanged, `face.py` how people call it. A backend is one class with four methods;
what all share (budget, retries, concurrency limit, cache, trace) are wrappers of a backend that are backends
themselves, composed in `open.py`.


    open.py       open_llm: specs and layers        http.py, wire.py          OpenAI-compatible endpoints
    budget.py, retry.py, limit.py,                  engine.py, run_folder.py  our own model
    cache.py, trace.py   the layers                 cassette.py, scripted.py  recordings, scripts
"""

from sekkei.llm.face import LLM
from sekkei.llm.open import LLMConfig, open_llm
from sekkei.llm.protocol import (
    Backend,
    BudgetError,
    Call,
    Capabilities,
    LLMError,
    Message,
    Piece,
    Reply,
    Score,
    Settings,
    ToolCall,
    TransientError,
    Usage,
    assistant,
    system,
    user,
)

__all__ = [
    "LLM",
    "Backend",
    "BudgetError",
    "Call",
    "Capabilities",
    "LLMConfig",
    "LLMError",
    "Message",
    "Piece",
    "Reply",
    "Score",
    "Settings",
    "ToolCall",
    "TransientError",
    "Usage",
    "assistant",
    "open_llm",
    "system",
    "user",
]
