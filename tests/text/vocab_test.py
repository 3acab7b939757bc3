"""Tables over the vocabulary against plain string operations on decoded text."""

import functools
import itertools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from rain_jax.text import automata, encoding, scanner, vocab
from rain_jax.types import DataError

ROWS, STEPS = 4_000, 16
STOPS = ("\n\nHuman:", "\nQ:", "USER", "a USERs", "aaab", "日本", "é.", "<|end", "本a")
FALSE_STARTS = (
  "\n\n\nHuman:",
  "aaaaaaab",
  "a USEUSER",
  "\n\nHum\nQ:",
  "<|<|end",
)  # of one run into another
TEXT = (
  "Human: How are you, today? Assistant: I am well; thank you. The café: aaab aab."
  " USER asks about 日本, then says <|end|> and goes. Q: Is it 3.5? A: No!\n\nYes.\n"
)


def data_folder() -> pathlib.Path:
  default = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"
  return pathlib.Path(os.environ.get("RAIN_JAX_TEST_DATA", default))


def llama() -> PreTrainedTokenizerFast:
  path = data_folder() / "llama_tokenizer.model"
  if not path.exists():
    pytest.skip(f"LLaMA tokenizer not found at {path}; set RAIN_JAX_TEST_DATA.")
  return LlamaTokenizer.from_pretrained(str(path), add_bos_token=True)


def byte_level() -> PreTrainedTokenizerFast:
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator(
    [TEXT] * 4,
    trainers.BpeTrainer(
      vocab_size=380,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=["<s>", "</s>"],
      show_progress=False,
    ),
  )
  backend.add_tokens([AddedToken(" été.", special=False), AddedToken("Ġword", special=False)])
  return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def byte_fallback() -> PreTrainedTokenizerFast:
  """SentencePiece-style: pieces of TEXT's ASCII words, everything else as bytes."""
  trained = Tokenizer(models.BPE(unk_token="<unk>"))
  trained.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
  ascii_text = TEXT.encode("ascii", "ignore").decode().replace("\n", "")
  trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>"], show_progress=False)
  trained.train_from_iterator([ascii_text] * 4, trainer)
  names = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
  names += [name for name in sorted(trained.get_vocab()) if name != "<unk>"]
  ids = {name: index for index, name in enumerate(names)}
  merges = [
    (name[:cut], name[cut:])
    for name in sorted(names[259:], key=len)
    for cut in range(1, len(name))
    if name[:cut] in ids and name[cut:] in ids
  ]
  backend = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True))
  backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
  backend.decoder = decoders.Sequence(
    [decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()]
  )
  backend.add_tokens([AddedToken("<|end|>", special=False)])
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
  )


KINDS = {"llama": llama, "byte_level": byte_level, "byte_fallback": byte_fallback}


@pytest.fixture(scope="module", params=sorted(KINDS))
def tokenizer(request):
  return KINDS[request.param]()


def continuation(tokenizer, text):
  return encoding.encode_continuation(tokenizer, text)


def split_anywhere(tokenizer, text, rng):
  """Some tokenisation of `text`: cut at random places, some parts spelled in bytes."""
  cuts = sorted(rng.integers(0, len(text) + 1, 2))
  parts = [text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]]
  names, ids = tokenizer.get_vocab(), []
  for part in filter(None, parts):
    spelled = [names.get(f"<0x{byte:02X}>") for byte in part.encode()]
    if None in spelled or rng.random() < 0.5:
      spelled = continuation(tokenizer, part)
    ids += spelled
  return ids


def draw_rows(tokenizer, rng):
  """int32[ROWS, STEPS] random tokens, rich in stop strings, bytes and punctuation."""
  size = len(tokenizer)
  names = tokenizer.get_vocab()
  raw = [names[f"<0x{byte:02X}>"] for byte in range(256) if f"<0x{byte:02X}>" in names]
  marks = [continuation(tokenizer, mark)[-1] for mark in [*".,?:;!a ", "\n", " The", "A"]]
  kanji = ["日", "é", "𒀀", "本.", "日本"] * 4
  kanji = [split_anywhere(tokenizer, text, rng) for text in kanji]
  pool = [split_anywhere(tokenizer, stop, rng) for stop in STOPS for _ in range(40)]
  special = [index for index in tokenizer.all_special_ids if index is not None]
  rows = []
  for _ in range(ROWS):
    row = []
    while len(row) < STEPS:
      choice = rng.random()
      if choice < 0.3:
        row.append(int(rng.integers(size)))
      elif choice < 0.55:
        row.append(marks[rng.integers(len(marks))])
      elif choice < 0.65 and raw:
        row.append(raw[rng.integers(len(raw))])
      elif choice < 0.72:
        row.append(special[rng.integers(len(special))])
      elif choice < 0.85:
        row += kanji[rng.integers(len(kanji))]
      else:
        stop = pool[rng.integers(len(pool))]
        row += stop[rng.integers(2) :]
    rows.append(row[:STEPS])
  return np.array(rows, np.int32)


