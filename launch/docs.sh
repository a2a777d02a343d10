#!/usr/bin/env bash
# Builds the site into build/site; a broken link fails. Arguments go to mkdocs (./launch/docs.sh serve).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=build/docs-environment
if [ "$(cat "$environment/.installed" 2>/dev/null)" != "$(sha256sum <launch/env/docs.txt)" ]; then
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check -r launch/env/docs.txt
    sha256sum <launch/env/docs.txt >"$environment/.installed"
fi
export NO_MKDOCS_2_WARNING=1 # of plans of others for another program
exec "$environment/bin/mkdocs" "${@:-build}"
