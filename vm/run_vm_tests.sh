#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Tests of the kernel module in a virtual machine that runs by itself; --help says what there is.
exec python3 "$(dirname "$(readlink -f "$0")")/run.py" "$@"
