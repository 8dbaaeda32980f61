"""Evaluates a rule book with durable-rules, inside the part of that engine that can be relied on.

durable-rules is fast and, for conjunctions of comparisons over one flat fact, exact. Outside of that part,
ordinary input gives wrong results or crashes the process (docs/oracle.md). A book is therefore compiled to
that part alone:

- `encoding`: facts become fields, which are booleans and bounded integers, total and typed. Membership tests
  are computed there and passed on as booleans; texts are numbered; null and unknown are states of a fact.
- `compiling`: each condition becomes the clauses of its disjunctive normal form, one durable rule per clause.
  Sure firings and firings that unknown facts leave open are separate rulesets. Each ruleset has a sentinel
  that always fires.
- `engine`: the process's one host of durable-rules, behind a lock. Anything unexpected raises EngineFault.
- `trial`: a book that doesn't come with Dodona is first compiled and run in a child process.
- `evaluation`: the firings of a book on facts, by these parts.
"""