@functools.partial(jax.jit, static_argnames="prompt_text")
def read(tables, tokens, prompt_text=""):
  """States after every token, leaves [rows, steps, ...]."""
  ends = prompt_text[-1:] in tuple(vocab.TEXT_ENDS)
  start = scanner.empty(()).replace(ends=jnp.array(ends))
  start = jax.tree.map(lambda x: jnp.broadcast_to(x, tokens.shape[:1] + x.shape), start)

  def step(state, column):
    state = scanner.advance(tables, state, column)
    return state, state

  _, states = jax.lax.scan(step, start, tokens.T)
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), states)


def prefix_texts(tokenizer, prompt, rows):
  """Response text after every token, [rows][steps], by the tokenizer alone."""
  backend = tokenizer.backend_tokenizer
  head = backend.decode(prompt, skip_special_tokens=True)
  prefixes = [prompt + row[: end + 1] for row in rows.tolist() for end in range(rows.shape[1])]
  texts = backend.decode_batch(prefixes, skip_special_tokens=True)
  assert all(text.startswith(head) for text in texts)
  texts = [text[len(head) :] for text in texts]
  return [texts[i : i + rows.shape[1]] for i in range(0, len(texts), rows.shape[1])]


def polynomial(text, base):
  value = 0
  for byte in text.encode():
    value = (value * base + byte + 1) % (2**31 - 1)
  return value


def last_full_stop(texts):
  """Tokens up to the last full stop in texts[-1], or None if a byte run took one back."""
  for before, after in zip(texts, texts[1:]):
    end = before.rfind(".") + 1
    if before[:end] != after[:end]:
      return None
  end = texts[-1].rfind(".") + 1
  return next(i + 1 for i, text in enumerate(texts) if text[:end] == texts[-1][:end]) if end else 0


def test_every_prefix_agrees_with_string_operations(tokenizer):
  rng = np.random.default_rng(0)
  rows = draw_rows(tokenizer, rng)
  prompt = continuation(tokenizer, "\na")
  states = jax.device_get(read(vocab.build_tables(tokenizer, STOPS), rows, "\na"))
  texts = prefix_texts(tokenizer, prompt, rows)

  counts = dict.fromkeys(("ends", "stopped", "broken", "full_stop", "undone"), 0)
  seen = {}
  for row in range(ROWS):
    stopped = False
    for step in range(STEPS):
      text = texts[row][step]
      stopped = stopped or any(stop in text for stop in STOPS)
      ends = text != "" and text[-1] in vocab.TEXT_ENDS
      where = (rows[row, : step + 1].tolist(), text)
      assert states.stopped[row, step] == stopped, where
      assert states.ends[row, step] == ends, where
      counts["ends"] += ends
      if "\ufffd" in text:
        counts["broken"] += 1
      else:
        pair = tuple(states.hash[row, step].tolist())
        assert seen.setdefault(text, pair) == pair, where
    counts["stopped"] += stopped
    counts["undone"] += stopped and not any(stop in texts[row][-1] for stop in STOPS)

    expected = last_full_stop(texts[row])
    if expected is not None:
      assert states.tokens_at_full_stop[row, -1] == expected, where
      counts["full_stop"] += expected > 0
      if expected:
        hash_there = states.hash[row, expected - 1]
        np.testing.assert_array_equal(states.hash_at_full_stop[row, -1], hash_there)

  assert len(set(seen.values())) == len(seen)
  for text, pair in list(seen.items())[::50]:
    assert pair == tuple(polynomial(text, base) for base in vocab.BASES)
  np.testing.assert_array_equal(states.length[:, -1], STEPS)
  assert min(counts["ends"], counts["stopped"], counts["broken"], counts["full_stop"]) > 1000
  if "<0x0A>" in tokenizer.get_vocab():
    assert counts["undone"] > 5  # stop strings that broken runs of bytes take back


