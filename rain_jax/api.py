"""The Python API: a model by name, prompts in, aligned responses out."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rain_jax import methods, tasks
from rain_jax.methods import verdict_model
from rain_jax.methods.events import Event, events
from rain_jax.methods.session import Response, Session, SessionConfig, search_config
from rain_jax.models import arrays
from rain_jax.models.loading import LoadedModel
from rain_jax.models.loading import load as load_checkpoint
from rain_jax.policy import memory_plan
from rain_jax.policy.embedders import HiddenStates
from rain_jax.preferences import Preference, load_preference
from rain_jax.preferences.calibration import load_calibration
from rain_jax.tasks import Record, Task, messages
from rain_jax.text.formats import Format
from rain_jax.types import DataError, ranges

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything about a call that is neither prompt nor preference.

  Attributes:
    format: how prompts are put to the model; None takes the format that the bundled task
      with this preference has, and plain dialogue for a preference of one's own.
    variant: of the method, a name of `types.VARIANTS`; None likewise, else "harmless".
    search: hyperparameters of `types.SearchConfig` that differ from the variant's.
    max_prompt: longest prompt in tokens; a longer one's response holds an error.
    max_response: longest response in tokens.
    max_thought: longest thought in tokens, of a format with `thinking`.
    batch_size: prompts searched for side by side.
    samples: N of best_of_n.
    embedder: makes path embeddings, see `rain_jax.policy.embedders.find_embedder`.
    soft_verdicts: see `session.SessionConfig`.
    calibration: of the model's verdicts, the path of a file that `check_preference.py --fit` wrote.
  """

  format: Format | None = None
  variant: str | None = None
  search: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  max_prompt: int = 512
  max_response: int = 256
  max_thought: int = SessionConfig.max_thought
  batch_size: int = 8
  samples: int = 16
  embedder: Any = HiddenStates()
  soft_verdicts: bool = False
  calibration: str | os.PathLike | None = None


def load(
  path_or_name: str,
  dtype: str = "float32",
  revision: str = "",
  adapter: str = "",
  verdict: str = "",
  verdict_kind: str = verdict_model.PREFERENCE,
) -> "Rain":
  """Loads a model: bundled ("demo", "demo:traps"), a checkpoint folder, a GGUF file or a hub name.

  Args:
    path_or_name: LLaMA-like checkpoint in safetensors or GGUF, or one that
      `scripts/convert_checkpoint.py` made; `package:NAME` for the GGUF file in an installed package.
    dtype: float32, bfloat16, or int8 for weights in 8 bits.
    revision: branch, tag or commit of a hub name.
    adapter: LoRA adapter in PEFT's format to merge, a folder or a hub name.
    verdict: another model, which gives the verdicts; "" for the model itself.
    verdict_kind: how it is asked, one of `verdict_model.KINDS`: the "preference", or what a "guard"
      or a "reward" model is asked; the verdicts of the latter need `Config.calibration`.

  Raises:
    models.hf.CheckpointError: what is wrong with the checkpoint, in one line.
    DataError: another kind, or one without a model.
  """
  verdict_model.check_kind(verdict, verdict_kind)
  loaded = load_checkpoint(path_or_name, dtype, revision=revision, adapter=adapter)
  if not verdict:
    return Rain(loaded)
  judge = load_checkpoint(verdict, dtype, scores=verdict_kind == verdict_model.REWARD)
  return Rain(loaded.judged_by(judge, guard=verdict_kind == verdict_model.GUARD))


