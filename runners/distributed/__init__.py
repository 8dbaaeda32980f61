"""Several workers for one runner: processes, their ranks, and what they exchange."""
