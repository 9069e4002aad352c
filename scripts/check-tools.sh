#!/bin/sh
# Says, one line each, which tools are missing that the build needs, and how to get them. Silent when all are there.
set -eu
missing=0
need() {                               # need COMMAND PURPOSE HOW
    command -v "$1" >/dev/null 2>&1 && return
    echo "setup: $1 is missing ($2): $3" >&2
    missing=1
}
need "${CARGO:-cargo}" "the Rust build tool" "install Rust 1.89 or newer, with rustup or from your distribution"
need cc "C compiler and linker" "Debian, Ubuntu: apt install build-essential; Fedora: dnf install gcc"
need c++ "libtorch's bindings are C++" "Debian, Ubuntu: apt install build-essential; Fedora: dnf install gcc-c++"
need make "librdkafka is built with it" "Debian, Ubuntu: apt install build-essential; Fedora: dnf install make"
need bash "librdkafka's configure script" "install bash from your distribution"
need python3 "downloads libtorch and the models" "Debian, Ubuntu: apt install python3 python3-pip; Fedora: dnf install python3 python3-pip"
[ "$missing" = 0 ] || { echo "setup: install what is missing and run the same command again" >&2; exit 1; }
