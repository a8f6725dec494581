#!/usr/bin/env python3
"""Train IGVG with ViLT as its encoder; options as in the library's train_net.py."""

from vilt_backbone import add_vilt_config

from igvg_d2.engine.train_net import main

if __name__ == "__main__":
    main(add_config=[add_vilt_config])
