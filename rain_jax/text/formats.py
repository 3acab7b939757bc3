"""How a conversation is put to a model: text around the turns, or a tokenizer's chat template."""

import dataclasses
import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2

from rain_jax.text import dates, encoding
from rain_jax.types import DataError, is_unicode

PROMPT = "{prompt}"


@dataclasses.dataclass(frozen=True)
class Format:
  """How prompts are put to the model.

  Attributes:
    prefix: fixed text before every prompt, read by the model once per run; an empty line
      follows it.
    template: the user's turn, with {prompt}; the response follows directly.
    stop: strings that end a response.
    between: what stands between a response and the next turn; None takes the white space
      that stands after {prompt} in the template.
    opening: text before the first turn; the system message of a chat template.
    special: names of special tokens in `between` and `opening` stand for the tokens.
    chat: take everything from the tokenizer's chat template; template, between and prefix
      have no say then.
    now: what a chat template takes for the time, as 2026-01-31T12:00:00; "" asks the clock.

  Raises:
    DataError: no {prompt} in the template, a stop string that is empty, or something that is no text.
  """

  prefix: str = ""
  template: str = "Human: {prompt}\n\nAssistant:"
  stop: tuple[str, ...] = ("\n\nHuman:",)
  between: str | None = None
  opening: str = ""
  special: bool = False
  chat: bool = False
  now: str = ""

  def __post_init__(self) -> None:
    if not isinstance(self.stop, (tuple, list)):
      raise DataError(
        f"format.stop={self.stop!r:.60}: expected a list of texts, such as ('a', 'b')."
      )
    object.__setattr__(self, "stop", tuple(self.stop))
    texts = {name: getattr(self, name) for name in ("prefix", "template", "between", "opening")}
    for name, text in (*texts.items(), *(("stop", text) for text in self.stop)):
      if not (name == "between" and text is None or isinstance(text, str) and is_unicode(text)):
        raise DataError(f"format.{name}={text!r:.60}: expected text.")
    if "" in self.stop:
      raise DataError("format.stop: '' stands everywhere; expected texts that end a response.")
    if PROMPT not in self.template:
      raise DataError(f"format.template={self.template!r:.60}: expected {PROMPT} in it.")

  def render(self, prompt: str, history: Sequence[str] = ()) -> str:
    """The conversation as text; braces in what was said mean nothing."""
    return self.opening + join_turns(self.template, prompt, history, self.between)

  def encode(
    self, tokenizer: Any, prompt: str, history: Sequence[str] = ()
  ) -> tuple[list[int], str]:
    """The conversation's tokens after the prefix, and its last character.

    The name of a special token in what was said stays text, in every format.

    Raises:
      DataError: there is no chat template, or it does not take this conversation.
      ValueError: the text has no tokens of its own, see `encoding.encode_continuation`.
    """
    said = (*history, prompt)
    if self.chat:
      render = lambda said: self.rendered(tokenizer, said)
      return encode_around(tokenizer, render, said, begin=False), render(said)[-1:]
    text = self.render(prompt, history)
    if self.special:
      render = lambda said: self.render(said[-1], said[:-1])
      ids = encode_around(tokenizer, render, said, begin=True)
    elif self.prefix:
      ids = encoding.encode_continuation(tokenizer, text)
    else:
      ids = list(tokenizer(text, split_special_tokens=True).input_ids)
    return ids, text[-1:]

  def prefix_ids(self, tokenizer: Any) -> list[int]:
    """Tokens of the prefix and of the empty line after it; none without a prefix."""
    if not self.prefix or self.chat:
      return []
    return list(tokenizer(self.prefix + "\n\n").input_ids)

  def end_ids(self, tokenizer: Any) -> tuple[int, ...]:
    """The special token by which the chat template ends a response, if it has one."""
    if not self.chat:
      return ()
    answer = "zqx"  # stands in no template
    whole = self.rendered(tokenizer, ("a", answer), generate=False)
    after = whole[whole.rindex(answer) :]
    names = _special_names(tokenizer)
    first = re.search("|".join(map(re.escape, names)), after) if names else None
    return (tokenizer.convert_tokens_to_ids(first[0]),) if first else ()

  def rendered(self, tokenizer: Any, said: Sequence[str], generate: bool = True) -> str:
    """What the chat template makes of turns of user and assistant.

    Args:
      tokenizer: has the template.
      said: the turns, the user's first.
      generate: end where the assistant's next turn begins.

    Raises:
      DataError: there is no chat template, or it does not take this conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
      raise DataError(
        "format.name='chat': the tokenizer has no chat template; name the family's format"
        f" instead ({', '.join(name for name in FORMATS if name != 'chat')})."
      )
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    if self.opening:
      messages.insert(0, {"role": "system", "content": self.opening})
    return render_chat(tokenizer, messages, generate, self.now)


def render_chat(
  tokenizer: Any, messages: Sequence[Mapping[str, str]], generate: bool = True, now: str = ""
) -> str:
  """Messages as the tokenizer's chat template puts them; `generate` begins an answer after them.

  A template that asks for today's date is told `now`, in ISO format, unless that is empty.

  Raises:
    DataError: the template, which has to be there, does not take this conversation.
  """
  template = tokenizer.get_chat_template()
  if now:
    template = dates.at(template, datetime.datetime.fromisoformat(now))
  try:
    return tokenizer.apply_chat_template(
      messages, chat_template=template, tokenize=False, add_generation_prompt=generate
    )
  except jinja2.TemplateError as error:
    raise DataError(f"the chat template does not take this conversation: {error}") from None


def join_turns(
  template: str, prompt: str, history: Sequence[str] = (), between: str | None = None
) -> str:
  """A conversation in one template: each user's turn, the answer after it, and so on."""
  if between is None:
    after = template.partition(PROMPT)[2]
    between = after[: len(after) - len(after.lstrip())]
  # Where a template ends in white space, the answer needs none of its own.
  space = "" if template[-1:].isspace() else " "
  text = ""
  for user, answer in zip(history[::2], history[1::2], strict=True):
    text += template.replace(PROMPT, user) + space + answer + between
  return text + template.replace(PROMPT, prompt)


