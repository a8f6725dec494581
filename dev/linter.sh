#!/usr/bin/env bash
# Checks format and style of every Python file; with --fix, formats them first.
# Run it before each commit: `make lint`, or `dev/linter.sh --fix` inside the environment.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    "") check="--check" ;;
    --fix) check="" ;;
    *) echo "usage: dev/linter.sh [--fix]" >&2; exit 2 ;;
esac

# Folders that a fresh checkout may not have yet are skipped.
targets=""
for target in igvg_d2 configs datasets demo dev projects tests tools setup.py train_net.py; do
    [ -e "$target" ] && targets="$targets $target"
done

# Generated data and other people's downloads lie below datasets/; only its own scripts are ours.
# shellcheck disable=SC2086  # lists, to be split
{
    black --quiet $check -l 100 --extend-exclude '^/datasets/.*/' $targets ||
        { echo "linter: black would reformat files; run dev/linter.sh --fix" >&2; exit 1; }
    isort --quiet ${check:+--check-only} $targets ||
        { echo "linter: isort would reorder imports; run dev/linter.sh --fix" >&2; exit 1; }
    flake8 $targets
}
echo "linter: black, isort and flake8 are satisfied"
