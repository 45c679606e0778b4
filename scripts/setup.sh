# Sourced by the other scripts: makes .venv hold edged with the extras asked for, once per change of pyproject.toml.

edged_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "edged needs Python 3.11 or newer" >&2
  return 1
}

# The extras that hold everything of $1, in the order of their names: "[dev]" holds "[test]" holds none.
edged_supersets() {
  case "$1" in
    "") echo "- [test] [dev]" ;;
    "[test]") echo "[test] [dev]" ;;
    *) echo "$1" ;;
  esac
}

edged_setup() {
  local extras="$1" stamp=.venv/.edged-setup python sum held
  sum=$(sha256sum pyproject.toml | cut -d' ' -f1)
  if [ -x .venv/bin/edged ] && [ -f "$stamp" ]; then
    for held in $(edged_supersets "$extras"); do
      if grep -qxF -- "$held $sum" "$stamp"; then return; fi
    done
  fi
  if [ ! -x .venv/bin/python ]; then
    python=$(edged_python)
    "$python" -m venv .venv
  fi
  echo "installing edged into .venv (llama.cpp is compiled for this CPU the first time: about 4 minutes on 2 cores)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
  echo "${extras:--} $sum" >> "$stamp"
}
