"""KV connectors: KV blocks that leave an engine's cache and enter it again.

A connector has two sides, with the names and meaning of vLLM's `KVConnectorBase_V1`. The scheduler's side
knows which blocks are where and decides; the worker's side, in the runner, moves them. They talk by
`SchedulerOutput.kv_connector_metadata` and `StepOutput.kv_connector_output` alone.
"""
