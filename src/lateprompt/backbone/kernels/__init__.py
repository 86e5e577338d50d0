"""Ways to compute the same in less time: only read positions, absorbed projections, dropout and bf16 on a CPU."""
