"""A reader of events, who holds the response that they tell of."""

from rain_jax.methods import events


def follow(heard):
  """What is final and what is on trial after each event."""
  final = trial = ""
  for event in heard:
    if event.kind == events.TRY:
      trial += event.text
    elif event.kind == events.REWIND:
      assert event.text and trial.endswith(event.text)
      trial = trial[: len(trial) - len(event.text)]
    elif event.kind == events.COMMIT:
      assert trial.startswith(event.text)
      final, trial = final + event.text, trial[len(event.text) :]
    yield event, final, trial
