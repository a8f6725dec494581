#!/usr/bin/env bash
# Trains a few iterations of each given config and evaluates it: does it run at all?
#
#   dev/run_instant_tests.sh                         every *_instant_test.yaml, else the CI config
#   dev/run_instant_tests.sh CONFIG.yaml [...]       these
#
# Needs the Shapes data set (`make data`). Stops at the first config that fails.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
OUTPUT=${OUTPUT:-output/instant_tests}
ITERATIONS=${ITERATIONS:-10}

configs=("$@")
if [ $# -eq 0 ]; then
    configs=()
    while IFS= read -r config; do configs+=("$config"); done \
        < <(find configs projects -name '*_instant_test.yaml' 2>/dev/null | sort)
    [ ${#configs[@]} -gt 0 ] || configs=(configs/Shapes/igvg_tiny_ci.yaml)
fi

for config in "${configs[@]}"; do
    echo "instant test: $config"
    rm -rf "${OUTPUT:?}/$(basename "$config" .yaml)"
    "$PYTHON" train_net.py --config-file "$config" \
        OUTPUT_DIR "$OUTPUT/$(basename "$config" .yaml)" SOLVER.MAX_ITER "$ITERATIONS"
done
echo "instant tests: ${#configs[@]} passed"
