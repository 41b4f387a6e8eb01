#!/usr/bin/env bash
# Runs every method on the built-in model with its own preset: the curves and pictures of docs/methods. Everything goes into
# runs/methods, or into the folder named; a run that is there already is kept. `make method-curves` builds what it needs, and
# writes the pictures and the tables (python/method_curves.py). About 25 minutes on two idle cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seedpo=${SEEDPO:-target/release/seedpo}
out=${1:-runs/methods}
mkdir -p "$out"

# train NAME FLAGS...: an unfinished run goes on where it was.
train() {
  local name=$1
  shift
  if [ -d "$out/$name" ]; then
    "$seedpo" train --quiet --resume "$out/$name"
  else
    "$seedpo" train --quiet --output-dir "$out" --name "$name" --dtype f32 --device cpu "$@"
  fi
  echo "method_curves: $name"
}

for method in spo d3po; do
  train "$method" --preset "$method-emoji"
  train "see-$method" --preset "see-$method-emoji"
done
train ddpo --preset ddpo-emoji
train dpok --preset ddpo-emoji --method dpok --kl-weight 0.01

# Two pictures a prompt and pass, drawn by the model itself, the more colourful one preferred: 144 pairs.
[ -d "$out/pairs" ] || "$seedpo" rollout --quiet --preset d3po-emoji --num-train-epochs 12 --dtype f32 --device cpu --images "$out/pairs"
for method in diffusion-dpo seppo spin; do
  train "$method" --preset "$method-emoji" --pairs-file "$out/pairs"
  train "see-$method" --preset "see-$method-emoji" --pairs-file "$out/pairs"
done
train sft --preset sft-emoji --pairs-file "$out/pairs"
