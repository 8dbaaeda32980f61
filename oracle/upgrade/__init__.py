"""What another release of vLLM changes for deployments that files of a repository describe."""
