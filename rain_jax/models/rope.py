"""Rotary position embeddings: how config.json spells them, and their angles.

The keys are those of https://huggingface.co/docs/transformers/main/en/internal/rope_utils.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rain_jax.models import json_values as values

# For each kind of RoPE scaling the keys it needs in config.json, and our fields.
_SCALING_KEYS = {
  "linear": {"factor": "factor"},
  "llama3": {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_position",
  },
  "yarn": {"factor": "factor", "original_max_position_embeddings": "original_max_position"},
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the trained context.

  `kind` 'linear' divides every frequency by `factor`. 'llama3' does so for wavelengths longer than
  `original_max_position / low_freq_factor`, keeps those shorter than
  `original_max_position / high_freq_factor`, and blends in between; 'linear' ignores these fields.
  'factors' divides each frequency by `factor` and by its own one of `factors`, half a head of them.
  Rotated queries and keys are multiplied by `magnitude`. YaRN comes as 'factors' with a magnitude.
  """

  kind: str
  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 1.0
  original_max_position: int = 0
  factors: tuple[float, ...] = ()
  magnitude: float = 1.0


def angles(
  theta: float, scaling: RopeScaling | None, head_size: int, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of the rotary angles, float32 [*batch, T, D / 2], for positions [*batch, T]."""
  half = head_size // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if scaling is not None:
    stretched = frequencies / scaling.factor
    if scaling.kind == "linear":
      frequencies = stretched
    elif scaling.kind == "factors":
      frequencies = stretched / jnp.asarray(scaling.factors, jnp.float32)
    else:
      # Turns that a frequency makes over the trained context decide how much of it is kept.
      turns = scaling.original_max_position * frequencies / (2 * math.pi)
      low, high = scaling.low_freq_factor, scaling.high_freq_factor
      keep = jnp.clip((turns - low) / (high - low), 0, 1)
      frequencies = keep * frequencies + (1 - keep) * stretched
  at = positions[..., None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(at), jnp.sin(at)
  if scaling is not None and scaling.magnitude != 1:
    return cos * scaling.magnitude, sin * scaling.magnitude
  return cos, sin


def read(
  config: Mapping[str, Any], head_size: int, default_theta: float = 10000.0
) -> tuple[float, RopeScaling | None]:
  """Theta and scaling, spelled `rope_parameters` or else `rope_theta` and `rope_scaling`.

  Args:
    config: the contents of config.json.
    head_size: D.
    default_theta: where the file has none.

  Raises:
    ValueError: a kind of scaling that is not supported, keys that are missing or contradict others.
  """
  for name in ("rope_parameters", "rope_scaling"):
    found = config.get(name)
    if found is not None and not isinstance(found, Mapping):
      raise ValueError(f"{name} = {found!r:.60} in config.json, expected an object or null")
  rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
  _check_given_twice(config)
  given = lambda key: config.get(key) if rope.get(key) is None else rope[key]
  theta = values.number({"rope_theta": given("rope_theta")}, "rope_theta", default_theta)
  partial = given("partial_rotary_factor")
  if partial is not None:
    values.require("partial_rotary_factor", partial, 1.0)
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
      f"rope type {kind!r:.60} in config.json is not supported, expected default,"
      f" {', '.join(_SCALING_KEYS)}"
    )
  if kind == "yarn" and rope.get("original_max_position_embeddings") is None:
    # Left out, it is that of the whole file, or the model's own context.
    trained = given("original_max_position_embeddings") or config.get("max_position_embeddings")
    rope = {**rope, "original_max_position_embeddings": trained}
  if missing := [key for key in _SCALING_KEYS[kind] if rope.get(key) is None]:
    raise ValueError(f"the {kind} RoPE scaling in config.json lacks {', '.join(missing)}")
  reader = {"original_max_position": values.size}
  fields: dict[str, Any] = {
    field: reader.get(field, values.number)(rope, key, 1)
    for key, field in _SCALING_KEYS[kind].items()
  }
  if fields["factor"] < 1:
    raise ValueError(f"factor = {fields['factor']} of RoPE in config.json, expected 1 or more")
  if kind == "llama3" and fields["low_freq_factor"] >= fields["high_freq_factor"]:
    raise ValueError(
      f"low_freq_factor = {fields['low_freq_factor']} in config.json, expected less than"
      f" high_freq_factor = {fields['high_freq_factor']}"
    )
  if kind == "yarn":
    return theta, _yarn(rope, theta, head_size, **fields)
  return theta, RopeScaling(kind, **fields)


def _yarn(
  rope: Mapping[str, Any], theta: float, head_size: int, factor: float, original_max_position: int
) -> RopeScaling:
  """YaRN (arXiv 2309.00071, sections 3.2 and 3.4) as a factor for each frequency.

  Frequencies that turn more than `beta_fast` times over the trained context stay, those that turn
  less than `beta_slow` times are divided by the factor, and those in between are blended by place.
  """
  half = head_size // 2
  fast, slow = values.number(rope, "beta_fast", 32), values.number(rope, "beta_slow", 1)
  if not 0.001 <= slow < fast or theta <= 1:
    raise ValueError(
      f"beta_slow = {slow}, beta_fast = {fast}, rope_theta = {theta} in config.json, expected"
      " 0.001 <= beta_slow < beta_fast and rope_theta above 1"
    )

  def place(turns: float) -> float:
    """Which frequency turns that often, counted from the fastest."""
    return half * math.log(original_max_position / (turns * 2 * math.pi)) / math.log(theta)

  first, last = place(fast), place(slow)
  if rope.get("truncate") is None or values.flag(rope, "truncate"):
    first, last = math.floor(first), math.ceil(last)
  # As other programs bound these: by the size of a head, though it has half as many frequencies.
  first, last = max(first, 0), min(last, head_size - 1)
  width = last - first or 0.001
  blend = (min(max((i - first) / width, 0.0), 1.0) for i in range(half))
  # 1 / (kept + blended share of 1 / factor), of which the stretch by `factor` is done already.
  factors = tuple(1 / (factor * (1 - share) + share) for share in blend)
  return RopeScaling(
    "factors",
    factor,
    original_max_position=original_max_position,
    factors=factors,
    magnitude=_magnitude(rope, factor),
  )


def _magnitude(rope: Mapping[str, Any], factor: float) -> float:
  """What YaRN multiplies rotated queries and keys by, given or by its formula."""
  if rope.get("attention_factor") is not None:
    return values.number(rope, "attention_factor")
  growth = lambda scale: 0.1 * scale * math.log(factor) + 1
  scale, whole = (values.optional_number(rope, key) for key in ("mscale", "mscale_all_dim"))
  return growth(scale) / growth(whole) if scale and whole else growth(1)


def _check_given_twice(config: Mapping[str, Any]) -> None:
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
  trained = "original_max_position_embeddings"
  contexts = [one[trained] for one in (config, new or old) if one.get(trained) is not None]
  differing += [trained] if contexts[1:] and contexts[0] != contexts[1] else []
  if differing:
    raise ValueError(
      f"config.json gives RoPE twice, and {', '.join(differing)} differ: keep the one of"
      " rope_parameters, rope_scaling and rope_theta that the model was trained with"
    )
