"""The runner interface, its two implementations, and the engine that drives either."""
