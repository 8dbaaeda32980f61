"""Verdicts for people: text, tables, traces, and what would have to change."""
