"""Runner V1, the general one: transformers' own modelling code over a paged KV cache, on CPU and GPU."""