def test_tokens_before_a_stop_string_are_those_of_the_text_before_it(tokenizer):
  rng = np.random.default_rng(2)
  rows, tables = draw_rows(tokenizer, rng), vocab.build_tables(tokenizer, STOPS)
  again = [split_anywhere(tokenizer, text, rng) for text in FALSE_STARTS for _ in range(200)]
  again = [(ids + rows[i].tolist())[:STEPS] for i, ids in enumerate(again)]
  rows = np.concatenate([rows, np.array(again, np.int32)])
  states = jax.device_get(read(tables, rows))
  texts = prefix_texts(tokenizer, continuation(tokenizer, "a"), rows)
  ends = np.cumsum(np.asarray(tables.size)[rows], axis=1)
  found = {True: 0, False: 0}
  for row, stopped in enumerate(states.stopped):
    text = texts[row][int(stopped.argmax())]
    before = text[: min((text.find(stop) for stop in STOPS if stop in text), default=0)]
    if not stopped.any() or "\ufffd" in before:
      continue
    expected, got = (
      int((ends[row] <= len(before.encode())).sum()),
      states.tokens_before_stop[row, -1],
    )
    special = (np.asarray(tables.size)[rows[row, :expected]] == 0).any()
    assert got == expected or got < expected and special, (rows[row].tolist(), text)
    found[got == expected] += 1
  assert found[True] > 1000 and found[False] < 0.01 * found[True]
  for text in FALSE_STARTS:
    ids = continuation(tokenizer, text)
    state = jax.tree.map(lambda x: x[0, -1], read(tables, np.array([ids], np.int32)))
    assert state.stopped
    kept = encoding.decode_response(
      tokenizer, continuation(tokenizer, "a"), ids[: state.tokens_before_stop]
    )
    whole = min(text.find(stop) for stop in STOPS if stop in text)
    assert text[:whole].startswith(kept), (text, kept)


def test_equal_text_has_equal_hash_whatever_the_tokens(tokenizer):
  rng = np.random.default_rng(1)
  tables = vocab.build_tables(tokenizer)
  texts = [TEXT[i : i + 24] for i in range(0, len(TEXT) - 24, 4)]
  rows, of = [], []
  for index, text in enumerate(texts):
    for _ in range(4):
      rows.append(split_anywhere(tokenizer, text, rng))
      of.append(index)
  width = max(map(len, rows))
  padded = np.full((len(rows), width), -1, np.int32)
  for row, ids in zip(padded, rows):
    row[: len(ids)] = ids
  states = jax.device_get(read(tables, padded))
  assert len({tuple(row) for row in rows}) > 2 * len(texts)
  hashes = {}
  for index, pair, length, ids in zip(of, states.hash[:, -1], states.length[:, -1], rows):
    assert length == len(ids)  # padding is not read
    assert hashes.setdefault(index, tuple(pair)) == tuple(pair)
  assert len(set(hashes.values())) == len(texts)
  assert not states.stopped.any()


def test_full_stop_in_a_byte_run_counts_when_the_token_is_read():
  tokenizer = byte_fallback()
  names = tokenizer.get_vocab()
  dot, lead, letter = names["<0x2E>"], names["<0xE6>"], continuation(tokenizer, "a")[0]
  rows = np.array([[letter, dot, letter], [letter, dot, lead], [lead, dot, letter]], np.int32)
  texts = prefix_texts(tokenizer, continuation(tokenizer, "a"), rows)
  assert [text[-1] for text in texts] == ["a.a", "a\ufffd\ufffd", "\ufffd\ufffda"]
  states = read(vocab.build_tables(tokenizer), rows)
  assert states.tokens_at_full_stop.tolist() == [[0, 2, 2], [0, 2, 2], [0, 0, 0]]
  assert states.ends.tolist() == [[False, True, False], [False, True, False], [False] * 3]


def test_stop_string_lies_within_the_response_and_stays_complete():
  tokenizer = byte_level()
  tables = vocab.build_tables(tokenizer, ["Human:"])
  rows = [continuation(tokenizer, text) for text in ("man: a", "Human: a")]
  width = max(map(len, rows))
  rows = np.array([row + [-1] * (width - len(row)) for row in rows], np.int32)
  assert read(tables, rows, "Hu").stopped[:, -1].tolist() == [False, True]


