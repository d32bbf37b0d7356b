"""Benchmarks: each measures mdstore and a peer in the same run and reports the ratio."""
