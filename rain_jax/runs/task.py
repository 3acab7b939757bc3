"""One task's share of a run: what is not answered yet, by each method, line by line."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from rain_jax import judges
from rain_jax.methods import METHODS, SearchStep
from rain_jax.methods.ahead import Ahead, Program
from rain_jax.methods.session import Response, Session
from rain_jax.parallel.hosts import Hosts
from rain_jax.runs import directory
from rain_jax.runs.metrics import Metrics, Profiler, Progress

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class TaskRun:
  """One task's share of a run.

  Attributes:
    task: its name.
    out: where results go.
    judge: what is said of each response at once.
    config: the run's configuration.
    hosts: which process of the run this is.
    metrics: where the numbers of each step go.
    traces: folder for traces of a few steps; None for none.
    on_step: called with every step of the searches.
    stopping: asked between results; True ends the run.
  """

  task: str
  out: directory.Run
  judge: judges.Rule
  config: Mapping[str, Any]
  hosts: Hosts
  metrics: Metrics
  traces: str | None
  on_step: Callable[[SearchStep], None] | None
  stopping: Callable[[], bool]
  _mine: frozenset[str] = dataclasses.field(default=frozenset(), init=False)
  _trouble: directory.RunError | None = dataclasses.field(default=None, init=False)

  def run(self, session: Session, names: Sequence[str]) -> None:
    """Answers what is not answered yet, by each method; `session.ahead` is its own `compiling`."""
    self._run(session, _in_order(names))

  def compiling(self, session: Session, names: Sequence[str], after: Ahead | None = None) -> Ahead:
    """Compiles the programs of what is to be answered, in the order in which it is.

    Args:
      session: may be of an abstract model, whose weights are being read.
      names: of the methods.
      after: of the task before.
    """
    programs: list[Program] = []
    # Processes that compile at times of their own would wait for each other in the devices' work;
    # searches that are watched and answers after thoughts have other programs.
    watched = self.on_step is not None or self.config["record"]
    if self.hosts.count == 1 and not session.config.format.thinking:
      for name in _in_order(names):
        method, written = METHODS[name], {r["id"] for r in self._results(name)}
        left = any(query.record.id not in written for query in session.queries)
        if left and not (watched and method.watch):
          programs += method.programs(session, method.options(self.config, self.stopping))
    sizes = f"{session.slots} slots, {session.max_prompt} + {session.config.max_response} tokens"
    of = f"{session.loaded.name}, {sizes}"
    return Ahead(programs, of, self.task, self._leave_together, after)

  def _run(self, session: Session, order: Sequence[str]) -> None:
    ids = [q.record.id for q in session.queries] + [r.record.id for r in session.rejected]
    self._mine = self.hosts.mine(ids)
    for method in order:
      written = {r["id"] for r in self._results(method)}
      there = self.hosts.any([id in written for id in ids])
      done = frozenset(id for id, one in zip(ids, there) if one)
      if done:
        _LOG.info("%s %s: %d of %d are answered already", self.task, method, len(done), len(ids))
      for response in session.rejected:
        if response.record.id not in done:
          self._write(method, response, 0.0)
      # Apart, what others answer is left out; together, all answer it and one writes it.
      self._answer(session, method, done if self.hosts.together else done | set(ids) - self._mine)

  def _answer(self, session: Session, method: str, done: frozenset[str]) -> None:
    total = len(session.queries)
    start = sum(q.record.id in done for q in session.queries)
    if start == total:
      return
    name = {"task": self.task, "method": method}
    told = Progress(self.metrics.write, name, total, start)
    profiler = Profiler(self.traces and f"{self.traces}/{self.task}-{method}")
    # None: no bar where nobody watches.
    hidden = True if self.hosts.process or self.on_step is not None else None
    bar = tqdm.tqdm(
      total=total,
      initial=start,
      desc=f"{self.task} {method}",
      unit="response",
      disable=hidden,
    )
    with bar, contextlib.closing(profiler):

      def between(state):
        bar.set_postfix(rewinds=told.step(state)["rewinds"])
        profiler.step()
        self._leave_together()

      before = time.perf_counter()
      for response in self._responses(session, method, done, between):
        now = time.perf_counter()
        self._write(method, response, now - before)
        before = now
        told.count(response)
        bar.update()
    self._leave_together()

  def _responses(
    self, session: Session, name: str, done: frozenset[str], between: Callable[[Any], None]
  ) -> Iterator[Response]:
    """The method's responses to what is not done; `between` hears of the steps."""
    method, seed = METHODS[name], self.config["seed"]
    options = method.complete(session, method.options(self.config, self.stopping), self._results)
    if method.watch is None:
      return method.run(session, seed, done, between, **options)
    return self._searched(session, name, method.watch, options, done, between)

  def _leave_together(self) -> None:
    """Ends the run if this process has to, or another that it works together with.

    A process that just went would leave the others waiting for it in their next step.
    """
    stop, failed = self.hosts.any([self.stopping(), self._trouble is not None])
    if self._trouble is not None:
      raise self._trouble
    if failed:
      raise directory.RunError("Another process of this run failed; see what it printed.")
    if stop:
      raise directory.Stopped

  def _searched(
    self,
    session: Session,
    method: str,
    watch: Callable[..., Iterator[SearchStep]],
    options: Mapping[str, Any],
    done: frozenset[str],
    between,
  ) -> Iterator[Response]:
    """Responses of a search; the searches of the first `record` prompts are kept."""
    seed = self.config["seed"]
    ids = [query.record.id for query in session.queries]
    recorded = ids[: self.config["record"]]
    left = frozenset(ids if self.on_step else recorded) - done
    if left:
      # A heartbeat would come between the lines of what is followed.
      heard = between if self.on_step is None else lambda progress: self._leave_together()
      for step in watch(session, seed, frozenset(ids) - left, heard, **options):
        if self.on_step:
          self.on_step(step)
        if step.response:
          prompt, search = step.response.record.id, step.response.recording
          if search is not None and prompt in recorded:
            self.out.keep_recording(self.task, method, prompt, search.as_json())
          yield step.response
    yield from METHODS[method].run(session, seed, done | left, between, **options)

  def _results(self, method: str) -> list[dict]:
    return [r for r in self.out.results if r["method"] == method and r["task"] == self.task]

  def _write(self, method: str, response: Response, seconds: float) -> None:
    if response.record.id not in self._mine or self._trouble is not None:
      return
    record = response.record
    before = {"system": record.system, "history": record.history}
    line: dict[str, Any] = {
      "id": record.id,
      "task": self.task,
      "method": method,
      **{name: said for name, said in before.items() if said},
      "prompt": record.prompt,
      **({"goal": record.goal} if "goal" in record.fields else {}),
      **({"prefill": record.prefill} if record.prefill else {}),
      **({"reasoning": response.reasoning} if response.reasoning else {}),
      "response": response.text,
      "finish_reason": response.finish_reason,
      "verdict": response.verdict,
    }
    if response.error is not None:
      line["error"] = response.error
    else:
      try:
        judged = self.judge(record, record.answer(response.text))
      except judges.CannotJudge as why:
        line["unjudged"] = str(why)
      else:
        if judged:
          line["judged"] = judged
      if response.log_likelihood is not None:
        line["log_likelihood"] = round(response.log_likelihood, 4)
      line["counters"] = response.counters
      line["seconds"] = round(seconds, 4)
    try:
      self.out.append(line)
    except directory.RunError as error:
      if not self.hosts.together:
        raise
      self._trouble = error


def _in_order(names: Sequence[str]) -> list[str]:
  """Methods that are asked after others come last."""
  return sorted(names, key=lambda name: bool(METHODS[name].after))
