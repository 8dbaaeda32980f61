"""The machine and the process as rules see them."""
