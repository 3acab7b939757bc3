"""Tiny random checkpoints with tokenizers of their own."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
import transformers

from rain_jax.models import hf
from rain_jax.models import testing as models
from rain_jax.models.sharding import flatten, unflatten
from rain_jax.policy import labels

SPECIAL = ("<s>", "</s>")
CHAT = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")


def byte_bpe(size: int, texts: list[str], special: tuple[str, ...] = SPECIAL, ascii: bool = False):
  """A byte-level BPE of `size` tokens with `<s>` (added by encoding) and `</s>`.

  One of `ascii` has no other bytes, so that whatever a random model writes is text.
  """
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=list(special),
    show_progress=False,
    initial_alphabet=(
      [
        "\u0120",
        "\u010a",
        *map(chr, range(33, 127)),
      ]  # space and line feed, as byte-level BPEs spell
      if ascii
      else sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ),
  )
  bpe.train_from_iterator(texts, trainer)
  bpe.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 0)]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe, bos_token="<s>", eos_token="</s>"
  )


def llama(tokenizer, positions: int):
  """A tiny random LLaMA of that vocabulary, with its configuration."""
  config = dict(models.FAMILIES["llama2"]) | {
    "vocab_size": len(tokenizer),
    "max_position_embeddings": positions,
    "eos_token_id": 1,
  }
  return models.random_model("llama2", config=config), config


def write_judge(folder: pathlib.Path) -> None:
  """A checkpoint that answers with the judges' labels and little else."""
  texts = [" yes no safe unsafe A B", "safe", "unsafe", "yes", "no", "A", "B"] * 9
  tokenizer = byte_bpe(330, texts, SPECIAL + CHAT)
  model, config = llama(tokenizer, 3072)
  weights = flatten(model.params)
  direction = 8 * np.random.default_rng(0).normal(size=weights["head/weight"].shape[1])
  head = np.zeros(weights["head/weight"].shape, np.float32)
  for sign, spellings in ((1, (" yes", "safe", "A")), (-1, (" no", "unsafe", "B"))):
    for spelling in spellings:
      head[labels.label_ids(tokenizer, (spelling,))[0]] = sign * direction
  hf.save(folder, config, unflatten(weights | {"head/weight": jnp.asarray(head)}))
  tokenizer.save_pretrained(folder)


def write_thinker(folder: pathlib.Path, tokenizer) -> None:
  """A random model that now and then ends a thought, with a tokenizer that has `</think>`."""
  model, config = llama(tokenizer, 2048)
  weights = flatten(model.params)
  mark = tokenizer.convert_tokens_to_ids("</think>")
  head = weights["head/weight"].at[mark].multiply(8.0)
  hf.save(folder, config, unflatten(weights | {"head/weight": jnp.asarray(head)}))
  tokenizer.save_pretrained(folder)


def write_pickled(folder: pathlib.Path, source: pathlib.Path) -> None:
  """A checkpoint with its weights as a pickle in place of safetensors; needs torch."""
  import torch

  shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
  tensors = safetensors.numpy.load_file(source / "model.safetensors")
  pickled = {name: torch.tensor(tensor.astype(np.float32)) for name, tensor in tensors.items()}
  torch.save(pickled, folder / "pytorch_model.bin")


def write_adapter(folder: pathlib.Path, source: pathlib.Path) -> None:
  """A random LoRA adapter of the queries of a checkpoint."""
  tensors, draw = {}, np.random.default_rng(0).normal
  for name, tensor in safetensors.numpy.load_file(source / "model.safetensors").items():
    if name.endswith("q_proj.weight"):
      place = "base_model.model." + name.removesuffix(".weight")
      for side, shape in (("A", (4, tensor.shape[1])), ("B", (tensor.shape[0], 4))):
        tensors[f"{place}.lora_{side}.weight"] = draw(size=shape).astype(np.float32)
  config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
  folder.mkdir(parents=True)
  (folder / "adapter_config.json").write_text(json.dumps(config))
  safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")


def write_reward(folder: pathlib.Path, source: pathlib.Path) -> None:
  """A checkpoint as a reward model with a random score, and with a chat template."""
  shutil.copytree(source, folder)
  config = json.loads((folder / "config.json").read_text())
  config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "score"}}
  (folder / "config.json").write_text(json.dumps(config))
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  tensors.pop("lm_head.weight", None)
  width = tensors["model.norm.weight"].shape[0]
  score = np.random.default_rng(0).normal(size=(1, width)).astype(np.float32)
  safetensors.numpy.save_file({**tensors, "score.weight": score}, folder / "model.safetensors")
  (folder / "chat_template.jinja").write_text(
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
  )


def assert_same_params(got, want) -> None:
  """Two models' params, bit for bit."""
  got, want = flatten(got), flatten(want)
  assert got.keys() == want.keys()
  for path in want:
    assert got[path].dtype == want[path].dtype, path
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)
