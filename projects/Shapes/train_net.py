#!/usr/bin/env python3
"""Pretrain a tiny BEiT-3 on Shapes scenes; options as in the library's train_net.py."""

from shapes_pretraining import add_pretraining_config
from shapes_pretraining.trainer import PretrainingTrainer

from igvg_d2.engine.train_net import main

if __name__ == "__main__":
    main(add_config=[add_pretraining_config], trainer=PretrainingTrainer)
