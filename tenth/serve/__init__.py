"""The HTTP server: the APIs of OpenAI and others on one engine; keys, limits, privacy, metrics, a console, reviews."""
