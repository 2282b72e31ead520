"""Benchmarks: ours and a peer interleaved, behind an equality gate. Each file runs alone; `make bench` runs all."""
