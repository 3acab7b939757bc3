"""A preference in the tokens of one tokenizer."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from rain_jax.preferences.template import CHAT, Preference, PreferenceError
from rain_jax.text import chat, control, encoding, formats

_PLACE, _ANSWER = "zqxu", "zqxa"  # a user's turn and an answer; stand in no chat template
_STAND_IN = "<"


@dataclasses.dataclass(frozen=True)
class CompiledPreference:
  """A preference in the tokens of one tokenizer; static and hashable.

  Attributes:
    prefix_ids: tokens that all verdicts begin with, the tokenizer's own token for the
      beginning of a text included.
    suffix_ids: per reading, the tokens after the response.
    good_ids: per reading, the tokens of its good labels, one each, without repeats.
    bad_ids: likewise of its bad labels; no token is both.
    cut: judge a response up to its last full stop only.
    conversation: see `Preference`.
    tokenizer: what the tokens belong to.
    control_ids: tokens of a response that the verdict reads as `stand_in`, or none.
    stand_in: a token of plain text.
    scored: asks nothing: the text has the score of a reward model, which is the reading's lead.
    opening: of answers in a scored text's chat template, the last token and the white space that
      the template puts after it; None where that is not known.
  """

  prefix_ids: tuple[int, ...]
  suffix_ids: tuple[tuple[int, ...], ...]
  good_ids: tuple[tuple[int, ...], ...]
  bad_ids: tuple[tuple[int, ...], ...]
  cut: bool
  conversation: str
  tokenizer: Any = dataclasses.field(repr=False, compare=False)
  control_ids: tuple[int, ...] = ()
  stand_in: int = 0
  scored: bool = False
  opening: tuple[int, str] | None = dataclasses.field(default=None, compare=False)

  def conversation_ids(
    self, prompt: str, history: Sequence[str] = (), system: str = "", prefill: str = ""
  ) -> tuple[int, ...]:
    """Tokens between prefix and response, for one prompt and what was said before it.

    A system message begins the first user turn; a prefill is the beginning of what is judged.

    Raises:
      ValueError: if the text has no tokens of its own, see `encoding.encode_continuation`.
    """
    if self.scored:
      return tuple(formats.CHAT.encode(self.tokenizer, prompt, history, system, prefill)[0])
    text = formats.join_turns(self.conversation, prompt, history, system=system, prefill=prefill)
    return tuple(encoding.encode_continuation(self.tokenizer, text))

  def spoken(self, response: Sequence[int]) -> list[int]:
    """A response's tokens as a verdict reads them, control tokens as plain text."""
    control = frozenset(self.control_ids)
    return [self.stand_in if token in control else token for token in response]

  @property
  def digest(self) -> str:
    """sha256, in hex, of everything that a verdict reads besides what it is about."""
    # `scored` where it says something: calibrations from before it was a field stay valid.
    fields = (
      f for f in dataclasses.fields(self) if f.compare and (f.name != "scored" or self.scored)
    )
    read = repr([(field.name, getattr(self, field.name)) for field in fields])
    return hashlib.sha256(read.encode()).hexdigest()


def compile_preference(
  preference: Preference, tokenizer: Any, form: formats.Format = formats.CHAT
) -> CompiledPreference:
  """Turns a preference into tokens.

  Prefix, conversation, response and suffix are joined as tokens, so each is tokenised
  as it continues other text. Text that spells a control token stays plain text; only what a
  chat template puts around the user's turn has special tokens.

  Args:
    preference: what to compile.
    tokenizer: fast tokenizer of transformers.
    form: the format of the run, for what its chat template is given.

  Raises:
    PreferenceError: for a label that is not exactly one token (the chat form takes a label's
      first), or the same token as a label of the other side; for a chat form without template.
  """

  def encode(text: str) -> list[int]:
    try:
      return encoding.encode_continuation(tokenizer, text)
    except ValueError as error:
      raise PreferenceError(f"Preference {preference.label!r}: {error}") from None

  if preference.form == CHAT:
    prefix, closing, label_id = _chat_frame(preference, tokenizer, encode, form)
  else:
    prefix, closing = _prefix_ids(tokenizer, preference.prefix), ()
    label_id = lambda suffix, label: _label_id(encode, preference, tokenizer, suffix, label)
  suffixes, good, bad = [], [], []
  for reading in preference.readings:
    sides = []
    for labels in (reading.good, reading.bad):
      sides.append(tuple(dict.fromkeys(label_id(reading.suffix, label) for label in labels)))
    for token in sides[0]:
      if token in sides[1]:
        raise PreferenceError(
          f"Preference {preference.label!r}: token {_piece(tokenizer, token)!r} stands for a"
          f" good and a bad label ({reading.good}, {reading.bad}); choose other labels."
        )
    suffixes.append((*encode(reading.suffix), *closing))
    good.append(sides[0])
    bad.append(sides[1])
  chat = preference.form == CHAT
  return CompiledPreference(
    prefix_ids=prefix,
    suffix_ids=tuple(suffixes),
    good_ids=tuple(good),
    bad_ids=tuple(bad),
    cut=preference.cuts,
    conversation=preference.conversation,
    tokenizer=tokenizer,
    control_ids=tuple(control.control_ids(tokenizer)) if chat else (),
    stand_in=stand_in(tokenizer) if chat else 0,
  )


