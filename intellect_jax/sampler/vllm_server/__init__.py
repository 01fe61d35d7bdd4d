"""The sampler role where vLLM does the work: our process starts vLLM's in an environment of its own and watches it."""
