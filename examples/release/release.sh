#!/usr/bin/env bash
# From a fine-tuned checkpoint to signed archives in OUTPUT/release, or to the reason why not.
#
# usage: release.sh RECIPE OUTPUT PRIVATE-KEY PUBLIC-KEY [REPORT OF THE LAST RELEASE]
#
# Ends with the exit code of the step that failed: 2 the arguments, 3 recipe, data or key, 4 a pass,
# 5 budget or regression, 6 a target or a signature, 9 a noisy machine. OUTPUT/release is then not
# there. Run it again after an interruption: finished steps are kept.
set -euo pipefail
if [ $# -lt 4 ] || [ $# -gt 5 ]; then
    echo "usage: $0 RECIPE OUTPUT PRIVATE-KEY PUBLIC-KEY [REPORT OF THE LAST RELEASE]" >&2
    exit 2
fi
recipe=$1 output=$2 private=$3 public=$4 last=${5:-}
release=$output/release fresh=$output/.release

# What would be known only after the run: that the keys are two halves of one, and the last release.
half() { COMPRESSOR_KEY_PASSPHRASE=${COMPRESSOR_KEY_PASSPHRASE:-} openssl pkey -pubout "$@"; }
if ! ours=$(half -in "$private" -passin env:COMPRESSOR_KEY_PASSPHRASE); then
    echo "error: $private cannot be read as a private key; COMPRESSOR_KEY_PASSPHRASE has the" \
        "passphrase of an encrypted one" >&2
    exit 3
fi
if ! theirs=$(half -pubin -in "$public") || [ "$ours" != "$theirs" ]; then
    echo "error: $public is not the public half of $private" >&2
    exit 3
fi
if [ -n "$last" ] && [ ! -e "$last" ]; then
    echo "error: the report of the last release does not exist: $last" >&2
    exit 3
fi
compressor validate "$recipe"

# Nothing of an earlier release stays, and nothing of this one that does not come to its end.
rm -rf "$release" "$fresh" "$output"/bundles/*/model.sig "$output"/gate.{xml,md,json}
trap '[ $? = 0 ] || rm -rf "$fresh" "$output"/bundles/*/model.sig' EXIT

# 5 is a budget that was missed, which the gate explains.
code=0
compressor run "$recipe" --output "$output" || code=$?
if [ "$code" != 0 ] && [ "$code" != 5 ]; then exit "$code"; fi

options=(--junit "$output/gate.xml" --summary "$output/gate.md" --output "$output/gate.json")
if [ -n "$last" ]; then options+=(--against "$last"); fi
if [ "${EVEN_IF_NOISY:-}" = true ]; then options+=(--even-if-noisy); fi
compressor gate "$output" "${options[@]}"

mkdir "$fresh"
python3 -c 'import json, sys; print(*json.load(open(sys.argv[1]))["ships"], sep="\n")' \
    "$output/gate.json" | while IFS= read -r bundle; do
    compressor sign "$output/$bundle" --key "$private"
    archive=$fresh/$(basename "$bundle").tar.zst
    compressor pack "$output/$bundle" "$archive"
    # What is verified is what will be shipped.
    compressor verify "$archive" --key "$public"
done
mv "$fresh" "$release"
