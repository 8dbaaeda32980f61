"""What can be proved of rule books without running anything: `check` and `diff`.

Both are exact. The values of each fact are grouped by the comparisons that a book makes of it, so that the
space of all facts becomes finite (`space`); each rule, and each outcome of a book, is a decision diagram
over that space (`diagrams`, `regions`). docs/analysis.md says what is proved.
"""
