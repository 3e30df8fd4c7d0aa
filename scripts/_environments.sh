# Virtual environments that know what they are made of and where they are. Sourced, from the folder of the
# checkout.

# The state of an environment that is made of these files, here: an environment does not move.
state_of() {
    (cat "$@" && pwd -P) | sha256sum | cut -d' ' -f1
}

# is_there ENVIRONMENT STATE
is_there() {
    [ "$(cat "$1/.installed" 2>/dev/null)" = "$2" ] && [ -x "$1/bin/python" ]
}

# Let one script at a time make environments; the system frees the lock of one that dies.
lock_environments() {
    exec 9> .setup.lock
    if command -v flock > /dev/null; then
        flock 9
    fi
}

# begin ENVIRONMENT PYTHON: what is there goes where it is of another place, or of a Python that is gone.
begin() {
    if [ ! -x "$1/bin/python" ] || [ "$(cat "$1/.place" 2>/dev/null || pwd -P)" != "$(pwd -P)" ]; then
        rm -rf "$1"
        "$2" -m venv "$1"
    fi
    pwd -P > "$1/.place"
}
