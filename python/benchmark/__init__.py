"""What `make bench` and scripts/gpu-check share: running both sides of a comparison, medians, tables. Standard library only."""
