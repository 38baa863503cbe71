# Parts in environments of their own (bash setup.sh PART): whether what is installed is what this checkout asks for.
# Sourced by isaaclab_python.sh, gr00t_python.sh and tests/run.sh; uses REPO and die from there.

# part_fingerprint NAME: what the stamp of a part holds where setup_part (setup_parts.sh) has nothing to do. Written down
# again, not taken from there: that file is in the fingerprint, and editing it would make every environment anew.
part_fingerprint() {
    { cat "$REPO/scripts/setup_parts.sh" "$REPO"/requirements/"$1"*; echo "$REPO"; } | sha256sum | cut -d' ' -f1
}

# require_part NAME TITLE GIGABYTES WHO: goes on where .venv-NAME is up to date, else dies with the command; WHO needs it.
require_part() {
    local stamp="$REPO/.venv-$1/.setup-stamp"
    [[ -f $stamp ]] ||
        die "$4 needs $2, which is not installed; install it once (Python 3.12, $3 GB): bash setup.sh $1"
    [[ "$(< "$stamp")" == "$(part_fingerprint "$1")" ]] ||
        die "$2 was set up from other lists of packages or for another folder; set it up again: bash setup.sh $1"
}
