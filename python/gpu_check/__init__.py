"""What scripts/gpu-check does. Standard library only; torch's Python is used where there is one."""
