"""What RAIN costs beside vanilla decoding: models of any shape, methods, and measured rows.

A `Subject` is a model with prompts that needs no files: shapes without a checkpoint get
random weights and a synthetic vocabulary. Every measurement is one jitted call from
prompt to last token, warmed up apart, repeated in turn with all others, and compared
with vanilla decoding of the same round.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import baselines, decode, job, sampling, tasks, types, vocab
from rain_jax.embed import HiddenStates
from rain_jax.loading import DTYPES, load
from rain_jax.models import NO_POSITION, Model, ModelConfig, forward, init_model, unembed
from rain_jax.models.llama import abstract_model
from rain_jax.policy import LanguageModel, Prompt, common, make_params
from rain_jax.policy.usage import ROLES
from rain_jax.preferences import CompiledPreference, load_preference
from rain_jax.session import Session, Setting
from rain_jax.tasks import DataError
from rain_jax.types import NO_TOKEN, Array, SearchConfig

VERDICTS = {"good": 1.0, "bad": 0.0, "mixed": 0.5, "model": None}
"""Share of texts whose verdict is forced to be good; None leaves it to the model."""

METHODS = {
    "vanilla": ("vanilla", "cached"),
    "no_cache": ("vanilla", "no_cache"),
    "rain": ("rain", "exact"),
    "leaf_parallel": ("rain", "leaf_parallel"),
    "best_of_n": ("best_of_n", "cached"),
}
"""What a configuration may name, with the method and mode of its rows."""

_SAMPLES_PER_CALL = 16  # of best-of-N


def _llama(vocab_size, hidden, mlp, layers, heads, kv_heads, tie=False) -> ModelConfig:
  return ModelConfig(
      vocab_size, hidden, mlp, layers, heads, kv_heads, hidden // heads, tie_embeddings=tie
  )


SHAPES = {
    "demo_shape": _llama(1400, 128, 384, 4, 4, 2, tie=True),
    "125m": _llama(32000, 768, 2048, 12, 12, 12),
    "7b": _llama(32000, 4096, 11008, 32, 32, 32),  # LLaMA 1 and 2
    "8b": _llama(128256, 4096, 14336, 32, 32, 8),  # LLaMA 3
    "13b": _llama(32000, 5120, 13824, 40, 40, 40),
}
"""Shapes that get random weights; "demo" is the trained checkpoint of the package."""


@dataclasses.dataclass(frozen=True)
class Workload:
  """What is asked of every model.

  Attributes:
    prompt: tokens of a prompt (synthetic subjects; the demo's prompts are its own).
    response: tokens a response is limited to.
    verdict_prefix: tokens of the verdict's fixed prefix (synthetic subjects).
    verdict_suffix: tokens of the question behind a text, per reading.
    text_end_share: share of the synthetic vocabulary that ends a text; a rollout is
      about 1 / share tokens long.
  """

  prompt: int = 128
  response: int = 64
  verdict_prefix: int = 700
  verdict_suffix: int = 24
  text_end_share: float = 1 / 12


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model with prompts, ready to be measured.

  Attributes:
    name: of the model.
    dtype: a name of `loading.DTYPES`.
    lm: the static part; `replace` its search and verdicts to vary them.
    params: from `policy.make_params`.
    proposing: token ids of each prompt, behind which responses are generated.
    judging: token ids of the same conversations as the verdict reads them.
    ends: the prompts end in a text end.
  """

  name: str
  dtype: str
  lm: LanguageModel
  params: Mapping[str, Any]
  proposing: tuple[tuple[int, ...], ...]
  judging: tuple[tuple[int, ...], ...]
  ends: bool

  def prompts(self, side: str, batch: int) -> Prompt:
    """The first `batch` prompts of a side, over again from the first if they run out."""
    ids = [getattr(self, side)[i % len(self.proposing)] for i in range(batch)]
    tokens = np.zeros((batch, self.lm.max_prompt), np.int32)
    for row, one in enumerate(ids):
      tokens[row, : len(one)] = one
    length = np.array([len(one) for one in ids], np.int32)
    return Prompt(jnp.asarray(tokens), jnp.asarray(length), jnp.full(batch, self.ends))


def find_subject(name: str, dtype: str, workload: Workload, search: SearchConfig) -> Subject:
  """The subject of a name: "demo", or one of `SHAPES` with random weights.

  Raises:
    DataError: no such model or dtype.
    CheckpointError: the demo's checkpoint cannot be read.
  """
  if dtype not in DTYPES:
    raise DataError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}.")
  if name == "demo":
    return _demo(dtype, workload, search)
  model, lm = abstract_subject(name, dtype, workload, search)
  compute = model_dtype(dtype)
  if dtype == "int8":
    # Speed does not depend on the values, and int8 matrices are not drawn at random.
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), model.params)
  else:
    params = init_model(
        model.config, jax.random.key(0), param_dtype=DTYPES[dtype], compute_dtype=compute
    ).params
  tables = synthetic_tables(model.config.vocab_size, workload.text_end_share)
  draw = np.random.default_rng(0).integers
  prompts = tuple(
      tuple(draw(0, model.config.vocab_size, workload.prompt).tolist()) for _ in range(16)
  )
  return Subject(name, dtype, lm, make_params(params, tables, lm, []), prompts, prompts, False)