def compile_scored(preference: Preference, tokenizer: Any) -> CompiledPreference:
  """How a reward model reads a conversation: as its chat template puts it, the response last.

  Of the preference only where a response is cut counts.

  Args:
    preference: what would be asked of a language model.
    tokenizer: the reward model's, fast, of transformers.

  Raises:
    PreferenceError: there is no chat template, or none that puts an answer where it begins one.
  """
  if not getattr(tokenizer, "chat_template", None):
    raise PreferenceError(
      "verdict.kind=reward: the model's tokenizer has no chat template, by which it reads texts"
    )
  user = {"role": "user", "content": _PLACE}
  try:
    begun = chat.render(tokenizer, [user])
    whole = chat.render(tokenizer, [user, {"role": "assistant", "content": _ANSWER}], False)
  except ValueError as error:
    raise PreferenceError(f"verdict.kind=reward: {error}") from None
  before, _, after = whole.partition(_ANSWER)
  if before.rstrip() != begun.rstrip() or whole.count(_ANSWER) != 1:
    raise PreferenceError(
      "verdict.kind=reward: the chat template puts answers elsewhere than it lets them begin"
    )
  suffix = tuple(encoding.encode_frame(tokenizer, after))
  if not suffix:
    raise PreferenceError(
      "verdict.kind=reward: the chat template puts nothing after an answer, where the score is read"
    )
  opening = None
  if before.startswith(begun):
    opening = formats.CHAT.encode(tokenizer, _PLACE)[0][-1], before[len(begun) :]
  return CompiledPreference(
    prefix_ids=(),
    suffix_ids=(suffix,),
    good_ids=((),),
    bad_ids=((),),
    cut=preference.cuts,
    conversation="",
    tokenizer=tokenizer,
    control_ids=tuple(control.control_ids(tokenizer)),
    stand_in=stand_in(tokenizer),
    scored=True,
    opening=opening,
  )


def stand_in(tokenizer: Any) -> int:
  """What a response's control tokens are read as where they would mean a turn."""
  return encoding.encode_continuation(tokenizer, _STAND_IN)[0]


def _chat_frame(
  preference: Preference,
  tokenizer: Any,
  encode: Callable[[str], list[int]],
  form: formats.Format,
) -> tuple[tuple[int, ...], tuple[int, ...], Callable[[str, str], int]]:
  """Tokens before the judged conversation, those after its question, and what finds a label's.

  The frame is the chat template's, its control tokens included; the prefix is plain text.
  """
  if not getattr(tokenizer, "chat_template", None):
    raise PreferenceError(
      f"Preference {preference.label!r}: the tokenizer has no chat template; choose another form."
    )
  user = {"role": "user", "content": _PLACE}
  try:
    given = dict(form.template_kwargs)
    whole = chat.render(tokenizer, [user], kwargs=given)
    answer = {"role": "assistant", "content": _ANSWER}
    answered = chat.render(tokenizer, [user, answer], False, kwargs=given)
  except ValueError as error:
    raise PreferenceError(f"Preference {preference.label!r}: {error}") from None
  before, _, after = whole.partition(_PLACE)
  if whole.count(_PLACE) != 1:
    raise PreferenceError(
      f"Preference {preference.label!r}: the chat template shows the user's turn"
      f" {whole.count(_PLACE)} times, expected once; choose another form."
    )
  if form.in_thought(after):
    raise PreferenceError(
      f"Preference {preference.label!r}: the chat template begins answers in the middle of a"
      " thought, where no label can be read; choose another form."
    )
  # Where templates begin an answer with a space, so does the label; a thought that they close before
  # an answer is closed before the label, too.
  space = ""
  if answered.startswith(whole):
    space = answered[len(whole) :].partition(_ANSWER)[0]
  if space.strip():
    after, space = after + space, ""
  text = f"{preference.prefix}\n\n" if preference.prefix else ""
  opening = control.encode_around(tokenizer, lambda said: before + said[0], [text], begin=False)

  def label_id(suffix: str, label: str) -> int:
    token = encode(space + label)[0]
    if token == tokenizer.unk_token_id:
      raise PreferenceError(
        f"Preference {preference.label!r}: label {label!r} begins with an unknown token;"
        " expected text that the tokenizer knows."
      )
    return token

  return tuple(opening), tuple(encoding.encode_frame(tokenizer, after)), label_id


def _label_id(
  encode: Callable[[str], list[int]],
  preference: Preference,
  tokenizer: Any,
  suffix: str,
  label: str,
) -> int:
  """The token of a label after its suffix."""
  alone = encode(label)  # or says which preference cannot be read
  encode(suffix + label)
  # Where the label joins the suffix's last token ("(" and "A" as "(A"), the model still
  # sees the suffix's own tokens, and answers with the label's.
  for before in (suffix, ""):
    token = encoding.single_token(tokenizer, label, before)
    if token is not None:
      return token
  pieces = [_piece(tokenizer, token) for token in alone]
  raise PreferenceError(
    f"Preference {preference.label!r}: label {label!r} after {suffix[-20:]!r} becomes"
    f" {pieces}; expected one known token: use a shorter label, or one that begins"
    " with the space before it."
  )


def _piece(tokenizer: Any, token: int) -> str:
  return tokenizer.convert_ids_to_tokens([token])[0]


def _prefix_ids(tokenizer: Any, prefix: str) -> tuple[int, ...]:
  """The beginning of a text, and the prefix with an empty line after it."""
  text = control.plain_ids(tokenizer, prefix + "\n\n") if prefix else []
  return (*control.begin_ids(tokenizer), *text)
