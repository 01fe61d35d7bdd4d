"""What a sampler server tells at /metrics, in Prometheus' text format, under the names that vLLM gave it."""

from __future__ import annotations

from dataclasses import dataclass

# Ours → vLLM's. Where a name has several rows (one an engine), they are summed.
NAMES = {
    "generated": "vllm:generation_tokens_total",
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "cache": "vllm:kv_cache_usage_perc",
}


@dataclass(frozen=True)
class Stats:
    generated: float  # tokens since the server's start
    running: float  # requests
    waiting: float
    cache: float  # share of the KV cache in use

    def row(self) -> dict[str, float]:
        """Under our metrics' names."""
        return {
            "tokens/generated": self.generated,
            "requests/running": self.running,
            "requests/waiting": self.waiting,
            "cache/usage": self.cache,
        }


def parse(text: str) -> Stats:
    """Raises ValueError when something is missing, or no number."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#") and line.strip():
            name, value = line.split("{")[0].split(" ")[0], line.rpartition(" ")[2]
            sums[name] = sums.get(name, 0.0) + float(value)
    missing = [name for name in NAMES.values() if name not in sums]
    if missing:
        raise ValueError(f"no {missing[0]} among the metrics")
    return Stats(**{ours: sums[name] for ours, name in NAMES.items()})
