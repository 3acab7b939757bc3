"""A checkpoint's tokenizer: read, and refused where it cannot be the model's."""

import logging
import pathlib
from typing import Any

import transformers

from rain_jax.models import gguf_tokenizer
from rain_jax.models.config import ModelConfig
from rain_jax.models.hf import CheckpointError
from rain_jax.text import control
from rain_jax.text.printable import one_line

_LOG = logging.getLogger(__name__)

# What every tokenizer of English gives back as it was.
_TEXTS = ("hello world", "The cat sat on 12 mats.\n\nIs it so? Yes: it is (A).")
_SHOWN = 3  # tokens that an error names


def load_tokenizer(folder: Any) -> Any:
  """The tokenizer of a checkpoint, folder or GGUF file; `CheckpointError` if there is none to use."""
  if pathlib.Path(folder).is_file():
    return gguf_tokenizer.load_tokenizer(pathlib.Path(folder))
  there = lambda name: (pathlib.Path(folder) / name).is_file()
  if there("tokenizer.model") and not (there("tokenizer.json") or there("tokenizer_config.json")):
    raise CheckpointError(
      f"{folder}: tokenizer.model does not say how a text begins, with which mark or space; put the"
      " model's tokenizer_config.json (or tokenizer.json) beside it."
    )
  try:
    return transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # a damaged file raises anything, down to panics of Rust
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    raise CheckpointError(
      f"{folder}: no usable tokenizer ({one_line(first, 200)}); put the model's tokenizer.json"
      " beside it."
    ) from None


def check_tokenizer(tokenizer: Any, config: ModelConfig, source: Any) -> None:
  """Stops before a model reads other tokens than it was trained on.

  Args:
    tokenizer: of the checkpoint.
    config: of its model.
    source: what the user called it.

  Raises:
    CheckpointError: in one line, why they do not belong together: more tokens than the model has
      rows, or texts that do not come back as they were.
  """
  if not getattr(tokenizer, "is_fast", False):
    raise CheckpointError(
      f"{source}: {type(tokenizer).__name__} is no fast tokenizer; put the model's tokenizer.json"
      " beside it."
    )
  beyond = {i: name for name, i in tokenizer.get_vocab().items() if i >= config.vocab_size}
  if beyond:
    shown = ", ".join(f"{beyond[i]!r} = {i}" for i in sorted(beyond)[:_SHOWN])
    raise CheckpointError(
      f"{source}: {len(beyond)} tokens of the tokenizer have no row in the model, which has"
      f" {config.vocab_size} ({shown}): take the tokenizer that belongs to the model, or remove"
      " the tokens that were added to it."
    )
  for text in _TEXTS:
    try:
      ids = control.plain_ids(tokenizer, text)
      back = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    except Exception as error:  # what a damaged tokenizer raises is its own affair
      raise CheckpointError(f"{source}: the tokenizer cannot be used ({one_line(error)})") from None
    if back.strip() != text and tokenizer.unk_token_id not in ids:
      raise CheckpointError(
        f"{source}: the tokenizer reads {text!r} and gives back {back!r:.80}: tokenizer_class ="
        f" {type(tokenizer).__name__} of tokenizer_config.json does not suit tokenizer.json; try"
        " PreTrainedTokenizerFast there, or take the model's own files."
      )
  end = tokenizer.eos_token_id
  if end is not None and end not in config.eos_ids:
    own = ", ".join(map(str, config.eos_ids)) or "none"
    _LOG.warning(
      "%s: the tokenizer ends texts by %s (%d), the model's config by %s: responses end by the"
      " config's; if they do not end, add %d to eos_token_id in generation_config.json",
      *(one_line(source), one_line(repr(tokenizer.eos_token), 60), end, own, end),
    )
