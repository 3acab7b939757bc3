"""The tokenizer and chat template that a GGUF file describes in its metadata.

Keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. `tokenizer.ggml.pre`
names the rule that splits text before merges, one of llama.cpp's. transformers can read tokenizers
from GGUF files, too; it needs PyTorch for that and leaves some rules out.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from rain_jax.models import gguf_file
from rain_jax.models.gguf_file import GGUFFile
from rain_jax.models.hf import CheckpointError

_KEY = "tokenizer.ggml."
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # kinds of tokens

# Regular expressions of what is merged by itself, as the families' tokenizer.json have them.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _OTHERS
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _OTHERS
_TEKKEN = (
  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
  r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
  r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
  "llama-bpe": _LLAMA3,
  "llama3": _LLAMA3,
  "llama-v3": _LLAMA3,
  "smaug-bpe": _LLAMA3,
  "falcon3": _LLAMA3,
  "qwen2": _QWEN2,
  "deepseek-r1-qwen": _QWEN2,
  "megrez": _QWEN2,
  "tekken": _TEKKEN,
}
_GPT2 = ("gpt-2", "default")  # the rule of GPT-2, which `ByteLevel` has built in
_DIGITS = ("smollm", "starcoder", "refact", "codeshell", "exaone")  # digits apart, then GPT-2's
_WHOLE = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a known word is one token, merged or not


def load_tokenizer(path: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
  """The tokenizer in a GGUF file, its chat template included; nothing else is read.

  Raises:
    CheckpointError: in one line, what is missing or wrong.
  """
  file = gguf_file.read_header(path)
  tokens = file.texts(_KEY + "tokens")
  if not tokens:
    raise CheckpointError(f"{path}: holds no tokenizer, {_KEY}tokens")
  embedding = file.tensors.get("token_embd.weight")
  if embedding is not None and len(tokens) > embedding.shape[0]:
    raise CheckpointError(
      f"{path}: {_KEY}tokens has {len(tokens)} tokens, the model {embedding.shape[0]}"
    )
  kinds = _kinds(file, len(tokens))
  ids = {token: number for number, token in enumerate(tokens)}
  build = {"gpt2": _byte_level, "llama": _sentencepiece}
  if (model := file.text(_KEY + "model")) not in build:
    raise CheckpointError(
      f"{path}: {_KEY}model = {model!r:.80} is not supported, expected {' or '.join(build)}"
    )
  names = {}
  for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
    number = file.token_id(f"{_KEY}{key}_token_id", len(tokens))
    names[f"{name}_token"] = None if number is None else tokens[number]
  backend = build[model](file, ids, kinds, names["unk_token"])
  for kind in (_CONTROL, _USER_DEFINED):
    backend.add_tokens(
      [
        tokenizers.AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, found in zip(tokens, kinds)
        if found == kind
      ]
    )
  backend.post_processor = _ends(file, ids, names, model)
  control = [token for token, kind in zip(tokens, kinds) if kind == _CONTROL]
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    **{name: token for name, token in names.items() if token is not None},
    extra_special_tokens=[token for token in control if token not in names.values()],
    chat_template=file.text("tokenizer.chat_template"),
    clean_up_tokenization_spaces=False,
  )


def _kinds(file: GGUFFile, count: int) -> list[int]:
  """The kind of each token; without a list of them the marked ones are control tokens."""
  found = file.numbers(_KEY + "token_type")
  if found is None:
    marked = {file.token_id(f"{_KEY}{name}_token_id", count) for name in ("bos", "eos", "padding")}
    return [_CONTROL if number in marked else _NORMAL for number in range(count)]
  if len(found) != count:
    raise CheckpointError(
      f"{file.path}: {_KEY}token_type has {len(found)} entries for {count} tokens"
    )
  return found.tolist()


def _byte_level(
  file: GGUFFile, ids: Mapping[str, int], kinds: list[int], unknown: str | None
) -> tokenizers.Tokenizer:
  """BPE on bytes: GPT-2, LLaMA 3, Qwen, SmolLM."""
  del kinds
  qwen = (file.text("general.architecture") or "").startswith("qwen")
  rule = file.text(_KEY + "pre", "qwen2" if qwen else "default")
  if rule not in (*_SPLITS, *_GPT2, *_DIGITS):
    known = ", ".join(sorted({*_SPLITS, *_GPT2, *_DIGITS}))
    raise CheckpointError(
      f"{file.path}: {_KEY}pre = {rule!r:.80} is not supported, expected one of {known}"
    )
  merges = []
  for merge in file.texts(_KEY + "merges") or ():
    left, _, right = merge.partition(" ")
    if not (left in ids and right in ids and left + right in ids):
      raise CheckpointError(f"{file.path}: {_KEY}merges has {merge!r:.80}, expected known tokens")
    merges.append((left, right))
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=dict(ids), merges=merges, ignore_merges=rule in _WHOLE)
  )
  split: pre_tokenizers.PreTokenizer | None = None
  if rule in _SPLITS:
    split = pre_tokenizers.Split(tokenizers.Regex(_SPLITS[rule]), behavior="isolated")
  elif rule in _DIGITS:
    split = pre_tokenizers.Digits(individual_digits=True)
  level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule not in _SPLITS)
  backend.pre_tokenizer = level if split is None else pre_tokenizers.Sequence([split, level])
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentencepiece(
  file: GGUFFile, ids: Mapping[str, int], kinds: list[int], unknown: str | None
) -> tokenizers.Tokenizer:
  """BPE on characters by the scores of the pieces, with bytes for the rest: LLaMA 1 and 2."""
  scores = file.numbers(_KEY + "scores")
  if scores is None or len(scores) != len(kinds):
    found = "none" if scores is None else len(scores)
    raise CheckpointError(f"{file.path}: {_KEY}scores has {found} for {len(kinds)} tokens")
  merges = []
  for piece, number in ids.items():
    if kinds[number] == _NORMAL:
      cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
      merges += [(-scores[number], pair) for pair in cuts if pair[0] in ids and pair[1] in ids]
  merges.sort(key=lambda merge: merge[0])
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab=dict(ids),
      merges=[pair for _, pair in merges],
      unk_token=unknown,
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  prefix = file.flag(_KEY + "add_space_prefix", True)
  spaces = normalizers.Replace(" ", "▁")
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), spaces] if prefix else [spaces]
  )
  steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  backend.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", left=1)] if prefix else []))
  return backend


def _ends(
  file: GGUFFile, ids: Mapping[str, int], names: Mapping[str, str | None], model: str
) -> processors.TemplateProcessing:
  """What text begins and ends with by itself."""
  begins = model == "llama" or file.text(_KEY + "pre") in _WHOLE
  marks = {}
  for name, default in (("bos", begins), ("eos", False)):
    token = names[f"{name}_token"]
    wanted = file.flag(f"{_KEY}add_{name}_token", default)
    marks[name] = [token] if wanted and token is not None else []
  around = lambda text: [*marks["bos"], text, *marks["eos"]]
  used = {*marks["bos"], *marks["eos"]}
  return processors.TemplateProcessing(
    single=around("$A"),
    pair=around("$A") + [f"{part}:1" for part in around("$B")],
    special_tokens=[(token, ids[token]) for token in sorted(used)],
  )
