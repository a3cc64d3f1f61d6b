"""The machine that a run is on: processes, GPUs, memory, random numbers and time."""
