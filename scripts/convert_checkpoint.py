"""Converts a Hugging Face checkpoint or a GGUF file into a folder that loads into any sharding.

    python scripts/convert_checkpoint.py --source=meta-llama/Llama-2-7b-hf --target=/tmp/llama2

The target also gets the tokenizer's files and is all that the other scripts need.
"""

import cli
from absl import flags

from rain_jax.models import checkpoint, hf

_SOURCE = flags.DEFINE_string(
  "source", None, "Checkpoint folder, GGUF file, or owner/name on the hub.", required=True
)
_TARGET = flags.DEFINE_string("target", None, "Folder to write.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16", "int8"], "Weights' dtype.")
_ADAPTER = flags.DEFINE_string(
  "adapter", None, "LoRA adapter of PEFT to merge, folder or hub name."
)
_REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of a hub repository.")


def main() -> None:
  """Reads, converts and writes the checkpoint that the flags name."""
  source = hf.resolve(_SOURCE.value, _REVISION.value)
  model = checkpoint.load_model(source, param_dtype=_DTYPE.value, adapter=_ADAPTER.value)
  checkpoint.save_model(_TARGET.value, model, source)
  print(f"wrote {_TARGET.value}, fingerprint {checkpoint.fingerprint(_TARGET.value)}")


if __name__ == "__main__":
  cli.run(main)
