# DeepSpeed, for configs/accelerate/deepspeed_zero*.yaml: `bash setup.sh deepspeed`. Sourced by setup.sh; uses fail.

# install_deepspeed: into .venv, built here without its compiled operators, which nothing in this project uses.
install_deepspeed() {
    local stamp=.venv/.deepspeed-stamp fingerprint
    fingerprint="$(sha256sum < requirements/deepspeed.txt)"
    [[ -f $stamp && "$(< "$stamp")" == "$fingerprint" ]] && return
    DS_BUILD_OPS=0 .venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps \
        --no-build-isolation --require-hashes -r requirements/deepspeed.txt ||
        fail "installing DeepSpeed failed (message above); check the network and start again"
    echo "$fingerprint" > "$stamp.new" && mv "$stamp.new" "$stamp"
}