def model_dtype(dtype: str) -> Any:
  """The dtype of arithmetic, and of keys and values, with weights of a named dtype."""
  return jnp.bfloat16 if dtype == "int8" else DTYPES[dtype]


def abstract_subject(
    name: str, dtype: str, workload: Workload, search: SearchConfig
) -> tuple[Model, LanguageModel]:
  """Model and static part of one of `SHAPES`, without a single weight.

  Raises:
    DataError: no such shape.
  """
  if name not in SHAPES:
    raise DataError(f"models: unknown {name!r}; expected some of demo, {', '.join(SHAPES)}.")
  model = abstract_model(
      SHAPES[name], param_dtype=DTYPES[dtype], compute_dtype=model_dtype(dtype)
  )
  suffix = tuple(range(2, 2 + workload.verdict_suffix))
  preference = CompiledPreference(
      prefix_ids=(1,) * workload.verdict_prefix,
      suffix_ids=(suffix, suffix[::-1]),
      good_ids=((3,), (4,)),
      bad_ids=((4,), (3,)),
      cut=False,
      conversation="",
      tokenizer=None,
  )
  lm = LanguageModel(
      graphdef=model.graphdef,
      config=model.config,
      search=search,
      preference=preference,
      embedder=HiddenStates(),
      max_prompt=32 * math.ceil(workload.prompt / 32),
      max_response=workload.response,
  )
  return model, lm


def _demo(dtype: str, workload: Workload, search: SearchConfig) -> Subject:
  """The trained checkpoint with its held-out requests."""
  task = tasks.find_task("demo_requests")
  files = [tasks.load_prompts(path, "") for path in task.prompts]
  records = [record for pair in zip(*files) for record in pair][:16]
  setting = Setting(
      task.format,
      load_preference(task.preference),
      search,
      max_response=workload.response,
  )
  session = Session(load("demo", dtype), setting, records)
  of = lambda side: tuple(tuple(getattr(q, side)) for q in session.queries)
  ends = session.queries[0].ends  # of the format, the same for all
  return Subject("demo", dtype, session.lm, session.params, of("proposing"), of("judging"), ends)


def synthetic_tables(vocab_size: int, text_end_share: float) -> vocab.TextTables:
  """A vocabulary without text: each token has a byte and a hash of its own, no token stops.

  Every (1 / text_end_share)-th token ends a text.
  """
  token = np.arange(vocab_size)
  mixed = (token[:, None] * np.array([40503, 60493]) + 12345) % ((1 << 31) - 1)
  return vocab.TextTables(
      transitions=jnp.zeros((2, vocab_size), jnp.int16),
      kind=jnp.full(vocab_size, 2, jnp.int8),
      byte=jnp.zeros(vocab_size, jnp.uint8),
      size=jnp.ones(vocab_size, jnp.int32),
      ends=jnp.asarray(token % max(1, round(1 / text_end_share)) == 0),
      full_stop=jnp.zeros(vocab_size, bool),
      hash=jnp.asarray(mixed, jnp.uint32),
      shift=jnp.full((vocab_size, 2), 257, jnp.uint32),
      text_ends=vocab.TEXT_ENDS,
  )


# -- methods: each one call, from prompts to responses ------------------------------------


