"""Benchmarks: ours and a peer interleaved in one process, behind an equality gate. Each file runs alone; `make bench` runs all."""
