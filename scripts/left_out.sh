#!/usr/bin/env bash
# Name, one line each, the larger parts that `make test` left out on this machine and how to include them.
set -euo pipefail
if [ -z "${ABYSSAL_CORPORA:-}" ] && [ ! -d /usr/share/doc/debian-handbook/html ]; then
    echo "left out: the tokenizer on the Debian handbook's text: apt-get install debian-handbook, or ABYSSAL_CORPORA=FOLDER"
fi
if [ "${ABYSSAL_TEST_PROFILE:-fast}" != full ]; then
    echo "left out: the full number of random cases (about an hour): ABYSSAL_TEST_PROFILE=full make test"
fi
echo "left out: other processors' instructions: make test-tiers; torch 2.8: make test-oldest-torch"
