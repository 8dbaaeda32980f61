"""What both runners draft with: the plan, heads, prompt lookup. See docs/speculation.md."""
