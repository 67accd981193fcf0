#!/usr/bin/env bash
# Serve a run over the OpenAI-compatible API, in the foreground, on loopback.
#
# Reads   outputs/<run>/merged/                                     --serve.mode merged (default)
#         outputs/<run>/adapter/ on outputs/<run>/base/ (QLoRA)     --serve.mode lora
#         models/<name>/, the base as it was downloaded             --serve.mode base
# Writes  outputs/<run>/serve/server.log
# Run     make serve | make serve-lora | make stop
#         scripts/serve_vllm.sh --config configs/demo.yaml --serve.port 8001
#         scripts/serve_vllm.sh --config configs/demo.yaml --stop
#
# --help lists the settings. LOCKSTEP_API_KEY in the environment makes clients need a key.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
if ! command -v "$python" >/dev/null; then
    echo "error: no Python at $python: run \`make setup\` first, or set PYTHON" >&2
    exit 2
fi
export PYTHONPATH=$here # `lockstep` is not installed; the server's own Python must find it, too

arguments=()
stop='' check=''
for word in "$@"; do
    case $word in
        --stop) stop=yes ;;
        --check) check=yes ;;
        *) arguments+=("$word") ;;
    esac
done

if [[ $check ]]; then # only whether the arguments can be read
    "$python" -m lockstep.endpoint folder "${arguments[@]}" >/dev/null
    exit
fi
if [[ $stop ]]; then
    folder=$("$python" -m lockstep.endpoint folder "${arguments[@]}")
    exec "$python" -m lockstep.supervisor stop --folder "$folder"
fi
for word in "${arguments[@]}"; do
    if [[ $word == -h || $word == --help ]]; then
        sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}"
        exec "$python" -m lockstep.endpoint --help
    fi
done

# Checks what can be checked at once, and prints: command=(…) folder=… url=… model=… timeout=…
plan=$("$python" -m lockstep.endpoint plan "${arguments[@]}")
command=() folder='' url='' model='' timeout=''
eval "$plan"
if [[ -n ${LOCKSTEP_API_KEY:-} ]]; then export VLLM_API_KEY=$LOCKSTEP_API_KEY; fi
printf '%q ' "${command[@]}"
echo
exec "$python" -m lockstep.supervisor start --folder "$folder" --url "$url" --model "$model" \
    --timeout "$timeout" -- "${command[@]}"