@functools.partial(jax.jit, static_argnames=("lm", "batch"))
def begin_search(
    lm: LanguageModel, params: Any, proposing: Prompt, judging: Prompt, keys: Array, batch: int
) -> decode.DecodeState:
  """A state of `batch` searches whose prompts have been read."""
  dtype = params["judging_prefix"].keys.dtype
  state = decode.init(
      batch, lm.init(batch, dtype), lm.search, lm.embedding_size, lm.max_response
  )
  state = decode.refill(state, jnp.ones(batch, bool), keys, lm.search)
  pick = lambda prompt, slot: jax.tree.map(lambda a: a[slot], prompt)

  def start(slot, model):
    return lm.start(params, model, slot, pick(proposing, slot), pick(judging, slot))

  return state.replace(model=jax.lax.fori_loop(0, batch, start, state.model))


@functools.partial(jax.jit, static_argnames="lm")
def sample_without_cache(
    lm: LanguageModel, params: Any, prompts: Prompt, keys: Array
) -> tuple[Array, Array]:
  """Vanilla sampling that reads the whole text again for every token.

  Returns:
    int32[B] tokens of each response and int32[B] tokens forwarded for it.
  """
  B, P = prompts.tokens.shape
  room = jnp.zeros((B, lm.max_response), jnp.int32)
  tokens = jnp.concatenate([prompts.tokens, room], axis=1)
  rows, at = jnp.arange(B), jnp.arange(P + lm.max_response)
  prefix, shift = common.prefix(params, "proposing")

  def unfinished(carry):
    return (carry[2] == types.RUNNING).any()

  def extend(carry):
    step, tokens, finish, text, forwarded = carry
    on, length = finish == types.RUNNING, prompts.length + text.length
    positions = jnp.where(at < length[:, None], at + shift, NO_POSITION)
    hidden, _ = forward(lm.graphdef, params["model"], tokens, positions, prefix)
    logits = unembed(lm.graphdef, params["model"], hidden[rows, length - 1])
    token = sampling.categorical(jax.vmap(lambda k: jax.random.fold_in(k, step))(keys), logits)
    token = jnp.where(on, token, NO_TOKEN)
    text = vocab.advance(params["tables"], text, token)
    tokens = tokens.at[rows, jnp.where(on, length, at.size)].set(token, mode="drop")
    finish = jnp.where(on, lm.finish(text, token), finish)
    return step + 1, tokens, finish, text, forwarded + jnp.where(on, length, 0)

  zeros = jnp.zeros(B, jnp.int32)
  carry = (jnp.int32(0), tokens, zeros, common.empty_text((B,)), zeros)
  _, _, _, text, forwarded = jax.lax.while_loop(unfinished, extend, carry)
  return text.length, forwarded


@dataclasses.dataclass(frozen=True)
class Work:
  """What one measured call did, summed over its prompts.

  Attributes:
    tokens: response tokens made.
    calls: sequential model calls, each counted for every prompt that took part.
    forwarded: tokens forwarded.
    padding: token positions computed for nothing; None where nobody counts them.
    details: further columns of the row.
  """

  tokens: int
  calls: int
  forwarded: int
  padding: int | None
  details: Mapping[str, Any]


def vanilla(subject: Subject, batch: int) -> Callable[[int], Work]:
  """Cached sampling, one response per prompt; a function of the seed."""
  prompts = subject.prompts("proposing", batch)

  def call(seed: int) -> Work:
    drawn = baselines.sample(subject.lm, subject.params, prompts, _keys(seed, batch), 0, 1)
    longest = int(drawn.length.max())
    slots = batch * (subject.lm.max_prompt + longest - 1)
    forwarded = int(drawn.forwarded.sum())
    return Work(
        int(drawn.length.sum()), int(drawn.calls.sum()), forwarded, slots - forwarded, {}
    )

  return call


def no_cache(subject: Subject, batch: int) -> Callable[[int], Work]:
  """Vanilla sampling without a cache; a function of the seed."""
  prompts = subject.prompts("proposing", batch)

  def call(seed: int) -> Work:
    length, forwarded = sample_without_cache(
        subject.lm, subject.params, prompts, _keys(seed, batch)
    )
    length, forwarded = np.asarray(length), int(forwarded.sum())
    slots = batch * int(length.max()) * (subject.lm.max_prompt + subject.lm.max_response)
    return Work(int(length.sum()), int(length.sum()), forwarded, slots - forwarded, {})

  return call


