"""Accuracy through the API: problems, the answers that a server gives, their comparison, and the scores."""
