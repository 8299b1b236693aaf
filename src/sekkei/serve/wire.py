"""What clients send, checked; and how they are told what was wrong. OpenAI's shapes (platform.openai.com/docs).

Beyond OpenAI's own keys: `top_k`, `min_p`, `repetition_penalty` and `chat_template_kwargs.enable_thinking`, under the
names that vLLM uses. Keys that only describe the call (`user`, `metadata`, `store`, …) are taken and have no effect, as
at OpenAI. A key that would change the answer and is not handled is refused by name: `logit_bias`, `presence_penalty`,
`frequency_penalty`, `suffix`, `best_of` and contents that are no text.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sekkei.core.errors import UserError
from sekkei.engine.request import MAX_TOP_LOGPROBS

MAX_SAMPLES = 128


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP. param: the key that is wrong. code: for programs. headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def bad(message: str | UserError, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered, 400."""
    return ApiError(400, " ".join(str(message).split()), param=param, code=code)


def _off(value: Any) -> None:
    """Of keys that are not handled, only the value that changes nothing."""
    if value not in (None, 0, 0.0, "", {}, []):
        raise ValueError("is not handled by this server; leave it out")


def _text(content: Any) -> Any:
    """Contents come as text, or as a list of parts of which only text parts are handled."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError("only text parts are handled: {'type': 'text', 'text': ...}")
        texts.append(part["text"])
    return "".join(texts)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Off = Annotated[Any, BeforeValidator(_off), Field(json_schema_extra={"description": "not handled"})]
Ignored = Annotated[Any, Field(default=None, json_schema_extra={"description": "taken, without effect"})]
Stop = Annotated[str, Field(min_length=1)]
Stops = Annotated[Annotated[list[Stop], Field(max_length=16)] | None, BeforeValidator(_listed)]
TokenId = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Drawing(_Strict):
    """What completions and chats share."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    n: int | None = Field(None, ge=1, le=MAX_SAMPLES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stops = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Ignored
    metadata: Ignored
    store: Ignored
    service_tier: Ignored
    safety_identifier: Ignored
    prompt_cache_key: Ignored
    logit_bias: Off = None
    presence_penalty: Off = None
    frequency_penalty: Off = None


class CompletionRequest(Drawing):
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None
    suffix: Off = None
    best_of: Off = None


class CalledFunction(_Strict):
    name: str = Field(min_length=1)
    arguments: str = "{}"


class CallMade(_Strict):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatMessage(BaseModel):
    """Keys that clients echo from our own answers (`refusal`, `annotations`, `audio`, …) are left out."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_text)] = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: list[CallMade] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates want it."""
        said: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or "",
        }
        if self.role == "assistant" and self.reasoning_content is not None:
            said["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            said["tool_calls"] = [call.model_dump(exclude={"index"}) for call in self.tool_calls]
        return said


class ToolFunction(_Strict):
    name: str = Field(min_length=1, max_length=64, pattern="^[A-Za-z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolOffered(_Strict):
    type: Literal["function"]
    function: ToolFunction


class NamedFunction(_Strict):
    name: str


class NamedTool(_Strict):
    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TemplateOptions(_Strict):
    enable_thinking: bool = True


class ChatRequest(Drawing):
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[list[ToolOffered], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Ignored
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateOptions | None = None


class EmbeddingRequest(_Strict):
    model: str | None = None
    input: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Off = None
    user: Ignored
