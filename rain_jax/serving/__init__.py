"""Models for other programs: an OpenAI-compatible server."""
