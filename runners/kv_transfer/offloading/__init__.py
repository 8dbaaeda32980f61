"""OffloadingConnector: full KV blocks are copied to host memory, and come back on a prefix hit."""
