#!/bin/bash
# The startup script of every machine: waits for what a fresh machine lacks, then runs the trainer's container and
# starts it again when it is lost. All else is Python inside the image (python -m trainer). What it needs to know
# stands in the machine's metadata. Leaves with 0 when there is nothing left to do here, with 1 when it gave up.
#
# For tests, in seconds: BOOT_PATIENCE (how long each thing is waited for), BOOT_PAUSE (the first pause of a back-off),
# BOOT_LIFE (a container that lived so long has its restarts counted anew).
set -euo pipefail

readonly PATIENCE=${BOOT_PATIENCE:-600} PAUSE=${BOOT_PAUSE:-2} LIFE=${BOOT_LIFE:-3600}
readonly RESTARTS=5 LONGEST_PAUSE=60
readonly METADATA=http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1

container= # the process id of `docker run`, while there is one
stopping=

say() { echo "gpt2-training: $*"; }

give_up() {
    say "gave up: $*"
    exit 1
}

metadata() { curl --silent --show-error --fail --max-time 10 --header 'Metadata-Flavor: Google' "$METADATA/$1"; }

attribute() { metadata "instance/attributes/$1"; }

pause() { # in a child, so that a signal is not kept waiting
    sleep "$1" &>/dev/null &
    wait $! || true
}

# retry WHAT COMMAND...: until the command works, with pauses that double; what it prints is shown when it fails.
retry() {
    local what=$1 next=$PAUSE end=$((SECONDS + PATIENCE)) said
    shift
    until said=$("$@" 2>&1); do
        said=$(tail -n 1 <<<"$said")
        ((SECONDS < end)) || give_up "waited $PATIENCE s for $what: $said"
        say "waiting for $what ($said)"
        pause "$next"
        next=$((next * 2 < LONGEST_PAUSE ? next * 2 : LONGEST_PAUSE))
    done
}

log_in() {
    local token
    token=$(metadata instance/service-accounts/default/token) || return
    token=$(sed -n 's/.*"access_token" *: *"\([^"]*\)".*/\1/p' <<<"$token")
    docker login --username oauth2accesstoken --password-stdin "https://${image%%/*}" <<<"$token"
}

# The machine shuts down: systemd ends this script, and the trainer has --stop-timeout seconds to leave.
leave() {
    stopping=yes
    [[ -n $container ]] || exit 0
    say "told to shut down: stopping the trainer"
    docker stop trainer >/dev/null || kill -TERM "$container" || true
}
trap leave TERM INT

retry "the metadata server" attribute gpt2-run
run=$(attribute gpt2-run)
role=$(attribute gpt2-role)
image=$(attribute gpt2-image)
gpus=$(attribute gpt2-gpus)
bucket=$(attribute gpt2-bucket)
address=$(metadata instance/network-interfaces/0/ip)
instance=$(metadata instance/name)
name=$role-${instance##*-}
if [[ $role == master ]]; then name=master-0; fi

[[ $image =~ ^[^@[:space:]]+@sha256:[0-9a-f]{64}$ ]] ||
    give_up "the metadata attribute gpt2-image is '$image', which is no NAME@sha256:DIGEST; run \`pulumi up\` again"

say "$instance is $name of $run"
retry "docker" docker info
if [[ $gpus != 0 ]]; then retry "the NVIDIA driver" nvidia-smi; fi
retry "the login to the registry" log_in
retry "the image" docker pull --quiet "$image"

options=(
    --rm --name trainer --network host --shm-size 2g --stop-timeout 110
    --label "gpt2-run=$run" --label "gpt2-role=$role"
    --log-driver gcplogs --log-opt "labels=gpt2-run,gpt2-role"
)
if [[ $gpus != 0 ]]; then options+=(--gpus all); fi
for variable in GCE_METADATA_HOST GCE_METADATA_IP STORAGE_EMULATOR_HOST "${!CLOUDSDK_API_ENDPOINT_OVERRIDES_@}"; do
    if [[ -n ${!variable:-} ]]; then options+=(--env "$variable=${!variable}"); fi # other servers than Google's own
done

restarts=0
next=$((5 * PAUSE))
while true; do
    docker rm --force trainer >/dev/null 2>&1 || true # of a machine that lost its power
    say "starting the trainer"
    started=$SECONDS
    # Its output goes to Cloud Logging by the log driver, and to `docker logs trainer`; here it would be there twice.
    docker run "${options[@]}" "$image" --bucket "$bucket" --run "$run" --name "$name" --role "$role" \
        --address "$address" --platform google >/dev/null &
    container=$!
    code=0
    wait "$container" || code=$?
    while kill -0 "$container" 2>/dev/null; do # a signal came: `wait` returns at once, the trainer takes its time
        code=0
        wait "$container" || code=$?
    done
    container=
    if [[ -n $stopping ]]; then
        say "the trainer has left"
        exit 0
    fi
    if ((code == 0)); then
        say "the trainer is done; nothing is left to do here"
        exit 0
    fi
    if ((SECONDS - started >= LIFE)); then
        restarts=0
        next=$((5 * PAUSE))
    fi
    ((restarts < RESTARTS)) ||
        give_up "the trainer ended $((RESTARTS + 1)) times, last with code $code; its log is in Cloud Logging and in" \
            "the bucket, and raising \`launch\` starts the run again"
    restarts=$((restarts + 1))
    say "the trainer ended with code $code; restart $restarts of $RESTARTS in $next s"
    pause "$next"
    next=$((next * 2 < LONGEST_PAUSE ? next * 2 : LONGEST_PAUSE))
done