class ForcedVerdicts(LanguageModel):
  """A language model whose verdicts follow `params["forced_good"]`, after its own work.

  That is `LanguageModel.forced_good` as an array, so that one program serves every share
  (its compilation is most of a small benchmark's time); below 0 the model's own count.
  """

  def _judge(self, params, state, request, drawn):
    value, state = super()._judge(params, state, request, drawn)
    _, text_hash = self.judged(drawn.text, drawn.rollout_finish)
    lot = (text_hash[..., 0] % 65536).astype(jnp.float32) / 65536
    share = params["forced_good"]
    return jnp.where(share < 0, value, jnp.where(lot < share, 1.0, -1.0)), state


def _forced(lm: LanguageModel, search: SearchConfig) -> ForcedVerdicts:
  given = {field.name: getattr(lm, field.name) for field in dataclasses.fields(lm)}
  return ForcedVerdicts(**{**given, "search": search})


def rain(
    subject: Subject, batch: int, search: SearchConfig, verdicts: str
) -> Callable[[int], Work]:
  """RAIN with the given search and verdicts of `VERDICTS`; a function of the seed."""
  lm = _forced(subject.lm, search)
  share = VERDICTS[verdicts]
  params = {**subject.params, "forced_good": jnp.float32(-1.0 if share is None else share)}
  sides = subject.prompts("proposing", batch), subject.prompts("judging", batch)

  def call(seed: int) -> Work:
    state = begin_search(lm, params, *sides, _keys(seed, batch), batch)
    state = decode.advance(state, lm, params, search, 1_000_000, wait_for_all=True)
    usage = jax.tree.map(np.asarray, state.model.usage)
    counters = {k: int(v.sum()) for k, v in vars(state.counters).items()}
    tokens, forwarded = int(state.response_length.sum()), int(usage.tokens.sum())
    moves = max(counters["moves"], 1)
    details = {
        "iterations_per_move": counters["iterations"] / moves,
        "rewinds_per_response": counters["rewinds"] / batch,
        "inherited_commits_per_move": counters["inherited_commits"] / moves,
        "verdicts_read_per_token": int(usage.verdicts_read.sum()) / tokens,
        "verdicts_remembered_per_token": int(usage.verdicts_remembered.sum()) / tokens,
        "calls_by_role": _by_role(usage.calls.sum(0) / tokens),
        "tokens_by_role": _by_role(usage.tokens.sum(0) / tokens),
        "batch_calls_by_role": _by_role(usage.run_calls),
        "steps": int(state.counters.steps.max()),
        "early_commits": counters["early_commits"],
    }
    return Work(
        tokens, int(usage.calls.sum()), forwarded, int(usage.run_slots.sum()) - forwarded, details
    )

  return call


def best_of_n(subject: Subject, batch: int, samples: int) -> Callable[[int], Work]:
  """N whole responses, the one the model judges best kept; a function of the seed."""
  sides = subject.prompts("proposing", batch), subject.prompts("judging", batch)
  size = min(samples, _SAMPLES_PER_CALL)
  rounds = math.ceil(samples / size)

  def call(seed: int) -> Work:
    best, kept, calls, forwarded = np.full(batch, -np.inf), np.zeros(batch, int), 0, 0
    for first in range(rounds):
      drawn = baselines.sample(
          subject.lm, subject.params, sides[0], _keys(seed, batch), first * size, size
      )
      value, margin, judged = baselines.self_evaluate(subject.lm, subject.params, sides[1], drawn)
      # The margin of two probabilities lies within 1 of 0, so it only settles ties.
      score, length = np.asarray(value + margin / 8), np.asarray(drawn.length)
      top = score.argmax(-1)
      rows = np.arange(batch)
      kept = np.where(score[rows, top] > best, length[rows, top], kept)
      best = np.maximum(best, score.max(-1))
      calls += int(drawn.calls.sum()) + batch
      forwarded += int(drawn.forwarded.sum() + judged.sum())
    return Work(int(kept.sum()), calls, forwarded, None, {"samples": rounds * size})

  return call


def _by_role(values) -> dict[str, float]:
  return {role: float(value) for role, value in zip(ROLES, values)}


def _keys(seed: int, batch: int) -> Array:
  return jax.random.split(jax.random.key(seed), batch)


# -- measuring --------------------------------------------------------------------------


