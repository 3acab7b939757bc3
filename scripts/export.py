"""Writes what a run found: as data to fine-tune with, or in the form of other projects' files.

python scripts/generate.py --config=configs/demo.py --config.record=24 --workdir=runs/demo
python scripts/export.py --workdir=runs/demo --pairs=pairs.jsonl --sft=sft.jsonl
python scripts/export.py --workdir=runs/demo --method=rain --harmbench=completions.json
"""

import cli
from absl import flags

from rain_jax.runs import exchange, export

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_PAIRS = flags.DEFINE_string("pairs", None, "File for chosen and rejected responses.")
_SFT = flags.DEFINE_string("sft", None, "File for RAIN's responses.")
_SHAPE = flags.DEFINE_enum(
  "shape", export.MESSAGES, export.SHAPES, "Lists of messages, or text in the run's format."
)
_HARMBENCH = flags.DEFINE_string(
  "harmbench", None, "File for answers as HarmBench's classifier script reads them."
)
_JAILBREAKBENCH = flags.DEFINE_string(
  "jailbreakbench", None, "File for answers as an artifact of JailbreakBench; of an attack, too."
)
_METHOD = flags.DEFINE_string("method", "rain", "Whose answers go into these two.")


def main() -> None:
  """Writes the files that the flags name."""
  if not (_PAIRS.value or _SFT.value or _HARMBENCH.value or _JAILBREAKBENCH.value):
    raise ValueError(
      "nothing to write: give --pairs=FILE, --sft=FILE, --harmbench=FILE or --jailbreakbench=FILE."
    )
  if _PAIRS.value:
    pairs, prompts = export.write_pairs(_WORKDIR.value, _PAIRS.value, _SHAPE.value)
    print(
      f"{pairs} pairs in {_PAIRS.value}, from {prompts} prompts;"
      f" {prompts - pairs} have no two finished responses of different value"
    )
  if _SFT.value:
    count = export.write_sft(_WORKDIR.value, _SFT.value, _SHAPE.value)
    print(f"{count} responses in {_SFT.value}")
  if _HARMBENCH.value:
    count, rest = exchange.write_completions(_WORKDIR.value, _HARMBENCH.value, _METHOD.value)
    print(f"{count} answers in {_HARMBENCH.value}; {rest} prompts have none")
  if _JAILBREAKBENCH.value:
    count, rest = exchange.write_artifact(_WORKDIR.value, _JAILBREAKBENCH.value, _METHOD.value)
    print(f"{count} prompts in {_JAILBREAKBENCH.value}; {rest} without answer or verdict left out")


if __name__ == "__main__":
  cli.run(main)
