"""lm-evaluation-harness, which knows the model `rain_jax`: all flags are the harness's own.

  python scripts/harness.py run --model rain_jax \
      --model_args pretrained=demo,method=rain,preference=truthful \
      --tasks TASKS --include_path FOLDER
"""

import sys


def main() -> None:
  """Runs the harness's command line."""
  try:
    from lm_eval.__main__ import cli_evaluate

    from rain_jax.serving import harness
  except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is missing: pip install rain_jax[harness]")
  del harness  # whose import registers it
  try:
    cli_evaluate()
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
