"""Chat templates that tell the model what day it is: the same day for a whole run."""

import datetime

# Directives of strftime that depend on the time; longer ones first.
_DIRECTIVES = [f"%-{c}" for c in "dmyHIMSjUW"] + [
  f"%{c}" for c in "aAwdbBhmyYHIpMSfjUWVGugecxXDFTRr"
]


def at(template: str, moment: datetime.datetime) -> str:
  """A chat template to which it is always that moment.

  Templates ask by a function `strftime_now(format)` that transformers gives them (LLaMA 3.1, for
  its `date_string`, and others). A macro of that name comes before it here; a function cannot be
  handed over, as transformers turns what templates are given into plain data.
  """
  if "strftime_now" not in template:
    return template
  formatted = "format"
  for directive in _DIRECTIVES:
    formatted += f"|replace('{directive}', '{moment.strftime(directive)}')"
  return f"{{%- macro strftime_now(format) -%}}{{{{ {formatted} }}}}{{%- endmacro -%}}{template}"
