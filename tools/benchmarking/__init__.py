"""The parts of tools/benchmark.py: clocks, references of the machine, what is measured, tables."""
