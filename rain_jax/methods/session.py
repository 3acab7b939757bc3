"""One model with one configuration, and the prompts that it is to answer.

A `Session` compiles each program once and serves any number of prompts. What answers them
are the functions of `rain_jax.methods`.
"""

import copy
import dataclasses
import functools
import hashlib
import logging
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from rain_jax import decode
from rain_jax.methods import verdict_model
from rain_jax.methods.ahead import Ahead
from rain_jax.methods.recording import Recording
from rain_jax.models import backend
from rain_jax.models.loading import LoadedModel
from rain_jax.parallel import workers
from rain_jax.parallel.batch_sharding import DATA, BatchSharding
from rain_jax.policy import memory_plan
from rain_jax.policy.embedders import HiddenStates
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import Override, Params, make_params
from rain_jax.policy.prompts import Prompt, padded
from rain_jax.preferences import CompiledPreference, Preference
from rain_jax.preferences.calibration import Calibration
from rain_jax.tasks import Record
from rain_jax.text import encoding, vocab
from rain_jax.text.formats import Format
from rain_jax.text.printable import one_line
from rain_jax.types import (
  VARIANTS,
  DataError,
  SearchConfig,
  hyperparameters,
  is_unicode,
  ranges,
)

_LOG = logging.getLogger(__name__)
# Of models whose texts are longer than they were made for; each run loads its own.
_TOLD: "weakref.WeakSet[Any]" = weakref.WeakSet()
_TOLD_OF_SYSTEM: "weakref.WeakSet[Any]" = weakref.WeakSet()


@dataclasses.dataclass(frozen=True)
class SessionConfig:
  """What a session is compiled for.

  Attributes:
    format: how prompts are put to the model.
    preference: what to align with.
    search: hyperparameters of the search.
    max_prompt: longest prompt in tokens; longer ones are reported, not answered.
    max_response: longest response in tokens.
    max_thought: longest thought in tokens, of a format with `thinking`; one that is longer is
      reported, and its prompt not answered.
    batch_size: prompts searched for side by side.
    fit_prompts: make caches only as long as the longest prompt needs, not for `max_prompt`, and
      no more slots than there are prompts.
    embedder: makes path embeddings; see `rain_jax.policy.embedders`.
    verdict_noise: share of the verdicts that flip their sign (ablation): those by which a search, drafts
      or best-of-N decide, not the one that is reported of a response.
    soft_verdicts: a verdict is the difference of the labels' probabilities, not its sign.
    calibration: takes the model's bias out of its verdicts; None takes them as they are.

  Raises:
    DataError: a number outside its range.
  """

  format: Format
  preference: Preference
  search: SearchConfig
  max_prompt: int = 512
  max_response: int = 256
  max_thought: int = 1024
  batch_size: int = 8
  fit_prompts: bool = True
  embedder: Any = HiddenStates()
  verdict_noise: float = 0.0
  soft_verdicts: bool = False
  calibration: Calibration | None = None

  def __post_init__(self):
    wrong = ranges.fault(ranges.SESSION, vars(self))
    if wrong:
      raise DataError(wrong)

  @property
  def aligned_with(self) -> str:
    """The preference, its form and calibration, for people."""
    if self.calibration is None:
      return self.preference.label
    return f"{self.preference.label} ({self.calibration.described()})"

  def compiled(self, loaded: LoadedModel) -> CompiledPreference:
    """The preference for the tokenizer of the model that is asked.

    Raises:
      PreferenceError: it does not suit the tokenizer, or the calibration is for something else.
    """
    compiled = verdict_model.compiled(self.preference, loaded, self.format)
    if self.calibration is not None:
      self.calibration.check(loaded.judging.fingerprint, self.preference.label, compiled.digest)
    return compiled


def search_config(variant: str, overrides: Mapping[str, Any], embedder: Any) -> SearchConfig:
  """The search of a variant with an embedder's thresholds and the overrides not None."""
  if variant not in VARIANTS:
    raise DataError(f"search.variant={variant!r}: expected one of {', '.join(VARIANTS)}.")
  chosen = {name: value for name, value in overrides.items() if value is not None}
  fields = hyperparameters()
  for name in chosen:
    if name not in fields:
      raise DataError(
        f"search.{name}: no such hyperparameter; expected one of {', '.join(sorted(fields))}."
      )
  thresholds = {
    "similarity_threshold": embedder.similarity_threshold,
    "grow_threshold": embedder.grow_threshold,
  }
  return VARIANTS[variant](**(thresholds | chosen))


