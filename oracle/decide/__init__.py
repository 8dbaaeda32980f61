"""From facts to a verdict: evaluation, outcome, verdict."""