def test_utf8_automaton_accepts_exactly_valid_runs():
  def accepts(run):
    state = 0
    for byte in run:
      state = automata.UTF8[state, byte]
    return state == 0

  def valid(run):
    try:
      return run.decode() is not None
    except UnicodeDecodeError:
      return False

  edges = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)
  runs = [bytes(run) for run in itertools.product(range(256), edges)]
  runs += [bytes(run) for run in itertools.product(range(0xC0, 256), edges, edges[1:9])]
  runs += [run + bytes([last]) for run in runs if len(run) == 3 for last in edges[1:9]]
  assert sum(map(valid, runs)) > 500
  assert [run for run in runs if accepts(run) != valid(run)] == []


def test_suppressed_tokens_are_those_whose_text_contains_one_of_the_texts(tokenizer):
  assert vocab.build_tables(tokenizer).suppressed is None
  size = len(tokenizer) + 3
  tables = vocab.build_tables(tokenizer, vocab_size=size, suppress=("\n", "n"))
  start = continuation(tokenizer, "a")
  texts = [encoding.decode_response(tokenizer, start, [token]) for token in range(len(tokenizer))]
  expected = ["\n" in text or "n" in text for text in texts] + [False] * 3
  assert any(expected) and tables.suppressed.tolist() == expected
  with pytest.raises(DataError, match="no single token of the vocabulary contains 'zqzqzq'"):
    vocab.build_tables(tokenizer, suppress=("\n", "zqzqzq"))


def test_ids_without_a_piece_add_no_text():
  tokenizer = byte_fallback()
  size = len(tokenizer)
  tables = vocab.build_tables(tokenizer, ["aa"], vocab_size=size + 7)
  assert tables.transitions.shape == (3, size + 7)
  letter = continuation(tokenizer, "a")[0]
  row = np.array([[letter, size + 6, letter]], np.int32)
  states = read(tables, row)
  assert states.stopped.tolist() == [[False, False, True]]
  assert states.length.tolist() == [[1, 2, 3]]
  with_gap, without = states.hash[0, -1], read(tables, row[:, ::2]).hash[0, -1]
  assert with_gap.tolist() == without.tolist()
  assert encoding.decode_response(tokenizer, [letter], row[0].tolist()) == "aa"


def test_encode_continuation_adds_nothing_of_its_own(tokenizer):
  bos = tokenizer.bos_token_id
  texts = (" Yes", "Yes", "\n\n(A) is. (B)\nAnswer: (", "Human: hi\n\nAssistant:", "  two", "\t")
  for text in (*texts, "日本 é", "a </s> b"):
    ids = encoding.encode_continuation(tokenizer, text)
    assert bos not in ids and tokenizer.eos_token_id not in ids
    for before in ("Well.", "(", "\n"):
      prompt = tokenizer(before, add_special_tokens=False).input_ids
      assert encoding.decode_response(tokenizer, prompt, ids) == text
    assert encoding.decode_response(tokenizer, [bos], ids) == text
  assert encoding.encode_continuation(tokenizer, "") == []


def test_encode_continuation_refuses_text_that_always_joins():
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = [(mark, "x") for mark in ("Ċ", "a", ":", ".", "0", ")")]
  names = alphabet + ["".join(pair) for pair in merges]
  backend = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=merges))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
  assert encoding.encode_continuation(tokenizer, "y") == [names.index("y")]
  with pytest.raises(ValueError, match="Text 'x' has no tokens of its own"):
    encoding.encode_continuation(tokenizer, "x")


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(stop_strings=[""]), "Stop string ''"),
    (dict(stop_strings=["a\ufffd"]), "expected text without U"),
    (dict(text_ends=".。"), "ASCII"),
  ],
)
def test_build_tables_refuses_what_it_cannot_decide(arguments, message):
  with pytest.raises(ValueError, match=message):
    vocab.build_tables(byte_level(), **arguments)


@pytest.mark.parametrize(
  "decoder, message",
  [
    (decoders.WordPiece(), "WordPiece.* is not supported"),
    (decoders.Sequence([decoders.Fuse(), decoders.Replace("_", " ")]), "Replace.* not sup"),
    (decoders.Sequence([decoders.Strip(), decoders.Fuse()]), "Strip.* not sup"),
    (None, "no decoder"),
  ],
)
def test_build_tables_refuses_unknown_decoders(decoder, message):
  backend = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
  if decoder is not None:
    backend.decoder = decoder
  with pytest.raises(ValueError, match=message):
    vocab.build_tables(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_build_tables_refuses_tokenizers_without_a_fast_backend():
  with pytest.raises(ValueError, match="object has no fast backend"):
    vocab.build_tables(object())