@dataclasses.dataclass(frozen=True)
class Response:
  """One prompt's answer.

  Attributes:
    record: the prompt.
    text: the response, without stop string and end mark.
    tokens: its token ids.
    finish_reason: a name of `types.FINISH_REASONS`, or "rejected".
    verdict: the model's own verdict on the whole response, in [-1, 1]; None if there is an error.
    counters: work done for the prompt.
    error: why the prompt was rejected or failed, else None.
    recording: the whole search, where it was recorded.
    log_likelihood: of `tokens` after the prompt, in nats, by the model itself at temperature 1; None
      where they were not read.
    reasoning: the model's thought before it, see `methods.thoughts`; else "".
  """

  record: Record
  text: str
  tokens: list[int]
  finish_reason: str
  verdict: float | None
  counters: dict[str, int]
  error: str | None = None
  recording: Recording | None = None
  log_likelihood: float | None = None
  reasoning: str = ""


@dataclasses.dataclass(frozen=True)
class Thought:
  """What a model thought before its answer, "" if it answered at once, and the work of it."""

  text: str
  work: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Query:
  """A prompt's tokens, as both caches read it.

  Attributes:
    record: the prompt.
    proposing: token ids after which the response is generated.
    evaluating: token ids of the same conversation as the verdict reads it.
    ends: the prompt ends in a text end.
    seed: its own, which takes the place of a run's.
    thought: what `proposing` ends in, once it has been sampled.
  """

  record: Record
  proposing: list[int]
  evaluating: list[int]
  ends: bool
  thought: Thought | None = None
  seed: int | None = None

  def key(self, seed: int) -> jax.Array:
    """Its random key, from the run's seed, or its own, and the prompt's id alone."""
    digest = hashlib.sha256(self.record.id.encode()).digest()
    key = jax.random.key(seed if self.seed is None else self.seed)
    return jax.random.fold_in(key, int.from_bytes(digest[:4], "little"))