class Compilations:
  """Counts the programs that the backend compiles while `counting` is open."""

  def __init__(self):
    self.count = 0
    self._open = False
    jax.monitoring.register_event_duration_secs_listener(self._heard)

  def _heard(self, event: str, seconds: float, **_) -> None:
    if self._open and event == "/jax/core/compile/backend_compile_duration":
      self.count += 1

  @contextlib.contextmanager
  def counting(self) -> Iterator["Compilations"]:
    """Starts from 0."""
    self.count, self._open = 0, True
    try:
      yield self
    finally:
      self._open = False


@functools.cache
def _compilations() -> Compilations:
  # A listener cannot be taken back, so a process has one.
  return Compilations()


@dataclasses.dataclass
class Case:
  """One row in the making: what to call, and the times of its calls.

  Attributes:
    row: the columns known beforehand.
    call: does the work for a seed, and waits for it.
    compile_seconds: the first call's time beyond a later one's; None before it.
    compilations: programs compiled in the first call.
    seconds: of each measured call.
    work: of each measured call.
  """

  row: dict[str, Any]
  call: Callable[[int], Work]
  compile_seconds: float | None = None
  compilations: int = 0
  seconds: list[float] = dataclasses.field(default_factory=list)
  work: list[Work] = dataclasses.field(default_factory=list)

  def warm_up(self) -> None:
    """The call that compiles; the same one once more tells compiling from computing."""
    with _compilations().counting() as compilations:
      first = _timed(self.call, 0)[0]
    self.compilations = compilations.count
    self.compile_seconds = max(0.0, first - _timed(self.call, 0)[0])

  def measure(self, seed: int) -> None:
    """One measured call."""
    seconds, work = _timed(self.call, seed)
    self.seconds.append(seconds)
    self.work.append(work)


def _timed(call: Callable[[int], Work], seed: int) -> tuple[float, Work]:
  begin = time.perf_counter()
  work = call(seed)
  return time.perf_counter() - begin, work


def measured(cases: Sequence[Case], repeats: int) -> list[dict[str, Any]]:
  """Warms the cases up, measures them in turn, and returns their rows.

  The first case is what the others' `ratio_to_vanilla` is paired with, round by round.
  """
  for case in cases:
    if case.compile_seconds is None:
      case.warm_up()
  for seed in range(1, repeats + 1):
    for case in cases:
      case.measure(seed)
  paces = [np.array(c.seconds) / [w.tokens for w in c.work] for c in cases]
  return [_row(case, pace, pace / paces[0]) for case, pace in zip(cases, paces)]


def _row(case: Case, pace: np.ndarray, ratio: np.ndarray) -> dict[str, Any]:
  work, batch = case.work, case.row["batch"]
  per_token = lambda name: sum(getattr(w, name) for w in work) / sum(w.tokens for w in work)
  return {
      **case.row,
      "model_calls_per_token": per_token("calls"),
      "tokens_forwarded_per_token": per_token("forwarded"),
      "padding_per_token": None if work[0].padding is None else per_token("padding"),
      "response_tokens": sum(w.tokens for w in work) / (batch * len(work)),
      "seconds": float(np.median(case.seconds)),
      "seconds_per_token": float(np.median(pace)),
      "ratio_to_vanilla": float(np.median(ratio)),
      "responses_per_minute": 60 * batch / float(np.median(case.seconds)),
      "compile_seconds": case.compile_seconds,
      "compilations": case.compilations,
      "repeats": len(case.seconds),
      **_mean_details([w.details for w in work]),
  }


