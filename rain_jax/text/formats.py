"""How a conversation is put to a model: text around the turns, or a tokenizer's chat template."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rain_jax.text import chat, control, encoding
from rain_jax.text.printable import one_line
from rain_jax.types import DataError, is_unicode

PROMPT = "{prompt}"
STRIP = "strip"
_STAND_INS = ("zqs", "zqu")  # what system and user say where it does not matter; in no template


@dataclasses.dataclass(frozen=True)
class Format:
  """How prompts are put to the model.

  Attributes:
    prefix: fixed text before every prompt, read by the model once per run; an empty line
      follows it.
    template: the user's turn, with {prompt}; the response follows directly.
    stop: strings that end a response.
    suppress: strings; a token that contains one of them is never drawn.
    between: what stands between a response and the next turn; None takes the white space
      that stands after {prompt} in the template.
    opening: text before the first turn; the system message of a chat template.
    special: names of control tokens in `between` and `opening` stand for the tokens.
    chat: take everything from the tokenizer's chat template; template, between and prefix
      have no say then.
    template_kwargs: what a chat template is given besides, such as {"enable_thinking": False}:
      texts, numbers, True and False by name; kept as pairs.
    thinking: "strip" for a model that thinks before it answers: what stands before the mark is
      sampled first, and is no part of the answer, see `rain_jax.methods.thoughts`.
    think_end: the mark that ends a thought, with the white space that the model puts after it.
    now: what a chat template takes for the time, as 2026-01-31T12:00:00; "" asks the clock.

  Raises:
    DataError: no {prompt} in the template, a stop or suppressed string that is empty, or something that is no text.
  """

  prefix: str = ""
  template: str = "Human: {prompt}\n\nAssistant:"
  stop: tuple[str, ...] = ("\n\nHuman:",)
  suppress: tuple[str, ...] = ()
  between: str | None = None
  opening: str = ""
  special: bool = False
  chat: bool = False
  now: str = ""
  template_kwargs: tuple[tuple[str, Any], ...] = ()
  thinking: str = ""
  think_end: str = "</think>\n\n"

  def __post_init__(self) -> None:
    texts = [(name, getattr(self, name)) for name in ("prefix", "template", "between", "opening")]
    for name in ("stop", "suppress"):
      listed = getattr(self, name)
      if not isinstance(listed, (tuple, list)):
        raise DataError(
          f"format.{name}={listed!r:.60}: expected a list of texts, such as ('a', 'b')."
        )
      object.__setattr__(self, name, tuple(listed))
      texts += [(name, text) for text in listed]
    for name, text in texts:
      if not (name == "between" and text is None or isinstance(text, str) and is_unicode(text)):
        raise DataError(f"format.{name}={text!r:.60}: expected text.")
    if "" in self.stop:
      raise DataError("format.stop: '' stands everywhere; expected texts that end a response.")
    if "" in self.suppress:
      raise DataError("format.suppress: '' is in every token; expected texts not to be written.")
    object.__setattr__(self, "template_kwargs", self._pairs())
    if self.template_kwargs and not self.chat:
      raise DataError("format.template_kwargs are for a chat template: set format.name=chat.")
    if self.thinking not in ("", STRIP):
      raise DataError(f"format.thinking={self.thinking!r:.60}: expected {STRIP} or nothing.")
    if not isinstance(self.think_end, str) or not self.think_end.strip():
      raise DataError(f"format.think_end={self.think_end!r:.60}: expected the text of a mark.")
    if PROMPT not in self.template:
      raise DataError(f"format.template={self.template!r:.60}: expected {PROMPT} in it.")

  def _pairs(self) -> tuple[tuple[str, Any], ...]:
    """`template_kwargs`, a mapping or what a manifest keeps of it, as pairs in order."""
    given: Any = self.template_kwargs
    try:
      pairs = dict(given)
    except (TypeError, ValueError):
      raise DataError(
        f"format.template_kwargs={given!r:.60}: expected a dict, such as"
        " {'enable_thinking': False}."
      ) from None
    for name, value in pairs.items():
      if not isinstance(name, str) or not isinstance(value, (str, int, float)):
        raise DataError(
          f"format.template_kwargs.{name!s:.40}={value!r:.40}: expected text, a number, True or"
          " False."
        )
    return tuple(sorted(pairs.items()))

  def in_thought(self, text: str) -> bool:
    """Whether what a model says, from where its turn begins, stops in the middle of a thought."""
    end = self.think_end.strip()
    begin = _beginning(end)
    return bool(begin) and text.rfind(begin) > text.rfind(end)

  def without_opening(self, thought: str) -> str:
    """A thought without the mark that may begin it, and white space around it."""
    return thought.strip().removeprefix(_beginning(self.think_end.strip())).strip()

  def opening_of_answers(self, tokenizer: Any) -> str:
    """What stands between the user's last turn and the answer.

    Raises:
      DataError: there is no chat template, or none that shows what was said.
    """
    said = _STAND_INS[1:]
    text = self.rendered(tokenizer, said) if self.chat else self.render(*said)
    chat.check_kept(text, said, ())
    return text[text.rindex(said[0]) + len(said[0]) :]

  def render(
    self, prompt: str, history: Sequence[str] = (), system: str = "", prefill: str = ""
  ) -> str:
    """The conversation as text; braces in what was said mean nothing."""
    return self.opening + join_turns(
      self.template, prompt, history, self.between, system=system, prefill=prefill
    )

  def encode(
    self,
    tokenizer: Any,
    prompt: str,
    history: Sequence[str] = (),
    system: str = "",
    prefill: str = "",
  ) -> tuple[list[int], str]:
    """The conversation's tokens after the prefix, and its last character.

    The name of a control token in what was said stays text, in every format.

    Args:
      tokenizer: fast tokenizer of transformers.
      prompt: the user's last turn.
      history: the turns before it, in turn by user and assistant.
      system: a system message. It takes the place of `opening` in a chat template, and begins the
        first user turn where there is no role for it, see `has_system_role`.
      prefill: how the answer begins; what is generated continues it.

    Raises:
      DataError: there is no chat template, or it does not take this conversation.
      ValueError: the text has no tokens of its own, see `encoding.encode_continuation`.
    """
    said = (system, *history, prompt, prefill)
    if self.chat:
      own_role = bool(system) and self.has_system_role(tokenizer)

      def render(said: Sequence[str]) -> str:
        turns = said[1:-1] if own_role else with_system(said[0], said[1:-1])
        return self.rendered(tokenizer, turns, system=said[0] if own_role else "", prefill=said[-1])

      text = render(said)
      if system.strip() not in text:
        raise DataError("the chat template drops or rewrites the system message of this dialogue")
      chat.check_kept(text, said[1:], list(control.control_tokens(tokenizer)))
      return control.encode_around(tokenizer, render, said, begin=False), text[-1:]
    text = self.render(prompt, history, system, prefill)
    if self.special:
      render = lambda said: self.render(said[-2], said[1:-2], said[0], said[-1])
      ids = control.encode_around(tokenizer, render, said, begin=True)
    elif self.prefix:
      ids = encoding.encode_continuation(tokenizer, text)
    else:
      ids = control.begin_ids(tokenizer) + control.plain_ids(tokenizer, text)
    return ids, text[-1:]

  def prefix_ids(self, tokenizer: Any) -> list[int]:
    """Tokens of the prefix and of the empty line after it; none without a prefix."""
    if not self.prefix or self.chat:
      return []
    render = lambda said: self.prefix + "\n\n"
    return control.encode_around(tokenizer, render, (), begin=True)

  def end_ids(self, tokenizer: Any) -> tuple[int, ...]:
    """The control token by which the chat template ends a response, if it has one.

    Raises:
      DataError: there is no chat template, or none that shows what was said.
    """
    if not self.chat:
      return ()
    said = ("zqu", "zqx")  # stand in no template
    whole = self.rendered(tokenizer, said, generate=False)
    names = control.control_tokens(tokenizer)
    chat.check_kept(whole, said, list(names))
    pieces = control.split_at(list(names), whole[whole.rindex(said[1]) :])
    return (names[pieces[1]],) if len(pieces) > 1 else ()

  def has_system_role(self, tokenizer: Any) -> bool:
    """Whether system messages have a place of their own: in chat templates that show them."""
    if not self.chat:
      return False
    try:
      return _STAND_INS[0] in self.rendered(tokenizer, _STAND_INS[1:], system=_STAND_INS[0])
    except DataError:
      return False

  def rendered(
    self,
    tokenizer: Any,
    said: Sequence[str],
    generate: bool = True,
    system: str = "",
    prefill: str = "",
  ) -> str:
    """What the chat template makes of turns of user and assistant.

    Args:
      tokenizer: has the template.
      said: the turns, the user's first.
      generate: end where the assistant's next turn begins.
      system: in place of `opening`.
      prefill: how the assistant's next turn begins, after which the text ends, as the template
        puts an answer; its white space at the end stays.

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
    if system or self.opening:
      messages.insert(0, {"role": "system", "content": system or self.opening})
    if prefill:
      text = self._begun(tokenizer, messages, prefill)
    else:
      text = self._render(tokenizer, messages, generate)
    if not system and self.opening.strip() not in text:
      raise DataError(
        "the chat template drops or rewrites the system message, format.opening: leave that empty,"
        " or choose another format"
      )
    return text

  def _render(self, tokenizer: Any, messages: Sequence[Mapping[str, str]], generate: bool) -> str:
    return chat.render(tokenizer, messages, generate, self.now, dict(self.template_kwargs))

  def _begun(self, tokenizer: Any, messages: Sequence[Mapping[str, str]], prefill: str) -> str:
    """The messages and the beginning of an answer, without what the template puts after answers."""

    def answered(text: str) -> str:
      answer = {"role": "assistant", "content": text}
      return self._render(tokenizer, [*messages, answer], False)

    _, found, closing = answered(_STAND_INS[0]).rpartition(_STAND_INS[0])
    whole = answered(prefill)
    begun = whole.removesuffix(closing).rstrip()
    if not found or not whole.endswith(closing) or not begun.endswith(prefill.strip()):
      raise DataError(
        "the chat template drops or rewrites the beginning of the answer, a last message of the"
        f" assistant: {one_line(prefill, 60)!r}"
      )
    return begun + prefill[len(prefill.rstrip()) :]


def _beginning(end: str) -> str:
  """The mark that begins a thought, from that which ends it, as tags are: "" if it is no tag."""
  return end.replace("/", "", 1) if "/" in end else ""


def with_system(system: str, said: Sequence[str]) -> list[str]:
  """Turns, the first of which begins with a system message, if there is one."""
  return [f"{system}\n\n{said[0]}", *said[1:]] if system else list(said)


def join_turns(
  template: str,
  prompt: str,
  history: Sequence[str] = (),
  between: str | None = None,
  *,
  system: str = "",
  prefill: str = "",
) -> str:
  """A conversation in one template: each user's turn, the answer after it, and so on.

  A system message begins the first user turn, and a prefill the last answer.
  """
  *history, prompt = with_system(system, (*history, prompt))
  if between is None:
    after = template.partition(PROMPT)[2]
    between = after[: len(after) - len(after.lstrip())]
  # Where a template ends in white space, the answer needs none of its own.
  space = "" if template[-1:].isspace() else " "
  text = ""
  for user, answer in zip(history[::2], history[1::2], strict=True):
    text += template.replace(PROMPT, user) + space + answer + between
  text += template.replace(PROMPT, prompt)
  return text + space + prefill if prefill else text


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
