"""Models for other programs: an OpenAI-compatible server, and lm-evaluation-harness."""
