#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs a tool on the Python that has what it needs: the project's own environment, or the system's.
# If none has, the project's is made. Sourced; `needs` names modules.

scripts=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
version=$(cksum <"$scripts/requirements.txt" | cut -d ' ' -f 1)
cache=${FERRULE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ferrule}
environment=$cache/tools/venv-$version

# Answers without importing them, which takes its time.
usable() {
	# shellcheck disable=SC2086,SC2154 # a list of words, which the tool sets
	"$1" -c 'import importlib.util as i, sys
sys.exit(not (sys.version_info >= (3, 11) and all(i.find_spec(name) for name in sys.argv[1:])))' \
		$needs 2>/dev/null
}

# run_python PACKAGE ARGUMENT...
run_python() {
	local python
	for python in ${VENV:+"$VENV/bin/python3"} "$environment/bin/python3" python3 \
		/usr/bin/python3; do
		! usable "$python" || PYTHONPATH=$scripts exec "$python" -m "$@"
	done
	"$scripts/tools.sh" >/dev/null || exit
	PYTHONPATH=$scripts exec "$environment/bin/python3" -m "$@"
}
