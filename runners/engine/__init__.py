"""The engine: requests, scheduler, KV blocks and text, over any runner."""
