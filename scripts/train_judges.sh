#!/usr/bin/env bash
# Trains the judges of the built-in world (docs/judges.md, "Preferences whose rule is known") into runs/judges, or into the
# folder named: a CLIP, a preference model and a step-aware one from one half of the emoji, and a held-out preference model
# from the other half with another seed. A stopped run goes on where it was. `make judges` builds what it needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seedpo=${SEEDPO:-target/release/seedpo}
out=${1:-runs/judges}
threads=${THREADS:-1}
mkdir -p "$out"
[ -f "$out/pairs/pairs.jsonl" ] || "$seedpo" judge synthetic "$out/pairs" --seed 0

# train NAME KIND FLAGS...
train() {
  local name=$1 kind=$2 resume=()
  shift 2
  [ -f "$out/$name/checkpoint.safetensors" ] && resume=(--resume)
  "$seedpo" judge train "$kind" --out "$out/$name" --heldout-share 0.1 --heldout-limit 0 --save-dtype "$dtype" --device cpu \
    --threads "$threads" "$@" "${resume[@]}"
}

tuning=(--accumulation 1 --lr 3e-4 --weight-decay 0.1 --schedule cosine --warmup 50 --data "$out/pairs")
captions=(--data emoji --tokenizer assets/emoji-sd --crop-area 1 --steps 1500)

all() {
  local dtype=$1
  train clip clip "${captions[@]}" --part 1/2 --seed 1
  train preference preference "${tuning[@]}" --init "$out/clip/model" --part 1/2 --seed 1 --steps 1000 --batch 64
  train step-aware step-aware "${tuning[@]}" --init "$out/preference/model" --part 1/2 --seed 1 --steps 600 --batch 32 --dtype bf16
  train heldout-clip clip "${captions[@]}" --part 2/2 --seed 2
  train heldout preference "${tuning[@]}" --init "$out/heldout-clip/model" --part 2/2 --seed 2 --steps 1000 --batch 64
}

# Each is trained from the one before in f32; then all are written again as f16, which is half as large.
all f32
all f16

echo "judges: done; copy $out/{clip,preference,step-aware,heldout}/model over assets/judges/ to make them the built-in ones"
