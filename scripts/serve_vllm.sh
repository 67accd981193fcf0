#!/usr/bin/env bash
# Serve a run over the OpenAI-compatible API with vLLM. It opens only once the gate has found that
# the live server is the model that was trained: same tokens, same log-probabilities, same stops.
#
# Reads   outputs/<run>/merged/                                     --serve.mode merged (default)
#         outputs/<run>/adapter/ on outputs/<run>/base/ (QLoRA)     --serve.mode lora
#         models/<name>/, the base as it was downloaded             --serve.mode base
# Writes  outputs/<run>/serve/{gate_report.json,server.log}         serve-base/ in mode base
# Run     make serve | make serve-lora | make serve-detached | make status | make stop
#         scripts/serve_vllm.sh --config configs/demo.yaml --serve.port 8001
#         scripts/serve_vllm.sh --config configs/demo.yaml --detach | --status | --stop
#
# --help lists the settings. LOCKSTEP_API_KEY in the environment makes clients need a key.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
if ! command -v "$python" >/dev/null; then
    echo "error: no Python at $python: run \`make setup\` first, or set PYTHON" >&2
    exit 2
fi
# `lockstep` is not installed; the server's own Python must find it, too
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}

action=start
arguments=()
for word in "$@"; do
    case $word in
        --stop | --status | --check) action=${word#--} ;;
        -h | --help)
            sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}"
            arguments+=("$word")
            ;;
        *) arguments+=("$word") ;;
    esac
done
exec "$python" -m lockstep.serving.supervisor "$action" "${arguments[@]}"
