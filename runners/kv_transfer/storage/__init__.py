"""SharedStorageConnector (vLLM's ExampleConnector): KV blocks as files that engines share and find again."""
