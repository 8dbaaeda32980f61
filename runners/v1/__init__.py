"""Runner V1, the general runner: transformers' own modelling code over a paged KV cache, on CPU and GPU."""