def _special_tokens(tokenizer: Any) -> dict[int, str]:
  return {id: t.content for id, t in tokenizer.added_tokens_decoder.items() if t.special}


def _special_names(tokenizer: Any) -> list[str]:
  return sorted(set(_special_tokens(tokenizer).values()), key=len, reverse=True)


def _split_at(names: Iterable[str], text: str) -> list[str]:
  """The text in pieces, each a name or without any; longer names come before those they contain."""
  longest_first = sorted(names, key=len, reverse=True)
  return (
    re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text) if longest_first else [text]
  )


def special_ids(tokenizer: Any) -> list[int]:
  """The tokens by which a tokenizer marks turns and ends, and all others that are no text."""
  return sorted({*tokenizer.all_special_ids, *_special_tokens(tokenizer)})


def encode_frame(tokenizer: Any, text: str) -> list[int]:
  """Tokens of a template's own text after other text; names of special tokens stand for them.

  Raises:
    ValueError: a piece has no tokens of its own, see `encoding.encode_continuation`.
  """
  special, ids = {name: id for id, name in _special_tokens(tokenizer).items()}, []
  for piece in _split_at(special, text):
    ids += [special[piece]] if piece in special else encoding.encode_continuation(tokenizer, piece)
  return ids


def encode_around(
  tokenizer: Any, render: Callable[[Sequence[str]], str], said: Sequence[str], begin: bool
) -> list[int]:
  """Tokens of a rendered text in which special tokens count, but not in what was said.

  Args:
    tokenizer: fast tokenizer of transformers.
    render: puts what was said into its frame.
    said: the turns.
    begin: put the tokenizer's own beginning of a text before it.
  """
  names = _special_names(tokenizer)
  if not any(name in text for name in names for text in said):
    return list(tokenizer(render(said), add_special_tokens=begin).input_ids)
  # Names in what was said hide after characters of no use elsewhere while the text is cut
  # at the frame's special tokens.
  free = (chr(code) for code in range(0xE000, 0xF8FF) if not any(chr(code) in t for t in said))
  hidden = dict(zip(names, free))

  def swap(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
      text = text.replace(old, new)
    return text

  text = render([swap(one, hidden.items()) for one in said])
  pieces = _split_at(names, text)
  ids = list(tokenizer("").input_ids) if begin else []
  for piece in pieces:
    if piece in hidden:
      ids.append(tokenizer.convert_tokens_to_ids(piece))
    elif piece:
      plain = swap(piece, ((new, old) for old, new in hidden.items()))
      ids += tokenizer(plain, add_special_tokens=False, split_special_tokens=True).input_ids
  return ids


DIALOGUE = Format()
# Examples in our own words, for models that know no dialogue format.
FEW_SHOT = Format(
  prefix=(
    "A person talks with an assistant who answers in a few clear sentences.\n\n"
    "Human: Which way does the moss grow on a tree?\n\n"
    "Assistant: Mostly where it stays damp, so often on the shaded side. It is no compass.\n\n"
    "Human: I burnt the rice again. Can I save the pot?\n\n"
    "Assistant: Yes. Fill it with water, add a spoon of baking soda, and let it simmer for"
    " ten minutes. The crust should come off."
  )
)
VICUNA = Format(template="USER: {prompt} ASSISTANT:", stop=("USER:",), between="</s>", special=True)
LLAMA2_CHAT = Format(
  template="[INST] {prompt} [/INST]", stop=("[INST]",), between=" </s><s>", special=True
)
CHAT = Format(stop=(), chat=True)
QUESTION = Format(template="Q: {prompt}\nA:", stop=("\nQ:",))
REVIEW = Format(template="Review: {prompt}", stop=("\nReview:",))
CHOICE = Format(template="{prompt}\nAnswer: (", stop=("\n",))

FORMATS = {
  "dialogue": DIALOGUE,
  "few_shot": FEW_SHOT,
  "vicuna": VICUNA,
  "llama2_chat": LLAMA2_CHAT,
  "chat": CHAT,
  "question": QUESTION,
  "review": REVIEW,
  "choice": CHOICE,
}


def find_format(name: str) -> Format:
  """The format of that name; `DataError` lists the known ones."""
  if name not in FORMATS:
    raise DataError(f"Unknown format {name!r}: expected one of {', '.join(FORMATS)}.")
  return FORMATS[name]
