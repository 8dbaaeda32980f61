"""Runner V2: dense Qwen3, Llama and Mistral on a GPU, with its own model code and Triton kernels."""
