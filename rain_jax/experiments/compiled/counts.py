"""How many calls of each kind a response token takes: counted on a small model, which costs nothing.

Calls depend on the search, on the lengths, on the verdicts (which are forced) and on how many prompts
lie side by side, hardly on the model's size.
"""

import dataclasses

from rain_jax.experiments.benchmark.methods import rain
from rain_jax.experiments.benchmark.subjects import Workload, find_subject
from rain_jax.models import backend
from rain_jax.types import SearchConfig


@dataclasses.dataclass(frozen=True)
class Counts:
  """Of one batch, from its first step to its last.

  Attributes:
    tokens: response tokens made.
    turns: how often each phase of the program turned; `step` are the steps.
  """

  tokens: int
  turns: dict[str, float]


def sampling(workload: Workload, batch: int) -> Counts:
  """Of vanilla decoding of whole responses."""
  return Counts(batch * workload.response, {"sampling": workload.response - 1})


def searching(
  workload: Workload, batch: int, search: SearchConfig, verdicts: str, mixed_share: float
) -> Counts | None:
  """Of a search, or of drafts, for `batch` prompts side by side, with verdicts that are forced; it is run.

  None where it drafts and searches, whose calls are not counted apart.
  """
  # All in one batch, as on an accelerator; on a CPU each core would search for prompts of its own.
  with backend.target("tpu"):
    subject = find_subject("smallest", "float32", workload, search)
    work = rain(subject, batch, search, verdicts, mixed_share)(0)
  executed = dict(work.details["executed_by_role"])
  steps = work.details["steps"]
  if search.mode == "exact":
    phases = {role: executed[role] for role in ("candidates", "rollout", "verdict")}
    return Counts(work.tokens, {"step": steps, "context": steps, **phases})
  if work.details["iterations_per_move"]:
    return None
  phases = {
    "draft context": executed["context"],
    "draft": executed["rollout"],
    "draft verdict": executed["verdict"],
  }
  return Counts(work.tokens, {"step": steps, **phases})
