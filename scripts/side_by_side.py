"""Vanilla decoding beside transformers' `generate` with its cache, in PyTorch: same weights.

Part of `scripts/benchmark.py`; PyTorch is needed for tests and development only.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rain_jax import models, types
from rain_jax.experiments import benchmark
from rain_jax.models import hf


def _config_json(config) -> dict[str, Any]:
  """The contents of `config.json` for a shape of `benchmark.SHAPES`."""
  return {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": config.vocab_size,
    "hidden_size": config.hidden_size,
    "intermediate_size": config.intermediate_size,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "rms_norm_eps": config.rms_norm_eps,
    "rope_theta": config.rope_theta,
    "tie_word_embeddings": config.tie_embeddings,
    "max_position_embeddings": config.max_position,
    "hidden_act": "silu",
    "eos_token_id": None,
    "bos_token_id": None,
    "dtype": "float32",
  }


def rows(
  name: str,
  batches: Sequence[int],
  workload: benchmark.Workload,
  search: types.SearchConfig,
  repeats: int,
) -> list[dict[str, Any]]:
  """Rows of both programs, float32; responses are always as long as the limit.

  Raises:
    ValueError: PyTorch is not installed.
  """
  try:
    import torch
    import transformers
  except ImportError:
    raise ValueError(
      "side_by_side needs PyTorch: pip install torch, or choose another mode."
    ) from None
  subject = benchmark.find_subject(name, "float32", workload, search)
  with tempfile.TemporaryDirectory() as folder:
    # The subject's own, as they were before they were laid_out for its device.
    weights = models.init_model(subject.lm.config, jax.random.key(0)).params
    hf.save(folder, _config_json(subject.lm.config), weights)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  found = []
  for batch in batches:
    prompts = subject.prompts("proposing", batch)
    ids = np.asarray(prompts.tokens)[:, : int(prompts.length[0])]
    tokens = torch.tensor(ids, dtype=torch.long)
    settings = transformers.GenerationConfig(
      do_sample=True,
      top_k=0,
      max_new_tokens=workload.response,
      min_new_tokens=workload.response,
      use_cache=True,
      pad_token_id=0,
    )

    def generate(seed: int) -> benchmark.Work:
      torch.manual_seed(seed)
      with torch.inference_mode():
        made = model.generate(
          tokens, attention_mask=torch.ones_like(tokens), generation_config=settings
        )
      new = made.shape[1] - tokens.shape[1]
      count = batch * new
      return benchmark.Work(count, count, batch * (tokens.shape[1] + new - 1), 0, {})

    row = dict(model=name, dtype="float32", method="vanilla", verdicts="model", batch=batch)
    cases = [
      benchmark.Case({**row, "mode": "cached"}, benchmark.vanilla(subject, batch)),
      benchmark.Case({**row, "mode": "transformers"}, generate),
    ]
    found += benchmark.measured(cases, repeats)
  return found
