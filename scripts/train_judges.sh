#!/usr/bin/env bash
# Trains the judges of the built-in world (docs/judges.md, "Preferences whose rule is known") into runs/judges, or into the
# folder named: a CLIP, a preference model and a step-aware one from one half of the emoji, and a held-out preference model
# from the other half with another seed. A stopped run goes on where it was; a judge that has its f16 form is finished.
# `make judges` builds what it needs.
#
#   runs/judges/NAME/model       as trained: f32, what the next one starts from
#   runs/judges/f16/NAME/model   the same in half the bytes: what assets/judges has
#
# THREADS (1) is how many threads to compute on, SEEDPO the binary, EMOJI (.emoji) the folder of `make emoji`. To try the script
# itself in seconds: STEPS, the updates of every judge, and HELDOUT_LIMIT, the held-out examples looked at (0, all).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seedpo=${SEEDPO:-target/release/seedpo}
out=${1:-runs/judges}
emoji=${EMOJI:-.emoji}
mkdir -p "$out"
[ -f "$out/pairs/pairs.jsonl" ] || "$seedpo" judge synthetic "$out/pairs" --emoji "$emoji" --seed 0

# train NAME KIND STEPS FLAGS...: the judge in f32, then its finished run once more beside it, as f16.
train() {
  local name=$1 kind=$2 steps=${STEPS:-$3}
  shift 3
  if [ -f "$out/f16/$name/model/model.safetensors" ]; then
    echo "judges: $out/f16/$name/model is there already"
    return
  fi
  run "$out/$name" "$kind" --steps "$steps" --save-dtype f32 "$@"
  # A copy, so that the f32 weights stay what the next judge began with.
  mkdir -p "$out/f16/$name"
  cp "$out/$name/checkpoint.safetensors" "$out/f16/$name/"
  run "$out/f16/$name" "$kind" --steps "$steps" --save-dtype f16 "$@"
}

# run FOLDER KIND FLAGS...
run() {
  local folder=$1 kind=$2
  shift 2
  [ ! -f "$folder/checkpoint.safetensors" ] || set -- --resume "$@"
  "$seedpo" judge train "$kind" --out "$folder" --heldout-share 0.1 --heldout-limit "${HELDOUT_LIMIT:-0}" --device cpu \
    --threads "${THREADS:-1}" "$@"
}

captions=(--data emoji --emoji "$emoji" --tokenizer assets/emoji-sd --crop-area 1)
pairs=(--accumulation 1 --lr 3e-4 --weight-decay 0.1 --schedule cosine --warmup 50 --data "$out/pairs")

train clip clip 1500 "${captions[@]}" --part 1/2 --seed 1
train preference preference 1000 "${pairs[@]}" --init "$out/clip/model" --part 1/2 --seed 1 --batch 64
train step-aware step-aware 600 "${pairs[@]}" --init "$out/preference/model" --part 1/2 --seed 1 --batch 32 --dtype bf16
train heldout-clip clip 1500 "${captions[@]}" --part 2/2 --seed 2
train heldout preference 1000 "${pairs[@]}" --init "$out/heldout-clip/model" --part 2/2 --seed 2 --batch 64

echo "judges: done; copy $out/f16/{clip,preference,step-aware,heldout}/model over assets/judges/ to make them the built-in ones"
