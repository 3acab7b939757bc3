"""Converts a Hugging Face checkpoint into an Orbax folder that loads straight into any sharding.

    python scripts/convert_checkpoint.py --source=meta-llama/Llama-2-7b-hf --target=/tmp/llama2

The target also gets the tokenizer's files and is all that the other scripts need.
"""

import sys

from absl import app
from absl import flags
from absl import logging

from rain_jax.models import checkpoint
from rain_jax.models import hf

_SOURCE = flags.DEFINE_string(
    "source", None, "Checkpoint folder, or owner/name on the hub.", required=True)
_TARGET = flags.DEFINE_string("target", None, "Folder to write.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16", "int8"], "Weights' dtype.")
_REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of a hub repository.")


def main(_):
  try:
    source = hf.resolve(_SOURCE.value, _REVISION.value)
    model = hf.load(source, param_dtype=_DTYPE.value)
    checkpoint.save_model(_TARGET.value, model, source)
  except (hf.CheckpointError, OSError) as error:
    sys.exit(f"convert_checkpoint: {error}")
  logging.info("wrote %s, fingerprint %s", _TARGET.value, checkpoint.fingerprint(_TARGET.value))


if __name__ == "__main__":
  app.run(main)
