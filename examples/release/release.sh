#!/usr/bin/env bash
# From a fine-tuned checkpoint to signed archives, or to the reason why not.
#
# usage: release.sh RECIPE OUTPUT PRIVATE-KEY PUBLIC-KEY [REPORT OF THE LAST RELEASE]
#
# Ends with the exit code of the step that failed: 3 recipe or data, 4 a pass, 5 budget or regression,
# 6 a target, 9 a noisy machine. Run it again after an interruption: finished steps are kept.
set -euo pipefail
recipe=$1 output=$2 private=$3 public=$4 last=${5:-}

compressor validate "$recipe"

# 5 is a budget that was missed, which the gate explains.
code=0
compressor run "$recipe" --output "$output" || code=$?
if [ "$code" != 0 ] && [ "$code" != 5 ]; then exit "$code"; fi

options=(--junit "$output/gate.xml" --summary "$output/gate.md" --output "$output/gate.json")
if [ -n "$last" ]; then options+=(--against "$last"); fi
if [ "${EVEN_IF_NOISY:-}" = true ]; then options+=(--even-if-noisy); fi
compressor gate "$output" "${options[@]}"

python3 -c 'import json, sys; print(*json.load(open(sys.argv[1]))["ships"], sep="\n")' \
    "$output/gate.json" | while IFS= read -r bundle; do
    compressor sign "$output/$bundle" --key "$private"
    archive="$output/$(basename "$bundle").tar.zst"
    rm -f "$archive"
    compressor pack "$output/$bundle" "$archive"
    # What is verified is what will be shipped.
    compressor verify "$archive" --key "$public"
done
