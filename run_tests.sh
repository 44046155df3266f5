#!/usr/bin/env bash
# Run the whole test suite: style, types, layers and behaviour. Sets itself up on first use; arguments go to pytest.
set -euo pipefail
# shellcheck source=.setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/.setup.sh"

set_up test
cd -- "$root"
exec "$venv_python" -m pytest "$@"
