"""Changing the weights of a running model: replaced, patched, put to sleep. Shared by the runners."""
