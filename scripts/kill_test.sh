#!/bin/sh
# Kills training runs with SIGKILL at random moments and checks that each ends with the same adapter, bit for bit.
# Usage: scripts/kill_test.sh [number of kills, 20]
set -eu
cd "$(dirname "$0")/.."
SEEDPO_KILLS="${1:-20}" exec cargo test -p seedpo --test resume -- --nocapture runs_killed_at_random_moments
