#!/usr/bin/env python3
"""Train IGVG with a query generator that lives outside the library; options as in train_net.py."""

from center_queries import add_center_queries_config

from igvg_d2.engine.train_net import main

if __name__ == "__main__":
    main(add_config=[add_center_queries_config])
