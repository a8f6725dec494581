"""What tools/finetune.py chooses, and why."""
