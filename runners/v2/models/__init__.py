"""V2's models."""
