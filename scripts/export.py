"""Writes what a run found as data to fine-tune with.

python scripts/generate.py --config=configs/demo.py --config.record=24 --workdir=runs/demo
python scripts/export.py --workdir=runs/demo --pairs=pairs.jsonl --sft=sft.jsonl
"""

import cli
from absl import flags

from rain_jax.runs import export

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_PAIRS = flags.DEFINE_string("pairs", None, "File for chosen and rejected responses.")
_SFT = flags.DEFINE_string("sft", None, "File for RAIN's responses.")
_SHAPE = flags.DEFINE_enum(
  "shape", export.MESSAGES, export.SHAPES, "Lists of messages, or text in the run's format."
)


def main() -> None:
  """Writes the files that the flags name."""
  if not _PAIRS.value and not _SFT.value:
    raise ValueError("nothing to write: give --pairs=FILE or --sft=FILE.")
  if _PAIRS.value:
    pairs, prompts = export.write_pairs(_WORKDIR.value, _PAIRS.value, _SHAPE.value)
    print(
      f"{pairs} pairs in {_PAIRS.value}, from {prompts} prompts;"
      f" {prompts - pairs} have no two finished responses of different value"
    )
  if _SFT.value:
    count = export.write_sft(_WORKDIR.value, _SFT.value, _SHAPE.value)
    print(f"{count} responses in {_SFT.value}")


if __name__ == "__main__":
  cli.run(main)
