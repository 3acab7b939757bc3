"""Tests of the language model itself; those against PyTorch are in hf_test.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax.models import attention, llama, testing
from rain_jax.models.attention import NO_POSITION, Segment
from rain_jax.models.config import ModelConfig, RopeScaling

FORWARD = jax.jit(llama.forward, static_argnums=0)


def hidden(model, tokens, positions, segments=(), mask=None):
  return FORWARD(model.graphdef, model.params, tokens, positions, segments, mask)


def read(model, tokens, start=0):
  """The whole text at once; also its keys and values as a segment."""
  positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[-1]), tokens.shape)
  out, kv = hidden(model, tokens, positions)
  return out, kv.segment(positions)


def random_tokens(shape, seed=0):
  return jax.random.randint(jax.random.key(seed), shape, 0, 96)


def assert_close(got, want, tolerance=1e-5):
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  assert got.shape == want.shape
  assert np.max(np.abs(got - want)) / np.max(np.abs(want)) < tolerance


LLAMA2_70B = dict(
  model_type="llama",
  vocab_size=32000,
  hidden_size=8192,
  intermediate_size=28672,
  num_hidden_layers=80,
  num_attention_heads=64,
  num_key_value_heads=8,
  rms_norm_eps=1e-5,
  max_position_embeddings=4096,
  bos_token_id=1,
  eos_token_id=2,
)
LLAMA3_8B = dict(
  model_type="llama",
  vocab_size=128256,
  hidden_size=4096,
  intermediate_size=14336,
  num_hidden_layers=32,
  num_attention_heads=32,
  num_key_value_heads=8,
  rope_theta=500000.0,
)
LLAMA1_7B = dict(
  model_type="llama",
  vocab_size=32000,
  hidden_size=4096,
  intermediate_size=11008,
  num_hidden_layers=32,
  num_attention_heads=32,
)
MISTRAL_7B = LLAMA1_7B | dict(
  model_type="mistral", intermediate_size=14336, num_key_value_heads=8, sliding_window=4096
)
QWEN2_HALF_B = dict(
  model_type="qwen2",
  vocab_size=151936,
  hidden_size=896,
  intermediate_size=4864,
  num_hidden_layers=24,
  num_attention_heads=14,
  num_key_value_heads=2,
  tie_word_embeddings=True,
)
QWEN3_HALF_B = dict(
  model_type="qwen3",
  vocab_size=151936,
  hidden_size=1024,
  intermediate_size=3072,
  num_hidden_layers=28,
  num_attention_heads=16,
  num_key_value_heads=8,
  head_dim=128,
  tie_word_embeddings=True,
)
SMOLLM3_3B = dict(
  model_type="smollm3",
  vocab_size=128256,
  hidden_size=2048,
  intermediate_size=11008,
  num_hidden_layers=36,
  num_attention_heads=16,
)
OLMO2_1B = dict(
  model_type="olmo2",
  vocab_size=100352,
  hidden_size=2048,
  intermediate_size=8192,
  num_hidden_layers=16,
  num_attention_heads=16,
)
GEMMA2_2B = dict(
  model_type="gemma2",
  vocab_size=256000,
  hidden_size=2304,
  intermediate_size=9216,
  num_hidden_layers=26,
  num_attention_heads=8,
)
GEMMA3_1B = dict(
  model_type="gemma3_text",
  vocab_size=262144,
  hidden_size=1152,
  intermediate_size=6912,
  num_hidden_layers=26,
  num_attention_heads=4,
  num_key_value_heads=1,
)


@pytest.mark.parametrize(
  "config, count",
  [
    (LLAMA1_7B, 6_738_415_616),
    (LLAMA2_70B, 68_976_648_192),
    (LLAMA3_8B, 8_030_261_248),
    (MISTRAL_7B, 7_241_732_096),
    (QWEN2_HALF_B, 494_032_768),
    (QWEN3_HALF_B, 596_049_920),
    (SMOLLM3_3B, 3_075_098_624),
    (OLMO2_1B, 1_484_916_736),
    (GEMMA2_2B, 2_614_341_888),
    (GEMMA3_1B, 999_885_952),
  ],
)
def test_parameter_counts_are_the_published_ones(config, count):
  model = llama.abstract_model(ModelConfig.from_hf(config))
  assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == count


@pytest.mark.parametrize("family", ["llama2", "llama3"])  # a head of its own, and tied
def test_one_hot_tokens_read_as_their_ids(family):
  model = testing.random_model(family)
  tokens = random_tokens((2, 5))
  positions = jnp.broadcast_to(jnp.arange(5), tokens.shape)
  want, _ = hidden(model, tokens, positions)
  got, _ = hidden(model, jax.nn.one_hot(tokens, 96), positions)
  assert_close(got, want)


def test_shapes_of_a_model_nobody_can_hold():
  model = llama.abstract_model(
    ModelConfig.from_hf(LLAMA2_70B), param_dtype="bfloat16", compute_dtype="bfloat16"
  )
  tokens = jax.ShapeDtypeStruct((4, 2, 16, 10), jnp.int32)

  def context(prefix, slots):
    kv = jax.ShapeDtypeStruct((80, *prefix, 8, slots, 128), jnp.bfloat16)
    return Segment(kv, kv, jax.ShapeDtypeStruct((*prefix, slots), jnp.int32))

  segments = [context((), 1024), context((4,), 512), context((4, 2), 64), context((4, 2, 16), 32)]
  out, new = jax.eval_shape(
    functools.partial(llama.forward, model.graphdef), model.params, tokens, tokens, segments
  )
  assert (out.shape, out.dtype) == ((4, 2, 16, 10, 8192), jnp.bfloat16)
  assert new.keys.shape == new.values.shape == (80, 4, 2, 16, 8, 10, 128)
  logits = jax.eval_shape(functools.partial(llama.unembed, model.graphdef), model.params, out)
  assert (logits.shape, logits.dtype) == ((4, 2, 16, 10, 32000), jnp.float32)


def test_both_rope_spellings_mean_the_same():
  scaling = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
  )
  old = ModelConfig.from_hf(LLAMA3_8B | {"rope_scaling": scaling})
  new = {key: value for key, value in LLAMA3_8B.items() if key != "rope_theta"}
  new = ModelConfig.from_hf(new | {"rope_parameters": scaling | {"rope_theta": 500000.0}})
  assert old == new
  assert old.rope_theta == 500000.0
  assert old.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


def test_eos_is_the_union_of_both_files():
  generation = {"eos_token_id": [128009, 128001]}
  config = ModelConfig.from_hf(LLAMA3_8B | {"eos_token_id": 128001}, generation)
  assert config.eos_ids == (128001, 128009)
  assert ModelConfig.from_hf(LLAMA2_70B, {}).eos_ids == (2,)


def test_layers_with_a_window():
  assert ModelConfig.from_hf(testing.FAMILIES["mistral"]).sliding_layers == (True,) * 3
  assert ModelConfig.from_hf(testing.FAMILIES["qwen2"]).sliding_window is None
  pattern = ModelConfig.from_hf(testing.FAMILIES["qwen2_window"])
  assert (pattern.sliding_window, pattern.sliding_layers) == (4, (False, True, True))
  spelled = testing.FAMILIES["qwen2_window"] | {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
  }
  assert ModelConfig.from_hf(spelled).sliding_layers == (True, False, True)
  # As the releases count, where a file does not list its layers.
  assert ModelConfig.from_hf(GEMMA2_2B).sliding_layers == (True, False) * 13
  whole = [n for n, near in enumerate(ModelConfig.from_hf(GEMMA3_1B).sliding_layers) if not near]
  assert whole == [5, 11, 17, 23]
  unrotated = ModelConfig.from_hf(SMOLLM3_3B).unrotated_layers
  assert [n for n, one in enumerate(unrotated) if one] == list(range(3, 36, 4))


@pytest.mark.parametrize(
  "change, message",
  [
    ({"model_type": "gpt2"}, "model_type 'gpt2'"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope type 'dynamic'"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "llama3 RoPE scaling .* low_freq_factor"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "RoPE per layer type"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"num_key_value_heads": 5}, "num_kv_heads = 5"),
    ({"head_dim": 7}, "head_size = 7"),
    ({"hidden_size": None}, "no 'hidden_size'"),
  ],
)
def test_unsupported_configs_are_refused_in_one_line(change, message):
  with pytest.raises(ValueError, match=message) as error:
    ModelConfig.from_hf(LLAMA2_70B | change)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", testing.FAMILIES)
def test_config_survives_json(family):
  config = ModelConfig.from_hf(testing.FAMILIES[family])
  assert ModelConfig.from_json(config.to_json()) == config
  assert hash(config) == hash(ModelConfig.from_json(config.to_json()))


def test_visible_is_causal_and_skips_empty_slots():
  queries = jnp.array([[4, 5, NO_POSITION]])
  keys = jnp.array([3, NO_POSITION, 5, 0])
  want = [[[1, 0, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0]]]
  np.testing.assert_array_equal(attention.visible(queries, keys), np.array(want, bool))
  near = [[[1, 1, 0], [1, 0, 0], [0, 0, 0]]]
  np.testing.assert_array_equal(
    attention.within(jnp.array([[4, 5, 9]]), jnp.array([[3, 2, 0]]), 3), np.array(near, bool)
  )


@pytest.mark.parametrize("used", [0, 1, 64, 65, 150, 200])
def test_empty_slots_are_left_out_without_a_trace(used):
  rows, heads, slots, size = 3, 2, 200, 8  # the last block of slots overlaps the one before
  draw = np.random.default_rng(used).normal
  query = draw(size=(2, rows, heads * 2, 1, size)).astype(np.float32)
  keys, values = draw(size=(2, 2, heads, slots, size)).astype(np.float32)
  own = draw(size=(2, 2, rows, heads, 1, size)).astype(np.float32)
  mask = np.arange(slots) < np.minimum(used, [[150], [200]])
  masks = [
    np.broadcast_to(mask[:, None, None], (2, rows, 1, slots)),
    np.ones((2, rows, 1, 1), bool),
  ]

  def attend(used):
    return attention.attend(query, [(keys, values), tuple(own)], masks, [used, None])

  whole, found = attend(None), jax.jit(attend)(used)
  np.testing.assert_allclose(found, whole, atol=5e-6)
  # More blocks than a text needs, as when a neighbour is longer, change no bit of its sums.
  np.testing.assert_array_equal(jax.jit(attend)(slots), found)


def test_attend_never_repeats_keys_or_values():
  rows, tokens, heads, groups, slots, size = 16, 1, 2, 2, 64, 32
  query = jnp.zeros((1, rows, heads * groups, tokens, size))
  keys = jnp.zeros((1, heads, slots, size))
  mask = jnp.ones((1, rows, tokens, slots), bool)
  jaxpr = jax.make_jaxpr(lambda *args: attention.attend(args[0], [args[1:3]], [args[3]], [None]))(
    query, keys, keys, mask
  )
  largest = max(out.aval.size for eqn in jaxpr.jaxpr.eqns for out in eqn.outvars)
  assert largest == rows * heads * groups * tokens * slots, "the scores should be the largest array"


@pytest.mark.parametrize("family", ["llama3", "qwen2_window"])
def test_token_by_token_equals_prefill(family):
  model = testing.random_model(family)
  tokens = random_tokens((2, 12))
  want, _ = read(model, tokens)
  positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
  keys = jnp.zeros((3, 2, 2, 12, model.config.head_size))
  context = Segment(keys, keys, jnp.full((2, 12), NO_POSITION))
  got = []
  for t in range(12):
    out, kv = hidden(model, tokens[:, t : t + 1], positions[:, t : t + 1], [context])
    got.append(out)
    context = Segment(
      context.keys.at[..., t : t + 1, :].set(kv.keys),
      context.values.at[..., t : t + 1, :].set(kv.values),
      context.positions.at[:, t].set(t),
    )
  assert_close(jnp.concatenate(got, axis=1), want)


def _shuffled_with_holes(segment, seed):
  """The same segment in another slot order, with empty slots full of large numbers."""
  slots = segment.positions.shape[-1]
  order = np.random.default_rng(seed).permutation(slots + 2)
  pad = [(0, 0)] * (segment.keys.ndim - 2) + [(0, 2), (0, 0)]
  positions = jnp.pad(
    segment.positions,
    [(0, 0)] * (segment.positions.ndim - 1) + [(0, 2)],
    constant_values=NO_POSITION,
  )
  return Segment(
    jnp.pad(segment.keys, pad, constant_values=100.0)[..., order, :],
    jnp.pad(segment.values, pad, constant_values=100.0)[..., order, :],
    positions[..., order],
  )


@pytest.mark.parametrize(
  "family,batch",
  [
    ("llama2", (2, 3, 2)),
    ("mistral", (2, 3, 2)),
    ("llama2", (2, 1, 2)),
    ("llama2", (1, 3, 1)),
    ("llama2", (1, 1, 1)),
  ],
)
def test_segments_of_every_rank_equal_the_whole_text(family, batch):
  model = testing.random_model(family)
  lengths = {(): 5, batch[:1]: 4, batch[:2]: 3, batch: 3}
  pieces, segments, start = [], [], 0
  for prefix, length in lengths.items():
    # Each piece is itself read after those before it, which all have fewer batch axes.
    piece = random_tokens((*prefix, length), seed=length)
    positions = jnp.broadcast_to(start + jnp.arange(length), piece.shape)
    _, kv = hidden(model, piece, positions, segments)
    segments.append(_shuffled_with_holes(kv.segment(positions), seed=length))
    whole = piece.reshape(*prefix, *(1,) * (3 - len(prefix)), length)
    pieces.append(jnp.broadcast_to(whole, (*batch, length)))
    start += length
  nothing = jnp.zeros((3, batch[0], 2, 0, model.config.head_size))
  segments.insert(2, Segment(nothing, nothing, jnp.zeros((batch[0], 0), jnp.int32)))
  # Positions may differ along axes that keys share.
  along = jnp.broadcast_to(segments[1].positions[:, None], (*batch[:2], 6))
  segments[1] = segments[1].replace(positions=along)
  new = random_tokens((*batch, 4), seed=9)
  out, kv = hidden(model, new, jnp.broadcast_to(start + jnp.arange(4), new.shape), segments)
  want, whole = read(model, jnp.concatenate([*pieces, new], axis=-1))
  assert_close(out, want[..., start:, :])
  assert_close(kv.keys, whole.keys[..., start:, :])
  assert_close(kv.values, whole.values[..., start:, :])


def test_context_is_read_in_place():
  """The temporary memory of a decoding step is far below the context that it reads."""
  config = dataclasses.replace(testing.random_model("llama2").config, num_layers=16)
  model = llama.abstract_model(config)

  def context(prefix, slots):
    kv = jax.ShapeDtypeStruct((16, *prefix, 2, slots, 8), jnp.float32)
    return Segment(kv, kv, jax.ShapeDtypeStruct((*prefix, slots), jnp.int32))

  segments = [context((), 4096), context((4,), 2048), context((4, 8), 512)]
  tokens = jax.ShapeDtypeStruct((4, 8, 1), jnp.int32)
  compiled = FORWARD.lower(model.graphdef, model.params, tokens, tokens, segments).compile()
  read = sum(a.size * 4 for segment in segments for a in (segment.keys, segment.values))
  assert compiled.memory_analysis().temp_size_in_bytes < read / 4


@pytest.mark.parametrize(
  "family,transposed", [("llama3", False), ("mistral", False), ("mistral", True), ("qwen2", True)]
)
def test_layers_taken_apart_read_the_same(family, transposed):
  model = testing.random_model(family)
  apart = dataclasses.replace(model, params=llama.unstack(model.params, transposed=transposed))
  tokens, positions = random_tokens((2, 9)), jnp.arange(9)[None].repeat(2, 0)
  first, kv = hidden(model, tokens, positions)
  second, kv_apart = hidden(apart, tokens, positions)
  assert_close(second, first)
  for number in range(model.config.num_layers):
    jax.tree.map(assert_close, *(one.segment(positions).layer(number) for one in (kv_apart, kv)))
  more = jnp.arange(9, 12)[None].repeat(2, 0)
  third, _ = hidden(model, tokens[:, :3], more, [kv.segment(positions)])
  for one in (kv_apart, kv):  # in arrays of each layer, or in one
    assert_close(hidden(apart, tokens[:, :3], more, [one.segment(positions)])[0], third)
  assert_close(
    llama.unembed(apart.graphdef, apart.params, first),
    llama.unembed(model.graphdef, model.params, first),
  )


@pytest.mark.parametrize("family", ["llama2", "gemma3"])
def test_layers_taken_apart_are_traced_once(family):
  model = testing.random_model(family)
  apart = llama.unstack(model.params)
  tokens, positions = random_tokens((2, 3)), jnp.arange(3)[None].repeat(2, 0)
  read = lambda params: llama.forward(model.graphdef, params, tokens, positions)
  layers = [
    equation.params["jaxpr"]
    for equation in jax.make_jaxpr(read)(apart).eqns
    if equation.params.get("name") == "_layer"
  ]
  assert len(layers) == model.config.num_layers > 1
  assert len({id(layer) for layer in layers}) == 1


@pytest.mark.parametrize("family", ["llama2", "gemma3"])
def test_layers_taken_apart_are_calls_of_a_compiled_program(family):
  model = testing.random_model(family)
  apart = llama.unstack(model.params)
  tokens, positions = random_tokens((2, 3)), jnp.arange(3)[None].repeat(2, 0)
  text = FORWARD.lower(model.graphdef, apart, tokens, positions).compile().as_text()
  # But for the last, of which not everything is always read.
  assert text.count(" call(") == text.count("to_apply=%_layer") == model.config.num_layers - 1


def test_two_suffixes_under_a_mask_equal_two_reads():
  model = testing.random_model("llama2")
  text, first, second = random_tokens((2, 6)), random_tokens((2, 3), 1), random_tokens((2, 4), 2)
  _, context = read(model, text)
  tokens = jnp.concatenate([first, second], axis=-1)
  positions = jnp.broadcast_to(jnp.array([6, 7, 8, 6, 7, 8, 9]), tokens.shape)
  branch = jnp.array([0, 0, 0, 1, 1, 1, 1])
  mask = jnp.broadcast_to(branch[:, None] == branch, (2, 7, 7))
  out, _ = hidden(model, tokens, positions, [context], mask)
  for suffix, part in ((first, out[:, :3]), (second, out[:, 3:])):
    want, _ = read(model, jnp.concatenate([text, suffix], axis=-1))
    assert_close(part, want[:, 6:])
  unmasked, _ = hidden(model, tokens, positions, [context])
  assert np.max(np.abs(unmasked[:, 3:] - out[:, 3:])) > 1e-2


def test_padding_is_finite_and_changes_nothing():
  model = testing.random_model("llama2")
  tokens = random_tokens((2, 5))
  want, _ = read(model, tokens)
  padded = jnp.pad(tokens, ((0, 1), (2, 1)), constant_values=-1)
  positions = jnp.full((3, 8), NO_POSITION).at[:2, 2:7].set(jnp.arange(5))
  out, kv = hidden(model, padded, positions)
  assert_close(out[:2, 2:7], want)
  for array in (out, kv.keys, kv.values, llama.unembed(model.graphdef, model.params, out)):
    assert np.all(np.isfinite(array))


def test_bfloat16_stays_close_to_float32():
  model = testing.random_model("llama2")
  half = llama.abstract_model(model.config, param_dtype="bfloat16", compute_dtype="bfloat16")
  params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model.params)
  tokens = random_tokens((2, 20))
  positions = jnp.broadcast_to(jnp.arange(20), tokens.shape)
  out, kv = llama.forward(half.graphdef, params, tokens, positions)
  assert out.dtype == kv.keys.dtype == kv.values.dtype == jnp.bfloat16
  logits = llama.unembed(half.graphdef, params, out)
  assert logits.dtype == jnp.float32
  want = llama.unembed(model.graphdef, model.params, read(model, tokens)[0])
  assert_close(logits, want, tolerance=0.05)


def test_dtypes_without_support_are_refused():
  config = ModelConfig.from_hf(LLAMA1_7B)
  with pytest.raises(ValueError, match="param_dtype = float16"):
    llama.abstract_model(config, param_dtype="float16")
  with pytest.raises(ValueError, match="compute_dtype = int8"):
    llama.abstract_model(config, compute_dtype="int8")


def test_random_parameters_start_at_unit_scale():
  config = ModelConfig.from_hf(testing.FAMILIES["llama1"])
  model = llama.init_model(config, jax.random.key(0))
  abstract = llama.abstract_model(config)
  assert model.graphdef == abstract.graphdef
  assert jax.tree.map(jnp.shape, model.params) == jax.tree.map(jnp.shape, abstract.params)
  out, _ = read(model, random_tokens((4, 16)))
  logits = llama.unembed(model.graphdef, model.params, out)
  assert 0.5 < float(jnp.std(logits)) < 2.0
