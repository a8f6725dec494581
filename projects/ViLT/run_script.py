#!/usr/bin/env python3
"""Run demo/demo.py or a script of tools/ with this project's configs: run_script.py SCRIPT ARGS."""

import runpy
import sys

from vilt_backbone import add_vilt_config

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main = runpy.run_path(sys.argv[1])["main"]
    main(sys.argv[2:], add_config=[add_vilt_config])
