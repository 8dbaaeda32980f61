"""What vLLM's releases decide: the facts that their rule books read, and where those come from."""