def _mean_details(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  return jax.tree.map(lambda *values: float(np.mean(values)), *map(dict, details))


def rows(
    subject: Subject,
    batch: int,
    methods: Sequence[str],
    verdicts: Sequence[str],
    search: SearchConfig,
    leaf_parallel: SearchConfig,
    repeats: int,
) -> list[dict[str, Any]]:
  """Every method on one model and batch size; vanilla decoding always comes first.

  Args:
    subject: the model.
    batch: prompts side by side.
    methods: names of `METHODS`.
    verdicts: names of `VERDICTS`; of no concern to vanilla decoding.
    search: the exact search.
    leaf_parallel: the search with several leaves per step and early commit.
    repeats: measured calls per row.

  Raises:
    DataError: no such method or verdicts.
  """
  _known("methods", methods, METHODS)
  _known("verdicts", verdicts, VERDICTS)

  def case(name, call, verdict="model"):
    method, mode = METHODS[name]
    row = dict(model=subject.name, dtype=subject.dtype, method=method, mode=mode)
    return Case({**row, "verdicts": verdict, "batch": batch}, call)

  cases = [case("vanilla", vanilla(subject, batch))]
  if "no_cache" in methods:
    cases.append(case("no_cache", no_cache(subject, batch)))
  searches = {"rain": search, "leaf_parallel": leaf_parallel}
  for name in (n for n in searches if n in methods):
    for verdict in verdicts:
      cases.append(case(name, rain(subject, batch, searches[name], verdict), verdict))
  if "best_of_n" in methods:
    for one in cases:
      one.warm_up()  # before the run below compiles their programs unnoticed
    samples = _equal_samples(subject, batch, search)
    cases.append(case("best_of_n", best_of_n(subject, batch, samples)))
  return measured(cases, repeats)


def _equal_samples(subject: Subject, batch: int, search: SearchConfig) -> int:
  """N that forwards as many tokens per prompt as RAIN with the model's own verdicts."""
  spent = rain(subject, batch, search, "model")(0)
  suffix = sum(map(len, subject.lm.preference.suffix_ids))
  length = spent.tokens / batch
  return max(1, round(spent.forwarded / batch / (2 * length + suffix)))


def _known(key: str, names: Sequence[str], expected: Mapping[str, Any]) -> None:
  for name in names:
    if name not in expected:
      raise DataError(f"{key}: unknown {name!r}; expected some of {', '.join(expected)}.")


def scaling(
    name: str,
    dtype: str,
    workload: Workload,
    search: SearchConfig,
    sizes: Mapping[str, Sequence[int]],
    steps: int,
    repeats: int,
) -> list[dict[str, Any]]:
  """Seconds per step of the search while one size varies and the others stay first.

  Args:
    name: of a synthetic subject; every verdict is bad, so that trees grow.
    dtype: of its weights.
    workload: lengths; `prompt` is overridden.
    search: numbers of the search; `max_nodes` is overridden.
    sizes: `batch`, `prompt` (tokens) and `max_nodes`, with the values of each.
    steps: of the search to time.
    repeats: how often; the median counts.
  """
  base = {varied: values[0] for varied, values in sizes.items()}
  points = []
  for varied, values in sizes.items():
    for size in values:
      at = {**base, varied: size}
      numbers = dataclasses.replace(search, max_nodes=at["max_nodes"])
      lengths = dataclasses.replace(workload, prompt=at["prompt"])
      subject = find_subject(name, dtype, lengths, numbers)
      seconds = _seconds_per_step(subject, at["batch"], steps, repeats)
      points.append({"model": name, "varied": varied, "size": size, **at, "seconds_per_step": seconds})
  return points


def _seconds_per_step(subject: Subject, batch: int, steps: int, repeats: int) -> float:
  lm = dataclasses.replace(subject.lm, forced_good=0.0)
  sides = subject.prompts("proposing", batch), subject.prompts("judging", batch)
  times = []
  for seed in range(repeats + 1):
    state = begin_search(lm, subject.params, *sides, _keys(seed, batch), batch)
    jax.block_until_ready(state)
    begin = time.perf_counter()
    state = decode.advance(state, lm, subject.params, lm.search, steps, wait_for_all=True)
    done = int(state.counters.steps.max())
    times.append((time.perf_counter() - begin) / done)
  return float(np.median(times[1:]))


_COLUMNS = {
    "model": "model", "method": "method", "mode": "mode", "verdicts": "verdicts", "batch": "batch",
    "model_calls_per_token": "calls/token", "tokens_forwarded_per_token": "forwarded/token",
    "padding_per_token": "padding/token", "seconds_per_token": "ms/token",
    "ratio_to_vanilla": "x vanilla", "responses_per_minute": "responses/min",
    "iterations_per_move": "iterations/move", "compile_seconds": "compile s",
}


def table(measured_rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as a table in plain text."""

  def cell(name, value):
    if value is None:
      return "-"
    if name == "seconds_per_token":
      value = 1000 * value
    return f"{value:.4g}" if isinstance(value, float) else str(value)

  lines = [list(_COLUMNS.values())]
  lines += [[cell(name, row.get(name)) for name in _COLUMNS] for row in measured_rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
  return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths)) for line in lines)


def hardware() -> dict[str, Any]:
  """What `benchmark.json` says of the machine and the libraries."""
  versions = job.versions()
  device = {k: versions.pop(k) for k in ("device", "device_count")}
  return {"hardware": {**device, "backend": jax.default_backend()}, "versions": versions}
