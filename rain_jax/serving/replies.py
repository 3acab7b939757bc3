"""Replies in OpenAI's form, whole or in chunks, with what is our own in fields `rain`."""

import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rain_jax.methods.session import Response
from rain_jax.serving.bodies import Ask
from rain_jax.serving.requests import Refused

DONE = b"data: [DONE]\n\n"


def error(refused: Refused) -> dict[str, Any]:
  """A refusal."""
  said = {"message": str(refused), "type": refused.kind}
  return {"error": {**said, "param": refused.param, "code": refused.code}}


def encoded(value: Mapping[str, Any]) -> bytes:
  """JSON in ASCII: half a character that a client sent has no other form."""
  return json.dumps(value, allow_nan=False).encode("ascii")


def event(value: Mapping[str, Any]) -> bytes:
  """An event of a stream."""
  return b"data: " + encoded(value) + b"\n\n"


class Reply:
  """The reply to one request.

  Args:
    ask: the request.
    prompt_tokens: of each choice's prompt.
  """

  def __init__(self, ask: Ask, prompt_tokens: Sequence[int]):
    self._ask, self._prompt_tokens = ask, prompt_tokens
    self._chat = not ask.kind.raw
    self._id = ("chatcmpl-" if self._chat else "cmpl-") + secrets.token_hex(12)
    self._created = int(time.time())

  def whole(self, answers: Sequence[Response]) -> dict[str, Any]:
    """All choices, and what they took."""
    choices = []
    for index, answer in enumerate(answers):
      said = {"role": "assistant", "content": answer.text, "refusal": None}
      text = {"message": said} if self._chat else {"text": answer.text}
      choices.append({"index": index, **text, **_end(answer)})
    return self._frame("chat.completion", choices, usage=self.usage(answers))

  def begin(self, index: int) -> dict[str, Any]:
    """The first chunk of a choice."""
    return self._chunk(index, {"role": "assistant", "content": ""}, "")

  def text(self, index: int, text: str) -> dict[str, Any]:
    """A chunk with text."""
    return self._chunk(index, {"content": text}, text)

  def end(self, index: int, answer: Response) -> dict[str, Any]:
    """The last chunk of a choice."""
    return self._chunk(index, {}, "", _end(answer))

  def last(self, answers: Sequence[Response]) -> dict[str, Any]:
    """The chunk after all choices: what they took."""
    return self._frame("chat.completion.chunk", [], usage=self.usage(answers))

  def usage(self, answers: Sequence[Response]) -> dict[str, Any]:
    """Tokens, and all counters of the work done."""
    work: Counter[str] = Counter()
    for answer in answers:
      work.update(answer.counters)
    prompt, completion = sum(self._prompt_tokens), sum(len(answer.tokens) for answer in answers)
    tokens = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {**tokens, "total_tokens": prompt + completion, "rain": dict(work)}

  def _chunk(
    self, index: int, delta: Mapping, text: str, end: Mapping[str, Any] | None = None
  ) -> dict[str, Any]:
    said = {"delta": delta} if self._chat else {"text": text}
    choice = {"index": index, **said, **(end or {"logprobs": None, "finish_reason": None})}
    return self._frame("chat.completion.chunk", [choice])

  def _frame(self, kind: str, choices: Sequence[Mapping], **more) -> dict[str, Any]:
    ask = self._ask
    return {
      "id": self._id,
      "object": kind if self._chat else "text_completion",
      "created": self._created,
      "model": ask.model,
      "choices": choices,
      **more,
      "rain": {
        "method": ask.kind.method,
        "preference": ask.kind.preference,
        "seed": ask.seed,
        "ignored": ask.ignored,
      },
    }


def _end(answer: Response) -> dict[str, Any]:
  """Why a choice ends, in OpenAI's words and in ours, and what the model itself says of it."""
  reason = "length" if answer.finish_reason == "length" else "stop"
  ours = {
    "finish_reason": answer.finish_reason,
    "verdict": answer.verdict,
    "log_likelihood": answer.log_likelihood,
  }
  return {"logprobs": None, "finish_reason": reason, "rain": ours}
