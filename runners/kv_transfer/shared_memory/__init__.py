"""SharedMemoryConnector: KV blocks that one engine announces and writes to shared memory, and others of the
machine wait for and read."""
