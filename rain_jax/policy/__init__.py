"""A language model as the search's propose, roll out and self-evaluate functions.

The only place where search and language model meet: `language_model` answers the search's
requests, by `rollout` and `self_evaluation`."""
