"""A checkpoint read with PyTorch and transformers, as somebody who knows nothing of this package would."""

from collections.abc import Sequence
from typing import Any

from rain_jax.preferences import CompiledPreference


def verdicts(
  model: Any, compiled: CompiledPreference, prompt: str, response: Sequence[int]
) -> list[bool]:
  """Whether a model of transformers calls a response good, by each reading of a preference."""
  import torch

  stem = [*compiled.prefix_ids, *compiled.conversation_ids(prompt), *response]
  says = []
  for suffix, good, bad in zip(compiled.suffix_ids, compiled.good_ids, compiled.bad_ids):
    with torch.no_grad():
      logits = model(torch.tensor([stem + list(suffix)])).logits[0, -1]
    says.append(bool(logits[list(good)].max() > logits[list(bad)].max()))
  return says
