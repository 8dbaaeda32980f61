"""Sampling: what requests ask, and what each stage means."""
