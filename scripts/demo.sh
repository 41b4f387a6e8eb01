#!/usr/bin/env bash
# Aligns the built-in model twice, with the self-entropy term and without (same seed, same settings), and puts both on one
# page. Everything goes into runs/demo; an earlier demo is kept under another name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seedpo=target/release/seedpo
out=runs/demo
if [ -e "$out" ]; then
  earlier="$out-$(date +%Y%m%d-%H%M%S)"
  mv "$out" "$earlier"
  echo "demo: the earlier demo is now in $earlier"
fi

echo "demo: 1 of 2, SPO (gamma 0)"
"$seedpo" train --preset spo-emoji --output_dir "$out" --name spo "$@"
echo
echo "demo: 2 of 2, the same with the self-entropy term (SEE-SPO, gamma 0.5)"
"$seedpo" train --preset see-spo-emoji --output_dir "$out" --name see-spo "$@"
echo
"$seedpo" report "$out/see-spo" --compare "$out/spo" --out "$out/report.html" >/dev/null

echo "demo: done"
echo "  report   $PWD/$out/report.html"
echo "  adapter  $PWD/$out/see-spo/pytorch_lora_weights.safetensors"
echo "  try it   $seedpo sample --adapter $out/see-spo/pytorch_lora_weights.safetensors --prompt 'cat face' --out cats"
if [ -t 1 ] && [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] && command -v xdg-open >/dev/null; then
  xdg-open "$out/report.html" >/dev/null 2>&1 || true
fi
