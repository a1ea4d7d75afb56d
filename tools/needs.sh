#!/bin/sh
# Checks for the needs of a build that Python cannot install by itself, and names their packages.
#
#   tools/needs.sh PYTHON       exit status 1 if anything is missing; all of it is listed at once
set -u
python=${1:?the Python interpreter to check}
missing=0 debian='' fedora=''

need() { # what is missing, Debian's package, Fedora's package
    printf '  missing: %s\n' "$1" >&2
    missing=1
    case " $debian " in *" $2 "*) ;; *) debian="$debian $2" ;; esac
    case " $fedora " in *" $3 "*) ;; *) fedora="$fedora $3" ;; esac
}

compiles() { # language, compiler (may hold options), source text
    # shellcheck disable=SC2086
    printf '%s\n' "$3" | $2 -x "$1" - -fsyntax-only >/dev/null 2>&1
}

system=$(uname -s) machine=$(uname -m)
if [ "$system" != Linux ]; then
    printf 'Clockwork runs on Linux; this is %s.\n' "$system" >&2
    exit 1
fi
case $machine in
x86_64 | aarch64) ;;
*) printf 'note: Clockwork is meant for x86-64 and aarch64; %s is untried.\n' "$machine" >&2 ;;
esac

if ! command -v "$python" >/dev/null 2>&1; then
    need "$python (Python 3.11 or newer; another one: make PYTHON=/path/to/python3)" python3 python3
    need 'the venv module of Python' python3-venv python3
    need 'Python.h, the headers of Python' python3-dev python3-devel
    cc=${CC:-cc} cxx=${CXX:-c++}
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    for newer in python3.14 python3.13 python3.12 python3.11; do
        if command -v "$newer" >/dev/null 2>&1; then
            printf '%s is Python %s; 3.11 or newer is needed. There is one: make PYTHON=%s ...\n' \
                "$python" "$version" "$newer" >&2
            exit 1
        fi
    done
    need "Python 3.11 or newer ($python is $version); then: make PYTHON=python3.12 ..." \
        'python3.12 python3.12-venv python3.12-dev' 'python3.12 python3.12-devel'
    cc=${CC:-cc} cxx=${CXX:-c++}
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        need "the venv and ensurepip modules of $python" \
            "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" python3
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        need "Python.h, the headers of $python" \
            "$("$python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')" python3-devel
    # The compiler of setuptools: that which built Python itself, unless CC or CXX name another.
    cc=${CC:-$("$python" -c 'import sysconfig; print((sysconfig.get_config_var("CC") or "cc").split()[0])')}
    cxx=${CXX:-$("$python" -c 'import sysconfig; print((sysconfig.get_config_var("CXX") or "c++").split()[0])')}
fi
compiles c "$cc" '#include <stdio.h>' || need "a C compiler with headers ($cc)" build-essential gcc
compiles c++ "$cxx" '#include <vector>' || need "a C++ compiler with headers ($cxx)" build-essential gcc-c++

if [ "$missing" = 1 ]; then
    printf 'Install what is missing, for example\n' >&2
    printf '  Debian, Ubuntu:  apt install%s\n' "$debian" >&2
    printf '  Fedora, RHEL:    dnf install%s\n' "$fedora" >&2
    exit 1
fi
