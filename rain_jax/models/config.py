"""Shapes and constants of the LLaMA family, read from Hugging Face's config files.

Every generation and cousin that the library runs is one `ModelConfig`: the families differ in numbers
and flags, never in code paths of their own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rain_jax.models import json_values as values
from rain_jax.models import rope
from rain_jax.models.rope import RopeScaling

_GEMMA: Mapping[str, Any] = {
  "norms": "both",
  "norm_offset": 1.0,
  "activation": "gelu_tanh",
  "scaled_embedding": True,
}
# Our fields that each model type fixes, whatever its config.json says.
_FAMILIES: Mapping[str, Mapping[str, Any]] = {
  "llama": {},
  "mistral": {},
  "qwen2": {},
  "qwen3": {"qk_norm": True},
  "smollm3": {},
  "olmo2": {"norms": "after", "qk_norm": True, "qk_norm_whole": True},
  "gemma2": _GEMMA,
  "gemma3_text": {**_GEMMA, "qk_norm": True},
}
MODEL_TYPES = tuple(_FAMILIES)
_OTHERS = {"gemma3": " because it reads images: export its text model alone, gemma3_text"}
# What a config.json that is silent about a key means by that; llama's values are in `from_hf`.
_GEMMA_SILENT: Mapping[str, Any] = {
  "head_dim": 256,
  "num_key_value_heads": 4,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "tie_word_embeddings": True,
}
_SILENT: Mapping[str, Mapping[str, Any]] = {
  "mistral": {"sliding_window": 4096},  # the first release's
  "qwen3": {"head_dim": 128},
  "smollm3": {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
  },
  "olmo2": {"rms_norm_eps": 1e-5},
  "gemma2": {
    **_GEMMA_SILENT,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 8192,
  },
  "gemma3_text": {**_GEMMA_SILENT, "max_position_embeddings": 131072},
}
_THETAS = {"smollm3": 2e6, "gemma3_text": 1e6}  # likewise, of RoPE
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}  # ours, and Hugging Face's
_NORMS = ("before", "after", "both")
# What no model has: more would be allocated before a tensor shows that it is wrong.
_MOST_LAYERS = 4096


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """What fixes the shapes and the arithmetic of one language model; hashable, so usable as static.

  `attention_bias` is the bias of the query, key and value projections, `attention_output_bias` that
  of the output projection. `sliding_window` counts the keys that a query sees, itself included, in
  the layers marked in `sliding_layers` (one flag per layer; empty when there is no window).

  `norms` says where a layer normalises, before attention and MLP, after them, or both; `norm_offset`
  is added to what a norm multiplies by. `qk_norm` normalises queries and keys, each head by itself or,
  with `qk_norm_whole`, all heads as one. Scores are divided by the root of `score_size`, None being the
  size of a head, and kept within `score_cap`, logits within `logit_cap`, by a tanh.
  `scaled_embedding` multiplies what the table gives by the root of `hidden_size`. Layers with a
  window rotate by `local_rope_theta`, unscaled, if it is given; those marked in `unrotated_layers`
  (one flag per layer, or empty) do not rotate at all.

  A reward model has `scores`: one number in place of the logits of a vocabulary.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_size: int
  rms_norm_eps: float = 1e-6
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  tie_embeddings: bool = False
  attention_bias: bool = False
  attention_output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  sliding_window: int | None = None
  sliding_layers: tuple[bool, ...] = ()
  eos_ids: tuple[int, ...] = ()
  bos_id: int | None = None
  max_position: int = 2048
  norms: str = "before"
  norm_offset: float = 0.0
  qk_norm_whole: bool = False
  activation: str = "silu"
  scaled_embedding: bool = False
  score_size: float | None = None
  score_cap: float | None = None
  logit_cap: float | None = None
  local_rope_theta: float | None = None
  unrotated_layers: tuple[bool, ...] = ()
  scores: bool = False

  def __post_init__(self):
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
    for name in (*sizes, "head_size", "max_position"):
      values.size(vars(self), name, where="the model's config")
    values.size(vars(self), "num_layers", most=_MOST_LAYERS, where="the model's config")
    for name, known in (("norms", _NORMS), ("activation", tuple(_ACTIVATIONS))):
      if (found := getattr(self, name)) not in known:
        raise ValueError(f"{name} = {found!r:.60}, expected one of {', '.join(known)}")
    if wrong := [one for one in self.eos_ids if not 0 <= one < self.vocab_size]:
      raise ValueError(
        f"eos_token_id = {wrong[0]}: the model has the tokens 0 to {self.vocab_size - 1}; give"
        " the id of its own end of text in config.json and generation_config.json"
      )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads = {self.num_heads} is not a multiple of num_kv_heads = {self.num_kv_heads}; "
        "grouped-query attention needs whole groups"
      )
    if self.head_size % 2:
      raise ValueError(f"head_size = {self.head_size} is odd; rotary embeddings need an even one")
    expected = self.num_layers if self.sliding_window is not None else 0
    if len(self.sliding_layers) != expected:
      raise ValueError(
        f"sliding_layers has {len(self.sliding_layers)} flags, expected {expected} "
        f"(num_layers = {self.num_layers}, sliding_window = {self.sliding_window})"
      )
    if self.unrotated_layers and len(self.unrotated_layers) != self.num_layers:
      raise ValueError(
        f"unrotated_layers has {len(self.unrotated_layers)} flags, expected {self.num_layers}"
      )

  @property
  def context(self) -> int:
    """Positions that the model was made for, those that its RoPE scaling adds included."""
    if self.rope_scaling is None:
      return self.max_position
    trained = self.rope_scaling.original_max_position or self.max_position
    return max(self.max_position, round(trained * self.rope_scaling.factor))

  @classmethod
  def from_hf(
    cls,
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
    scores: bool = False,
  ) -> "ModelConfig":
    """Reads the contents of `config.json` and, where there is one, `generation_config.json`.

    With `scores` it has to be that of a reward model, a classifier of one label.

    End-of-sequence ids are the union of both files: chat models often list the end of a turn
    only in the second.

    Raises:
      ValueError: a model type, activation, rope kind or quantisation that is not supported, or a
        required key that is missing.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
      hint = _OTHERS.get(model_type, "") if isinstance(model_type, str) else ""
      raise ValueError(
        f"model_type {model_type!r:.60} in config.json is not supported{hint}, "
        f"expected one of {', '.join(MODEL_TYPES)}"
      )
    _check_architectures(config.get("architectures"), scores)
    if scores:
      _check_one_label(config)
    config = {**_SILENT.get(model_type, {}), **config}
    family = _FAMILIES[model_type]
    _check_supported(config, model_type, _ACTIVATIONS[family.get("activation", "silu")])
    heads = values.size(config, "num_attention_heads")
    hidden = values.size(config, "hidden_size")
    layers = values.size(config, "num_hidden_layers", most=_MOST_LAYERS)
    if config.get("head_dim") is None and hidden % heads:
      raise ValueError(
        f"hidden_size = {hidden} in config.json is not a multiple of num_attention_heads = {heads},"
        " and there is no head_dim: give the one that the model was trained with"
      )
    head = values.size(config, "head_dim", hidden // heads)
    theta, scaling, local = _rope(config, model_type, head)
    unrotated = _unrotated(config, layers) if model_type == "smollm3" else ()
    window, sliding_layers = _sliding(config, model_type, layers)
    bias = values.flag(config, "attention_bias")
    return cls(
      vocab_size=values.size(config, "vocab_size"),
      hidden_size=hidden,
      intermediate_size=values.size(config, "intermediate_size"),
      num_layers=layers,
      num_heads=heads,
      num_kv_heads=values.size(config, "num_key_value_heads", heads),
      head_size=head,
      rms_norm_eps=values.number(config, "rms_norm_eps", 1e-6),
      rope_theta=theta,
      rope_scaling=scaling,
      tie_embeddings=values.flag(config, "tie_word_embeddings") and not scores,
      attention_bias=bias or model_type == "qwen2",
      attention_output_bias=bias,
      mlp_bias=values.flag(config, "mlp_bias"),
      sliding_window=window,
      sliding_layers=sliding_layers,
      eos_ids=_eos_ids(config, generation or {}),
      bos_id=values.token_id(config, "bos_token_id"),
      max_position=values.size(config, "max_position_embeddings", 2048),
      score_size=values.optional_number(config, "query_pre_attn_scalar"),
      score_cap=values.optional_number(config, "attn_logit_softcapping"),
      logit_cap=None if scores else values.optional_number(config, "final_logit_softcapping"),
      local_rope_theta=local,
      unrotated_layers=unrotated,
      scores=scores,
      **family,
    )

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> "ModelConfig":
    """The inverse of `to_json`. Raises ValueError when the fields are not those of this class."""
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(fields) - known):
      raise ValueError(f"unknown model config fields {unknown}; was it written by a newer version?")
    fields = dict(fields)
    if fields.get("rope_scaling") is not None:
      scaling = dict(fields["rope_scaling"])
      scaling["factors"] = tuple(scaling.get("factors", ()))
      fields["rope_scaling"] = RopeScaling(**scaling)
    for name in ("sliding_layers", "eos_ids", "unrotated_layers"):
      fields[name] = tuple(fields.get(name, ()))
    return cls(**fields)

  def to_json(self) -> dict[str, Any]:
    """Plain JSON values, one per field."""
    return dataclasses.asdict(self)


def _check_architectures(found: Any, scores: bool) -> None:
  """A classifier has the layers of a language model, and no output table to write with."""
  if found is None and not scores:
    return
  if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
    raise ValueError(f"architectures = {found!r:.60} in config.json, expected a list of names")
  if scores:
    if not any(name.endswith("ForSequenceClassification") for name in found):
      raise ValueError(
        f"architectures = {found!r:.60} in config.json: that is no reward model, expected one whose"
        " name ends in ForSequenceClassification"
      )
    return
  others = [name for name in found if "For" in name and not name.endswith("ForCausalLM")]
  if others and len(others) == len(found):
    raise ValueError(
      f"architectures = {others[0]!r:.60} in config.json: that is no language model (a classifier,"
      " perhaps; a reward model gives verdicts with verdict.kind=reward), expected one whose name"
      " ends in ForCausalLM"
    )


def _check_one_label(config: Mapping[str, Any]) -> None:
  """Classifiers of several labels, and those that say nothing and mean two, are no reward models."""
  names = config.get("id2label")
  count = len(names) if isinstance(names, Mapping) else config.get("num_labels", 2)
  if count != 1:
    raise ValueError(
      f"{count!r:.60} labels in config.json (id2label), expected one, whose score is the reward"
    )


def _eos_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
  ids: set[int] = set()
  for config in configs:
    found = config.get("eos_token_id")
    for one in found if isinstance(found, list) else [found]:
      token = values.token_id({"eos_token_id": one}, "eos_token_id")
      ids.update(() if token is None else (token,))
  return tuple(sorted(ids))


def _check_supported(config: Mapping[str, Any], model_type: str, activation: str) -> None:
  gemma = model_type.startswith("gemma")
  key = "hidden_activation" if gemma else "hidden_act"
  found = config.get(key)
  values.require(key, activation if found is None else found, activation)
  values.require("quantization_config", config.get("quantization_config"), None)
  if gemma:
    values.require(
      "use_bidirectional_attention", values.flag(config, "use_bidirectional_attention"), False
    )
  # What other families' arithmetic has no place for must not be there.
  for key in ("query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping"):
    if not gemma or (model_type, key) == ("gemma3_text", "attn_logit_softcapping"):
      values.require(key, config.get(key), None)


def _rope(
  config: Mapping[str, Any], model_type: str, head_size: int
) -> tuple[float, RopeScaling | None, float | None]:
  """Theta and scaling, and the theta of layers with a window where that is another."""
  default = _THETAS.get(model_type, 10000.0)
  if model_type != "gemma3_text":
    return *rope.read(config, head_size, default), None
  both = config.get("rope_parameters")
  kinds = ("full_attention", "sliding_attention")
  if not isinstance(both, Mapping) or not any(kind in both for kind in kinds):
    local = values.number(config, "rope_local_base_freq", 10000.0)
    return *rope.read(config, head_size, default), local
  if unknown := sorted(set(both) - set(kinds)):
    raise ValueError(f"RoPE per layer type {unknown!r:.60} in config.json is not supported")
  whole, near = ({**config, "rope_parameters": both.get(kind)} for kind in kinds)
  theta, scaling = rope.read(whole, head_size, default)
  # Scaling and theta of the whole file are those of full attention.
  near = {key: value for key, value in near.items() if key not in ("rope_scaling", "rope_theta")}
  local, scaled = rope.read(near, head_size, 10000.0)
  if scaled is not None:
    raise ValueError("RoPE of sliding_attention is scaled in config.json: that is not supported")
  return theta, scaling, local


def _unrotated(config: Mapping[str, Any], num_layers: int) -> tuple[bool, ...]:
  """Which layers have no RoPE: those with a 0 in `no_rope_layers`, or one in so many."""
  every = values.size(config, "no_rope_layer_interval", 4)
  kept = config.get("no_rope_layers")
  if kept is None:
    kept = [int((layer + 1) % every != 0) for layer in range(num_layers)]
  if not isinstance(kept, list) or not all(one in (0, 1) for one in kept):
    raise ValueError(f"no_rope_layers = {kept!r:.60} in config.json, expected a list of 0 and 1")
  return tuple(not one for one in kept[:num_layers])


def _sliding(
  config: Mapping[str, Any], model_type: str, num_layers: int
) -> tuple[int | None, tuple[bool, ...]]:
  """The attention window and which layers use it."""
  always = model_type in ("mistral", "gemma2", "gemma3_text")
  if model_type in ("llama", "olmo2") or not (always or values.flag(config, "use_sliding_window")):
    return None, ()
  if config.get("sliding_window") is None and not model_type.startswith("gemma"):
    return None, ()
  window = values.size(config, "sliding_window")
  if model_type == "mistral":
    return window, (True,) * num_layers
  types = config.get("layer_types")
  if types is None:
    types = _layer_types(config, model_type, num_layers)
  if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
    raise ValueError(f"layer_types = {types!r:.60} in config.json, expected a list of names")
  if unknown := sorted(set(types) - {"sliding_attention", "full_attention"}):
    raise ValueError(
      f"layer_types {unknown} are not supported, expected sliding_attention or full_attention"
    )
  return window, tuple(kind == "sliding_attention" for kind in types)


def _layer_types(config: Mapping[str, Any], model_type: str, num_layers: int) -> list[str]:
  """The kind of attention in each layer, where config.json does not list them."""
  if model_type == "smollm3":
    sliding = _unrotated(config, num_layers)
  elif model_type.startswith("gemma"):
    every = 2 if model_type == "gemma2" else values.size(config, "sliding_window_pattern", 6)
    sliding = tuple((layer + 1) % every != 0 for layer in range(num_layers))
  else:
    first = config.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
      raise ValueError(f"max_window_layers = {first!r:.60} in config.json, expected a whole number")
    sliding = tuple(layer >= first for layer in range(num_layers))
  return ["sliding_attention" if one else "full_attention" for one in sliding]
