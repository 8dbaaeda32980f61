"""What pooling models are asked for, and what becomes of their outputs; without torch."""
