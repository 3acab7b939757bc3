"""Judges: what is said of a response, as named yes/no answers.

A rule answers at once: a function from a record and a response to a dict such as
`{"harmless": True}`, with only the measures that apply to the prompt. Judge models and
endpoints judge many responses together, see `Judge`. `panel` makes the judges of a run
from their names.
"""

from rain_jax.judges.registry import JUDGES, Rule, RuleJudge, find_judge, panel, rule_of, takes_path
from rain_jax.judges.rules import demo_rules
from rain_jax.judges.verdicts import CannotJudge, Judge, Verdict, agreement, agreements, rate

__all__ = (
  "JUDGES",
  "CannotJudge",
  "Judge",
  "Rule",
  "RuleJudge",
  "Verdict",
  "agreement",
  "agreements",
  "demo_rules",
  "find_judge",
  "panel",
  "rate",
  "rule_of",
  "takes_path",
)
