"""Shapes and constants of the LLaMA family, read from Hugging Face's config files.

Every generation and cousin that the library runs (LLaMA 1 to 3, Vicuna, Mistral, Qwen2, Qwen3) is
one `ModelConfig`: the families differ in numbers and flags, never in code paths of their own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# What no model has: larger sizes would be allocated before a tensor shows that they are wrong.
_LARGEST, _MOST_LAYERS = 1 << 31, 4096
_LARGEST_NUMBER = 1e38  # what float32 holds

# For each kind of RoPE scaling the keys it needs in config.json, and our fields.
_SCALING_KEYS = {
  "linear": {"factor": "factor"},
  "llama3": {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_position",
  },
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the trained context.

  `kind` 'linear' divides every frequency by `factor`. 'llama3' does so for wavelengths longer than
  `original_max_position / low_freq_factor`, keeps those shorter than
  `original_max_position / high_freq_factor`, and blends in between; 'linear' ignores these fields.
  'factors' divides each frequency by `factor` and by its own one of `factors`, half a head of them.
  """

  kind: str
  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 1.0
  original_max_position: int = 0
  factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """What fixes the shapes and the arithmetic of one language model; hashable, so usable as static.

  `attention_bias` is the bias of the query, key and value projections, `attention_output_bias` that
  of the output projection. `sliding_window` counts the keys that a query sees, itself included, in
  the layers marked in `sliding_layers` (one flag per layer; empty when there is no window).
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

  def __post_init__(self):
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
    for name in (*sizes, "head_size", "max_position"):
      _size(vars(self), name, where="the model's config")
    _size(vars(self), "num_layers", most=_MOST_LAYERS, where="the model's config")
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

  @property
  def context(self) -> int:
    """Positions that the model was made for, those that its RoPE scaling adds included."""
    if self.rope_scaling is None:
      return self.max_position
    trained = self.rope_scaling.original_max_position or self.max_position
    return max(self.max_position, round(trained * self.rope_scaling.factor))

  @classmethod
  def from_hf(
    cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
  ) -> "ModelConfig":
    """Reads the contents of `config.json` and, where there is one, `generation_config.json`.

    End-of-sequence ids are the union of both files: chat models often list the end of a turn
    only in the second.

    Raises:
      ValueError: a model type, activation, rope kind or quantisation that is not supported, or a
        required key that is missing.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
      raise ValueError(
        f"model_type {model_type!r:.60} in config.json is not supported, "
        f"expected one of {', '.join(MODEL_TYPES)}"
      )
    _check_architectures(config.get("architectures"))
    _require("hidden_act", config.get("hidden_act", "silu"), "silu")
    _require("quantization_config", config.get("quantization_config"), None)
    heads = _size(config, "num_attention_heads")
    hidden = _size(config, "hidden_size")
    layers = _size(config, "num_hidden_layers", most=_MOST_LAYERS)
    if config.get("head_dim") is None and model_type != "qwen3" and hidden % heads:
      raise ValueError(
        f"hidden_size = {hidden} in config.json is not a multiple of num_attention_heads = {heads},"
        " and there is no head_dim: give the one that the model was trained with"
      )
    theta, scaling = _rope(config)
    window, sliding_layers = _sliding(config, model_type, layers)
    bias = _flag(config, "attention_bias")
    return cls(
      vocab_size=_size(config, "vocab_size"),
      hidden_size=hidden,
      intermediate_size=_size(config, "intermediate_size"),
      num_layers=layers,
      num_heads=heads,
      num_kv_heads=_size(config, "num_key_value_heads", heads),
      head_size=_size(config, "head_dim", 128 if model_type == "qwen3" else hidden // heads),
      rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
      rope_theta=theta,
      rope_scaling=scaling,
      tie_embeddings=_flag(config, "tie_word_embeddings"),
      attention_bias=bias or model_type == "qwen2",
      attention_output_bias=bias,
      mlp_bias=_flag(config, "mlp_bias"),
      qk_norm=model_type == "qwen3",
      sliding_window=window,
      sliding_layers=sliding_layers,
      eos_ids=_eos_ids(config, generation or {}),
      bos_id=_token_id(config, "bos_token_id"),
      max_position=_size(config, "max_position_embeddings", 2048),
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
    for name in ("sliding_layers", "eos_ids"):
      fields[name] = tuple(fields.get(name, ()))
    return cls(**fields)

  def to_json(self) -> dict[str, Any]:
    """Plain JSON values, one per field."""
    return dataclasses.asdict(self)


def _size(
  config: Mapping[str, Any],
  key: str,
  default: int | None = None,
  most: int = _LARGEST,
  where: str = "config.json",
) -> int:
  """A size, 1 to `most`; without a default it has to be there."""
  found = default if config.get(key) is None else config[key]
  if found is None:
    raise ValueError(f"{where} has no {key!r}, which every model needs")
  if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= most:
    raise ValueError(f"{key} = {found!r:.60} in {where}, expected a whole number, 1 to {most}")
  return found


def _check_architectures(found: Any) -> None:
  """A classifier has the layers of a language model, and no output table to write with."""
  if found is None:
    return
  if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
    raise ValueError(f"architectures = {found!r:.60} in config.json, expected a list of names")
  others = [name for name in found if "For" in name and not name.endswith("ForCausalLM")]
  if others and len(others) == len(found):
    raise ValueError(
      f"architectures = {others[0]!r:.60} in config.json: that is no language model (a classifier,"
      " perhaps), expected one whose name ends in ForCausalLM"
    )


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
  found = default if config.get(key) is None else config[key]
  number = isinstance(found, int | float) and not isinstance(found, bool)
  if not number or not 0 < found < _LARGEST_NUMBER:
    wanted = f"a number above 0 and below {_LARGEST_NUMBER:g}"
    raise ValueError(f"{key} = {found!r:.60} in config.json, expected {wanted}")
  return float(found)


def _flag(config: Mapping[str, Any], key: str) -> bool:
  found = config.get(key)
  if found is not None and not isinstance(found, bool):
    raise ValueError(f"{key} = {found!r:.60} in config.json, expected true or false")
  return bool(found)


def _token_id(config: Mapping[str, Any], key: str) -> int | None:
  found = config.get(key)
  if found is not None and (isinstance(found, bool) or not isinstance(found, int) or found < 0):
    raise ValueError(f"{key} = {found!r:.60} in config.json, expected the id of a token")
  return found


def _require(key: str, found: Any, expected: Any) -> None:
  if found != expected:
    raise ValueError(
      f"{key} = {found!r:.60} in config.json is not supported, expected {expected!r}"
    )


def _eos_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
  ids: set[int] = set()
  for config in configs:
    found = config.get("eos_token_id")
    for one in found if isinstance(found, list) else [found]:
      token = _token_id({"eos_token_id": one}, "eos_token_id")
      ids.update(() if token is None else (token,))
  return tuple(sorted(ids))


def _rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
  """Theta and scaling, spelled `rope_parameters` or else `rope_theta` and `rope_scaling`."""
  for name in ("rope_parameters", "rope_scaling"):
    found = config.get(name)
    if found is not None and not isinstance(found, Mapping):
      raise ValueError(f"{name} = {found!r:.60} in config.json, expected an object or null")
  rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
  _check_rope_given_twice(config)
  given = lambda key: config.get(key) if rope.get(key) is None else rope[key]
  theta = _number({"rope_theta": given("rope_theta")}, "rope_theta", 10000.0)
  partial = given("partial_rotary_factor")
  if partial is not None:
    _require("partial_rotary_factor", partial, 1.0)
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind == "default":
    if nested := [key for key, value in rope.items() if isinstance(value, Mapping)]:
      raise ValueError(f"RoPE per layer type {nested} in config.json is not supported")
    both = (rope, config.get("rope_scaling") or {})
    if factors := [one["factor"] for one in both if one.get("factor") not in (None, 1)]:
      raise ValueError(
        f"config.json gives RoPE a factor of {factors[0]!r:.60} and no kind of scaling: name the"
        " rope_type that the model was trained with, or remove the factor"
      )
    return theta, None
  if not isinstance(kind, str) or kind not in _SCALING_KEYS:
    raise ValueError(
      f"rope type {kind!r:.60} in config.json is not supported, expected default, linear or llama3"
    )
  if missing := [key for key in _SCALING_KEYS[kind] if rope.get(key) is None]:
    raise ValueError(f"the {kind} RoPE scaling in config.json lacks {', '.join(missing)}")
  read = {"original_max_position": _size}
  fields: dict[str, Any] = {
    field: read.get(field, _number)(rope, key, 1) for key, field in _SCALING_KEYS[kind].items()
  }
  if fields["factor"] < 1:
    raise ValueError(f"factor = {fields['factor']} of RoPE in config.json, expected 1 or more")
  if kind == "llama3" and fields["low_freq_factor"] >= fields["high_freq_factor"]:
    raise ValueError(
      f"low_freq_factor = {fields['low_freq_factor']} in config.json, expected less than"
      f" high_freq_factor = {fields['high_freq_factor']}"
    )
  return theta, RopeScaling(kind, **fields)


def _check_rope_given_twice(config: Mapping[str, Any]) -> None:
  """Newer files say `rope_parameters`, older ones `rope_scaling`; both must say the same.

  So must `rope_type` and its older name `type`, and `rope_theta` wherever it stands.
  """
  new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
  thetas = [one["rope_theta"] for one in (config, new, old) if one.get("rope_theta") is not None]
  differing = ["rope_theta"] if any(theta != thetas[0] for theta in thetas[1:]) else []
  kinds = [one[key] for one in (new, old) for key in ("rope_type", "type") if one.get(key)]
  if new and old and not new.get("rope_type") and not new.get("type"):
    kinds.append("default")
  differing += ["rope_type"] if any(kind != kinds[0] for kind in kinds[1:]) else []
  # What only one of them says is no contradiction, the kind of scaling apart.
  names = {*new} & {*old} - {"rope_theta", "rope_type", "type"}
  differing += sorted(name for name in names if new[name] != old[name])
  if differing:
    raise ValueError(
      f"config.json gives RoPE twice, and {', '.join(differing)} differ: keep the one of"
      " rope_parameters, rope_scaling and rope_theta that the model was trained with"
    )


def _sliding(
  config: Mapping[str, Any], model_type: str, num_layers: int
) -> tuple[int | None, tuple[bool, ...]]:
  """The attention window and which layers use it."""
  # A Mistral config that is silent about its window means the first release's 4096.
  window = config.get("sliding_window", 4096 if model_type == "mistral" else None)
  if model_type == "llama" or (model_type != "mistral" and not _flag(config, "use_sliding_window")):
    window = None
  if window is None:
    return None, ()
  window = _size({"sliding_window": window}, "sliding_window")
  if model_type == "mistral":
    return window, (True,) * num_layers
  types = config.get("layer_types")
  if types is None:
    first = config.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
      raise ValueError(f"max_window_layers = {first!r:.60} in config.json, expected a whole number")
    types = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
  if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
    raise ValueError(f"layer_types = {types!r:.60} in config.json, expected a list of names")
  if unknown := sorted(set(types) - {"sliding_attention", "full_attention"}):
    raise ValueError(
      f"layer_types {unknown} are not supported, expected sliding_attention or full_attention"
    )
  return window, tuple(kind == "sliding_attention" for kind in types)
