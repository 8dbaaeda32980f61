"""LoRA adapters as PEFT saves them: read, checked, kept by id. Runners apply them."""
