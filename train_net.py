#!/usr/bin/env python3
"""Train and evaluate IGVG.

    python train_net.py --config-file configs/Shapes/igvg_tiny.yaml
    python train_net.py --config-file X --eval-only MODEL.WEIGHTS Y
    python train_net.py --config-file X --resume --num-gpus 8 SOLVER.IMS_PER_BATCH 128

The arguments are those of every Detectron2 project; KEY VALUE pairs at the end override the config.
On a machine without a GPU the same commands run on the CPU, and --num-gpus 2 means two processes.
An outside project has a script of its own, see projects/IGVG/example_extension.
"""

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from igvg_d2.engine.train_net import main

if __name__ == "__main__":
    main()