class Session:
  """One model with one configuration; see the module's text.

  Args:
    loaded: the model.
    session_config: what to compile for.
    records: prompts the session is meant for; limits are fitted to the longest of them
      that `max_prompt` admits, so that caches are no longer than they need be.
  """

  def __init__(self, loaded: LoadedModel, session_config: SessionConfig, records: Sequence[Record]):
    self.loaded, self.config = loaded, session_config
    self.ahead: Ahead | None = None  # compiles what is called below, if anybody has begun that
    config, tokenizer, form = loaded.model.config, loaded.tokenizer, session_config.format
    self.preference: CompiledPreference = session_config.compiled(loaded)
    self.prefix_ids = form.prefix_ids(tokenizer)
    ends = form.end_ids(tokenizer)
    config = dataclasses.replace(config, eos_ids=tuple(sorted({*config.eos_ids, *ends})))
    self._read(records)
    self.lm = LanguageModel(
      graphdef=loaded.model.graphdef,
      config=config,
      search=session_config.search,
      preference=self.preference,
      embedder=session_config.embedder,
      max_prompt=self.max_prompt,
      max_response=session_config.max_response,
      soft_verdicts=session_config.soft_verdicts,
      verdict=verdict_model.static_part(loaded, self.preference),
    )
    tables = vocab.build_tables(tokenizer, form.stop, form.suppress, config.vocab_size)
    lm, prefix_ids = self.lm, self.prefix_ids  # a reference to self would keep its arrays in memory
    self._params_of = lambda loaded: make_params(
      loaded.model.params,
      tables,
      lm,
      prefix_ids,
      Override(flipped=session_config.verdict_noise),
      verdict_model.correction(session_config.calibration),
      loaded.mesh,
      loaded.verdict and loaded.verdict.model.params,
    )
    self.params: Params = self._params_of(loaded)

  def with_weights(self, loaded: LoadedModel) -> "Session":
    """The same session, which was made with the abstract model; see `loading.begin`."""
    other = copy.copy(self)
    other.loaded, other.params = loaded, self._params_of(loaded)
    return other

  @property
  def aligned_with(self) -> str:
    """The preference, and who is asked, for people."""
    return self.config.aligned_with + verdict_model.described(self.loaded)

  @property
  def mesh(self) -> jax.sharding.Mesh | None:
    """What the model is spread over; None on one device."""
    return self.loaded.mesh

  @property
  def shards(self) -> int:
    """Parts into which a batch is divided."""
    return 1 if self.mesh is None else self.mesh.shape[DATA]

  @property
  def slots(self) -> int:
    """Prompts answered side by side, as many on each shard."""
    size = self.config.batch_size
    if self.config.fit_prompts:
      size = min(size, max(1, len(self.queries)))
    return self.shards * math.ceil(size / self.shards)

  @property
  def workers(self) -> tuple[int, int]:
    """How many batches of searches run side by side, and the slots of each."""
    if self.mesh is not None:
      return 1, self.slots
    return workers.layout(backend.in_caches(self.params["model"]), self.slots)

  @functools.cached_property
  def sharding(self) -> BatchSharding | None:
    """How a search lies over the mesh, if there is one."""
    if self.mesh is None:
      return None
    return BatchSharding.of(
      self.mesh, self.empty, functools.partial(self.lm.head_specs, mesh=self.mesh)
    )

  def empty(self, slots: int) -> decode.DecodeState:
    """The state of a search in which nothing has begun."""
    return self.lm.empty_slots(slots, self.params)

  def plan(self) -> memory_plan.Plan:
    """The memory that a search for its prompts will need."""
    prefix = self.params["proposing_prefix"].slots
    count, slots = self.workers
    judge = None if self.loaded.verdict is None else self.loaded.verdict.model
    return memory_plan.plan(
      self.loaded.model, self.lm, count * slots, self.params["tables"], prefix, self.mesh, judge
    )

  def searching(self, search: SearchConfig) -> "Session":
    """The same session with other hyperparameters of the search."""
    other = copy.copy(self)
    other.__dict__.pop("sharding", None)  # of the old state
    other.config = dataclasses.replace(self.config, search=search)
    other.lm = dataclasses.replace(self.lm, search=search)
    return other

  def answering(self, queries: Sequence[Query]) -> "Session":
    """The same session for some of its own queries."""
    other = copy.copy(self)
    other.queries = list(queries)
    return other

  def serving(self, records: Sequence[Record]) -> "Session":
    """The same session for other prompts, as if it had been made for them.

    Nothing is compiled anew for prompts as many and about as long as some before.
    """
    other = copy.copy(self)
    other._read(records)
    other.lm = dataclasses.replace(self.lm, max_prompt=other.max_prompt)
    return other

  def _read(self, records: Sequence[Record]) -> None:
    """Sorts prompts into queries and rejected ones, and fits `max_prompt` to the queries."""
    # What came of each thought, by seed and prompt: methods that are asked in turn share them.
    self.thoughts: dict[tuple[int, str], Query | Response] = {}
    self.queries: list[Query] = []
    self.rejected: list[Response] = []
    for record in records:
      answer = self._query(record)
      if isinstance(answer, Query):
        self.queries.append(answer)
      else:
        self.rejected.append(answer)
    longest = max((max(len(q.proposing), len(q.evaluating)) for q in self.queries), default=1)
    self._check_context()
    self._tell_of_system()
    room = longest if self.config.fit_prompts else self.config.max_prompt
    self.max_prompt = 32 * math.ceil((room + self.thought_room) / 32)

  @property
  def thought_room(self) -> int:
    """Tokens that a thought may take after a prompt, with the white space after its mark."""
    form = self.config.format
    return self.config.max_thought + len(form.think_end) if form.thinking else 0

  def _check_context(self) -> None:
    """Tells once a run that texts are longer than the model was made for; ends it beyond twice."""
    before = len(self.prefix_ids) + self.thought_room
    asked = max(map(len, self.preference.suffix_ids))
    judged = len(self.preference.prefix_ids) + asked
    sides = {
      "proposing": (self.loaded, [before + len(q.proposing) for q in self.queries]),
      "evaluating": (self.loaded.judging, [judged + len(q.evaluating) for q in self.queries]),
    }
    if self.loaded.verdict is None:
      both = [max(pair) for pair in zip(*(lengths for _, lengths in sides.values()))]
      sides = {"both": (self.loaded, both)}
    for loaded, lengths in sides.values():
      context = loaded.model.config.context
      longest = max(lengths, default=-self.config.max_response) + self.config.max_response
      if longest <= context:
        continue
      said = (
        f"{one_line(loaded.name)}: prompt, response and the verdict's question take up to"
        f" {longest} tokens, the model was made for {context}"
      )
      if longest > 2 * context:
        raise DataError(f"{said}: lower limits.max_prompt or limits.max_response.")
      if loaded.tokenizer not in _TOLD:
        _TOLD.add(loaded.tokenizer)
        _LOG.warning("%s; what it writes and judges beyond these may be wrong", said)

  def _tell_of_system(self) -> None:
    """Tells once a run that system messages have no role of their own."""
    tokenizer, form = self.loaded.tokenizer, self.config.format
    if tokenizer in _TOLD_OF_SYSTEM or not any(q.record.system for q in self.queries):
      return
    if not form.has_system_role(tokenizer):
      _TOLD_OF_SYSTEM.add(tokenizer)
      what = "the chat template" if form.chat else "the format"
      _LOG.warning("%s has no system role: system messages begin the first user turn", what)

  def _query(self, record: Record) -> Query | Response:
    """A prompt's tokens, or the response that says why it is rejected."""
    reject = lambda why: Response(record, "", [], "rejected", None, {}, why)
    for name, text in (
      ("id", record.id),
      *(("text", text) for text in (record.system, *record.history, record.prompt, record.prefill)),
    ):
      if not is_unicode(text):
        return reject(f"half of a character in its {name} (a surrogate without its pair)")
    if not record.prompt.strip():
      return reject("empty prompt")
    try:
      proposing, last = self.config.format.encode(self.loaded.tokenizer, *record.said)
      evaluating = list(self.preference.conversation_ids(*record.said))
    except DataError as error:  # its chat template, which takes other conversations
      return reject(str(error))
    except ValueError as error:
      return reject(f"cannot be tokenised: {error}")
    longest, limit = max(len(proposing), len(evaluating)), self.config.max_prompt
    if longest > limit:
      return reject(f"{longest} tokens, more than limits.max_prompt={limit}")
    return Query(record, proposing, evaluating, last in vocab.TEXT_ENDS)

  def prompt_ids(self, side: str, prompt: str, history: Sequence[str] = ()) -> list[int]:
    """Token ids of a prompt as it is "proposing" or "evaluating", after that side's prefix.

    Raises:
      ValueError: if the text has no tokens of its own, see `encoding.encode_continuation`.
    """
    if side == "evaluating":
      return list(self.preference.conversation_ids(prompt, history))
    return self.config.format.encode(self.loaded.tokenizer, prompt, history)[0]

  def await_program(self, name: str) -> None:
    """To be called before a program of the methods, see `ahead.Program`; waits for its compilation."""
    if self.ahead is not None:
      self.ahead.wait(name)

  # -- batches ------------------------------------------------------------------------

  def batches(self, skip: frozenset[str]) -> Iterator[list[Query]]:
    """The queries in batches of as many as there are slots, ids in `skip` left out."""
    queries = [q for q in self.queries if q.record.id not in skip]
    for begin in range(0, len(queries), self.slots):
      yield queries[begin : begin + self.slots]

  def padded(self, queries: Sequence[Query]) -> list[Query]:
    """Copies of the last query fill a batch up, so that one program serves all."""
    return list(queries) + [queries[-1]] * (self.slots - len(queries))

  def prompts(self, queries: Sequence[Query | None], side: str) -> Prompt:
    """The "proposing" or "evaluating" side of queries, fields [B, ...]; None is an empty prompt."""
    ids = [getattr(query, side) if query else [] for query in queries]
    return padded(ids, [bool(q and q.ends) for q in queries], self.max_prompt)

  def decoded(self, query: Query, ids: Sequence[int]) -> str:
    """Response tokens as text, without stop string and white space around it.

    What continues a prefill keeps the white space at its beginning.
    """
    prompt = list(self.prefix_ids) + query.proposing
    text = encoding.decode_response(self.loaded.tokenizer, prompt, ids)
    ends = [text.find(stop) for stop in self.config.format.stop if stop in text]
    text = text[: min(ends)].rstrip() if ends else text.rstrip()
    return text if query.record.prefill else text.lstrip()
