"""The load test: what `scripts/bench` runs, and measurements of single parts. See docs/performance.md."""