class Rain:
  """A loaded model that answers prompts, aligned or not.

  Attributes:
    loaded: weights, tokenizer and name.
  """

  def __init__(self, loaded: LoadedModel):
    self.loaded = loaded
    self._sessions: dict[SessionConfig, Session] = {}

  def generate(
    self,
    prompts: Sequence[str | Messages],
    preference: str | Preference = "harmless",
    method: str = "rain",
    config: Config = Config(),
    seed: int = 0,
    record: bool = False,
  ) -> list[Response]:
    """Answers prompts.

    Args:
      prompts: for each response what the user says, a text or a list of messages
        (`{"role": ..., "content": ...}`): a system message perhaps, then user and assistant in turn;
        a last message of the assistant is continued, and its continuation is the response.
      preference: what to align with: a bundled name, the path of a YAML file, or a
        `Preference`. Vanilla responses get a verdict by it, too.
      method: "rain", "vanilla" (plain sampling), "best_of_n", or another of `methods.METHODS` that
        answers any prompt.
      config: see `Config`.
      seed: the same seed gives the same responses.
      record: record RAIN's searches step by step, see `rain_jax.methods.recording`; slower.

    Returns:
      A `Response` for each prompt, in their order: `.text`, the model's own `.verdict` on
      it in [-1, 1], `.counters` of the work done, and `.recording` if asked for. A prompt that
      cannot be answered has its reason in `.error`.

    Raises:
      ValueError: an unknown method, preference or number; too little memory. One line.
    """
    chosen = methods.find_method(method)
    if not chosen.any_prompt:
      known = ", ".join(name for name, one in methods.METHODS.items() if one.any_prompt)
      raise DataError(f"method={method!r} needs a run's configuration; expected one of {known}.")
    if record and chosen.watch is None:
      raise DataError(f"record=True: {method} has no search to record; use method='rain'.")
    _check_seed(seed)
    if not ranges.SAMPLES.holds(config.samples):
      raise DataError(f"samples={config.samples!r:.60}: expected {ranges.SAMPLES}.")
    session = self.session(prompts, preference, config)
    options = chosen.options({"best_of_n": {"samples": config.samples}})
    needed = methods.largest_plan(session, [method])
    if needed is not None:
      memory_plan.check(needed, arrays.bytes_available())
    answers: Iterator[Response]
    if record and chosen.watch is not None:
      steps = chosen.watch(session, seed, **options)
      answers = (step.response for step in steps if step.response)
    else:
      answers = chosen.run(session, seed, **options)
    by_id = {answer.record.id: answer for answer in [*session.rejected, *answers]}
    return [by_id[str(place)] for place in range(len(prompts))]

  def stream(
    self,
    prompt: str | Messages,
    preference: str | Preference = "harmless",
    config: Config = Config(),
    seed: int = 0,
  ) -> Iterator[Event]:
    """Answers one prompt by RAIN, and tells what happens to the text on the way.

    Args:
      prompt, preference, config, seed: as for `generate`.

    Yields:
      `methods.events.Event`s: text tried, rewound and committed, and the `Response` at the end.

    Raises:
      ValueError: as `generate`; also for a prompt that cannot be answered.
    """
    _check_seed(seed)
    session = self.session([prompt], preference, config)
    for rejected in session.rejected:
      raise DataError(f"prompt={rejected.record.prompt[:40]!r}: {rejected.error}.")
    memory_plan.check(session.plan(), arrays.bytes_available())
    yield from events(methods.watch(session, seed))

  def session(
    self, prompts: Sequence[str | Messages], preference: str | Preference, config: Config
  ) -> Session:
    """What `generate` runs on; programs compiled for the same settings are used again.

    Prompts get their places, from "0" on, as ids.
    """
    if isinstance(prompts, str) or not all(isinstance(p, (str, list, tuple)) for p in prompts):
      raise DataError(
        f"prompts={prompts!r:.60}: expected a list of texts, or of lists of messages."
      )
    records = [_record(str(place), prompt) for place, prompt in enumerate(prompts)]
    verdict_model.check_calibrated(verdict_model.kind_of(self.loaded), config.calibration)
    session_config = make_session_config(preference, config, self.loaded.judging.tokenizer)
    if session_config in self._sessions:
      return self._sessions[session_config].serving(records)
    return self._sessions.setdefault(session_config, Session(self.loaded, session_config, records))


def _record(name: str, prompt: str | Messages) -> Record:
  if isinstance(prompt, str):
    return Record(name, prompt)
  said = messages.parse(prompt, f"prompts[{name}]")
  return Record(name, said.prompt, {}, said.history, said.system, said.prefill)


def _check_seed(seed: int) -> None:
  if not ranges.SEED.holds(seed):
    raise DataError(f"seed={seed!r:.60}: expected {ranges.SEED}.")


def make_session_config(
  preference: str | Preference, config: Config, tokenizer: Any = None
) -> SessionConfig:
  """What to compile for; what `config` leaves open comes from the preference's task.

  The tokenizer may decide in which form the preference is asked, see `load_preference`.
  """
  if not isinstance(preference, Preference):
    preference = load_preference(preference, tokenizer)
  task = _task_of(preference)
  return SessionConfig(
    format=config.format or task.format,
    preference=preference,
    search=search_config(config.variant or task.variant, config.search, config.embedder),
    max_prompt=config.max_prompt,
    max_response=config.max_response,
    max_thought=config.max_thought,
    batch_size=config.batch_size,
    embedder=config.embedder,
    soft_verdicts=config.soft_verdicts,
    calibration=load_calibration(config.calibration) if config.calibration else None,
  )


def _task_of(preference: Preference) -> Task:
  """The first task aligned with that preference, plain dialogue if there is none."""
  of_preference = (t for t in tasks.TASKS.values() if t.preference == preference.name)
  return next(of_preference, tasks.TASKS["dialogue"])
