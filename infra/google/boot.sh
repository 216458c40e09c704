#!/bin/bash
# The startup script of every machine: looks for what the trainer's container needs, brings what the image lacks, runs
# the container and starts it again when it is lost. All else is Python inside the container (python -m trainer). What
# it needs to know stands in the machine's metadata. Leaves with 0 when there is nothing left to do here, with 1 when it
# gave up: then machines/<name>.json says why; and a master has the machines of all roles ended, so that none is paid for
# idling.
#
# For tests, in seconds: BOOT_PATIENCE (how long each thing is waited for), BOOT_PAUSE (the first pause of a back-off),
# BOOT_LIFE (a container that lived so long has its restarts counted anew), BOOT_REFUSAL (Docker needs less to refuse),
# BOOT_AGAIN (so long may the controller take to end the machines). BOOT_ROOT is a folder that takes the place of /.
set -euo pipefail

readonly PATIENCE=${BOOT_PATIENCE:-600} PAUSE=${BOOT_PAUSE:-2} LIFE=${BOOT_LIFE:-3600} REFUSAL=${BOOT_REFUSAL:-60}
readonly AGAIN=${BOOT_AGAIN:-240} RESTARTS=5 LONGEST_PAUSE=60 ROOT=${BOOT_ROOT:-}
readonly STORAGE=${STORAGE_EMULATOR_HOST:-https://storage.googleapis.com}
readonly METADATA=http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1
readonly NVIDIA=$ROOT/var/lib/nvidia # where Container-Optimized OS has the driver's libraries and commands

say() { echo "gpt2-training: $*"; }

# systemd tells a unit's main process of a shutdown. Startup scripts run in a service that does not pass this on
# (KillMode=process), so the script runs again as a unit of its own, which is stopped before Docker is. It is copied,
# because its file is deleted when the service's part of it ends.
if [[ ${1:-} != unit && -d $ROOT/run/systemd/system ]]; then
    properties=(After=docker.service KillMode=mixed TimeoutStopSec=120 StandardOutput=journal+console)
    if cp "$0" "$ROOT/run/gpt2-boot.sh" && systemd-run --no-block --quiet --collect --unit gpt2-boot \
        "${properties[@]/#/--property=}" /bin/bash "$ROOT/run/gpt2-boot.sh" unit; then exit 0; fi
    say "systemd-run failed: at a shutdown the trainer gets no notice"
fi

booted=$EPOCHSECONDS
since=$booted    # when the newest container started
errors=$(mktemp) # what the newest `docker run` wrote to stderr
trap 'rm -f "$errors"' EXIT
name=      # empty until the metadata is known
container= # the process id of `docker run`, while there is one
refused=   # since when Docker has not started the container
stopping=
options=() # of `docker run`

metadata() { curl --silent --show-error --fail --max-time 10 --header 'Metadata-Flavor: Google' "$METADATA/$1"; }

attribute() { metadata "instance/attributes/$1"; }

pause() { # in a child, so that a signal is not kept waiting
    sleep "$1" &>/dev/null &
    wait $! || true
}

longer() { echo $(($1 * 2 < LONGEST_PAUSE ? $1 * 2 : LONGEST_PAUSE)); }

# attempt WHAT COMMAND...: until the command works, with pauses that double. Fails after PATIENCE; `said` is the reason.
attempt() {
    local what=$1 next=$PAUSE end=$((SECONDS + PATIENCE))
    shift
    until said=$("$@" 2>&1); do
        said=$(tail -n 1 <<<"$said")
        ((SECONDS < end)) || return 1
        say "waiting for $what ($said)"
        pause "$next"
        next=$(longer "$next")
    done
}

retry() { attempt "$@" || give_up "waited $PATIENCE s for $1: $said"; }

token() { metadata instance/service-accounts/default/token | sed -n 's/.*"access_token" *: *"\([^"]*\)".*/\1/p'; }

call() { # ADDRESS [JSON to POST], as this machine's account; curl reads the token where `ps` does not show it
    local header
    header="Authorization: Bearer $(token)" || return
    curl --silent --show-error --fail --max-time 60 --header @- --header 'Content-Type: application/json' \
        ${2:+--data-binary "$2"} "$1" <<<"$header"
}

write() { # FILE, its slashes as %2F; CONTENT
    call "$STORAGE/upload/storage/v1/b/${bucket#gs://}/o?uploadType=media&name=$1" "$2" >/dev/null
}

last_words() { # as a MachineStatus (trainer/runs/records.py), unless the newest container left its own, which tell more
    local file=runs%2F$run%2Fmachines%2F$name.json
    local there beat='"heartbeat": ([0-9]+)' message
    there=$(call "$STORAGE/storage/v1/b/${bucket#gs://}/o/$file?alt=media") || there=
    if [[ $there == *'"state": "failed"'* && $there =~ $beat ]] && ((BASH_REMATCH[1] >= since)); then return; fi
    message=$(printf %.500s "$1" | LC_ALL=C tr -c ' -~' ' ' | sed 's/["\\]/\\&/g')
    write "$file" \
        "{\"name\": \"$name\", \"role\": \"$role\", \"state\": \"failed\", \"message\": \"$message\", \"pid\": $$,
        \"heartbeat\": $EPOCHSECONDS, \"started\": $booted, \"host\": \"$HOSTNAME\"}"
}

# Without a master the run cannot end the machines at its end; so they end now. Only the master may ask for that: this
# VM of a worker or server stays until the master or the deadline ends it. Without a server the others wait, and say so.
give_up() {
    say "gave up: $*"
    [[ -n $name ]] || exit 1
    attempt "the bucket" last_words "$*" || say "the bucket does not take the last words: $said"
    [[ $role == master ]] || exit 1
    say "no machine is to wait for this one: the controller ends them all"
    while true; do # until this VM is ended too, as its controller may have failed; it goes last
        attempt "the controller" request_end || say "the controller could not be asked: the deadline remains ($said)"
        pause "$AGAIN"
    done
}

request_end() { # as trainer/machine/google_vm.py does; the next launch asks for its own end
    local base=${CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDSCHEDULER:-https://cloudscheduler.googleapis.com/v1/}
    local file=runs%2F$run%2Fends%2F$launch.json job
    job=$(attribute gpt2-controller) || return
    write "$file" "{\"reason\": \"the master gave up\", \"time\": $EPOCHSECONDS}" || return
    call "${base%/}/$job:run" '{}'
}

pull() { # with a login each time: a token lives for an hour at most, and grants may come late
    local password
    password=$(token) || return
    docker login --username oauth2accesstoken --password-stdin "https://${image%%/*}" <<<"$password" || return
    docker pull --quiet "$image"
}

on_cos() { command -v cos-extensions >/dev/null; } # Container-Optimized OS

# Container-Optimized OS lets nothing in but ssh, and machines must reach each other. The network's firewall stays.
admit_tcp() { iptables --wait -C INPUT -p tcp -j ACCEPT 2>/dev/null || iptables --wait -I INPUT -p tcp -j ACCEPT; }

# Docker's static build, which the stack has put into a bucket: a machine without internet cannot install a package.
bring_docker() {
    local archive=$ROOT/var/tmp/docker.tgz from=${docker_archive#gs://} file
    file=${from#*/}
    call "$STORAGE/storage/v1/b/${from%%/*}/o/${file//\//%2F}?alt=media" >"$archive" || return
    sha256sum --check --quiet <<<"$docker_sha256  $archive" || return
    tar --extract --gzip --file "$archive" --directory "$ROOT/usr/local/bin" --strip-components 1 || return
    rm "$archive"
    cat >"$ROOT/etc/systemd/system/docker.service" <<EOF || return
[Unit]
Description=Docker, from $docker_archive
Wants=network-online.target
After=network-online.target
[Service]
Type=notify
ExecStart=/usr/local/bin/dockerd
Delegate=yes
KillMode=process
OOMScoreAdjust=-500
Restart=always
[Install]
WantedBy=multi-user.target
EOF
    systemctl daemon-reload && systemctl enable --now docker
}

prepare_docker() {
    if on_cos; then
        retry "the machine's own firewall" admit_tcp
    elif ! command -v docker >/dev/null; then
        say "this image has no Docker: bringing it"
        if ! docker_archive=$(attribute gpt2-docker) || ! docker_sha256=$(attribute gpt2-docker-sha256); then
            give_up "the image has no Docker, and the stack brings none; set machines.imageFamily to cos-129-lts"
        fi
        retry "Docker's archive $docker_archive" bring_docker
    fi
    retry "docker" docker info
}

has_nvidia_runtime() {
    [[ $(docker info --format '{{json .Runtimes}}') == *'"nvidia"'* ]] || { echo "docker info lists none" && return 1; }
}

configure_nvidia_runtime() { nvidia-ctk runtime configure --runtime=docker && systemctl restart docker; }

# The image's folder for the driver does not let anything run (noexec), as all of /var.
allow_driver() { mount --bind "$NVIDIA" "$NVIDIA" && mount -o remount,exec "$NVIDIA"; }

prepare_gpus() {
    local found device
    # Container-Optimized OS has no driver at boot. R580 is the oldest branch for CUDA 13, which torch's wheels need.
    if on_cos; then
        retry "the NVIDIA driver's installation" cos-extensions install gpu -- -version=R580
        retry "the NVIDIA driver's folder" allow_driver
        PATH=$PATH:$NVIDIA/bin
    fi
    retry "the NVIDIA driver" nvidia-smi
    found=$(nvidia-smi --list-gpus | grep -c '^GPU ') || true
    ((found >= gpus)) || give_up "the driver finds $found of $gpus GPUs; raise \`launch\` to get another machine"

    # The container's way to them: without NVIDIA's toolkit, which Container-Optimized OS lacks, as devices and folders.
    if on_cos; then
        for device in "$ROOT"/dev/nvidia[0-9]* "$ROOT"/dev/nvidia{ctl,-uvm,-uvm-tools,-modeset}; do
            if [[ -e $device ]]; then options+=(--device "$device:${device#"$ROOT"}"); fi
        done
        options+=(
            --volume "$NVIDIA/lib64:/usr/local/nvidia/lib64" --env LD_LIBRARY_PATH=/usr/local/nvidia/lib64
            --volume "$NVIDIA/bin:/usr/local/nvidia/bin"
            --env PATH=/usr/local/nvidia/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        )
        return
    fi
    # Docker 29 takes --gpus only where NVIDIA's devices are described for it (CDI). The runtime works with any Docker.
    if ! has_nvidia_runtime >/dev/null; then
        command -v nvidia-ctk >/dev/null ||
            give_up "the image has no NVIDIA Container Toolkit (nvidia-ctk); set machines.imageFamily to cos-129-lts"
        retry "the NVIDIA runtime's configuration" configure_nvidia_runtime
        retry "the NVIDIA runtime" has_nvidia_runtime
    fi
    options+=(--runtime nvidia --env NVIDIA_VISIBLE_DEVICES=all --env "NVIDIA_DRIVER_CAPABILITIES=compute,utility")
}

# FOLDER DISK...: joins the disks to one, empty, at this folder.
make_scratch() {
    local folder=$1 device=$2
    shift
    if (($# > 1)); then
        device=$ROOT/dev/md0
        mdadm --stop --scan || true # after a reboot they may be joined already, under another name
        mdadm --create "$device" --run --force --level 0 --raid-devices $# "$@" || return
    fi
    mkfs.ext4 -q -F -m 0 "$device" && mkdir -p "$folder" && mount -o discard "$device" "$folder" && chmod 1777 "$folder"
}

# Some machine types come with local SSDs. They are the trainer's /tmp, where tokens, checkpoints and models lie on their
# way into the bucket; without them /tmp is on the boot disk.
prepare_scratch() {
    local disk disks=() folder=$HOME/scratch
    for disk in "$ROOT"/dev/disk/by-id/google-local-nvme-ssd-*; do
        if [[ -e $disk ]]; then disks+=("$disk"); fi
    done
    ((${#disks[@]})) || return 0
    if mountpoint --quiet "$folder" || said=$(make_scratch "$folder" "${disks[@]}" 2>&1); then
        options+=(--volume "$folder:/tmp")
    else
        say "the local SSDs stay unused ($(tail -n 1 <<<"$said"))"
    fi
}

# The machine shuts down: systemd ends this script, and the trainer has --stop-timeout seconds to leave.
leave() {
    stopping=yes
    [[ -n $container ]] || exit 0
    say "told to shut down: stopping the trainer"
    docker stop trainer >/dev/null || kill -TERM "$container" || true
}
trap leave TERM INT

known() { retry "the metadata server" metadata "instance/$1"; } # `said` is the value
known attributes/gpt2-run && run=$said
known attributes/gpt2-launch && launch=$said
known attributes/gpt2-role && role=$said
known attributes/gpt2-image && image=$said
known attributes/gpt2-gpus && gpus=$said
known attributes/gpt2-bucket && bucket=$said
known network-interfaces/0/ip && address=$said
known name && instance=$said
known zone && zone=$said
if [[ $role == master ]]; then name=master-0; else name=$role-${instance##*-}; fi

[[ $image =~ ^[^@[:space:]]+@sha256:[0-9a-f]{64}$ ]] ||
    give_up "the metadata attribute gpt2-image is '$image', which is no NAME@sha256:DIGEST; run \`pulumi up\` again"

say "$instance is $name of $run"
export HOME=$ROOT/var/lib/gpt2-training # docker keeps its login there; /root may be read-only
retry "the folder $HOME" mkdir -p "$HOME"
prepare_docker
prepare_scratch
if [[ $gpus != 0 ]]; then prepare_gpus; fi
retry "the image" pull

options+=(
    --rm --name trainer --network host --shm-size 2g --stop-timeout 110
    --label "gpt2-run=$run" --label "gpt2-role=$role"
    --log-driver gcplogs --log-opt "labels=gpt2-run,gpt2-role"
    --env "GPT2_TRAINING_IMAGE=$image" --env "GPT2_TRAINING_ZONE=${zone##*/}" # for the run's report
)
for variable in GCE_METADATA_HOST GCE_METADATA_IP STORAGE_EMULATOR_HOST "${!CLOUDSDK_API_ENDPOINT_OVERRIDES_@}"; do
    if [[ -n ${!variable:-} ]]; then options+=(--env "$variable=${!variable}"); fi # other servers than Google's own
done

restarts=0 next=$((5 * PAUSE))
while true; do
    docker rm --force trainer >/dev/null 2>&1 || true # of a machine that lost its power
    say "starting the trainer"
    since=$EPOCHSECONDS
    # Its output goes to Cloud Logging by the log driver, and to `docker logs trainer`; here it would be there twice.
    docker run "${options[@]}" "$image" --bucket "$bucket" --run "$run" --name "$name" --role "$role" \
        --address "$address" --platform google >/dev/null 2>"$errors" &
    container=$!
    code=0
    wait "$container" || code=$?
    while kill -0 "$container" 2>/dev/null; do # a signal came: `wait` returns at once, the trainer takes its time
        code=0
        wait "$container" || code=$?
    done
    container=
    tail -n 20 "$errors"
    if [[ -n $stopping ]]; then say "the trainer has left"; exit 0; fi
    if ((code == 0)); then say "the trainer is done; nothing is left to do here"; exit 0; fi
    # Docker's own codes, if they come at once: it did not start the container. The GPU toolkit may not be ready yet, or
    # the log driver still lack its grant. Later, 125 is a lost connection to Docker: the trainer had started.
    if ((code >= 125 && code <= 127 && EPOCHSECONDS - since < REFUSAL)); then
        said=$(sed -n 's/^docker: //p' "$errors" | tail -n 1)
        said=${said:-code $code}
        if [[ -z $refused ]]; then refused=$since delay=$PAUSE; fi
        ((EPOCHSECONDS < refused + PATIENCE)) || give_up "waited $PATIENCE s for docker to start the trainer: $said"
        say "waiting for docker to start the trainer ($said)"
        pause "$delay"
        delay=$(longer "$delay")
        continue
    fi
    refused=
    if ((EPOCHSECONDS - since >= LIFE)); then restarts=0 next=$((5 * PAUSE)); fi
    ((restarts < RESTARTS)) ||
        give_up "the trainer ended $((RESTARTS + 1)) times, last with code $code ($(tail -n 1 "$errors"));" \
            "its log is in Cloud Logging, and raising \`launch\` starts the run again"
    restarts=$((restarts + 1))
    say "the trainer ended with code $code; restart $restarts of $RESTARTS in $next s"
    pause "$next"
    next=$(longer "$next")
done
