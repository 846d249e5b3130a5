"""The OpenAI HTTP surface: validation, chat templates, streaming and errors."""
