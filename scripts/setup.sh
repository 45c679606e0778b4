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

edged_setup() {
  local extras="$1" stamp wanted
  stamp=.venv/.edged-setup
  wanted="$extras $(sha256sum pyproject.toml | cut -d' ' -f1)"
  if [ -x .venv/bin/edged ] && grep -qxF "$wanted" "$stamp" 2>/dev/null; then
    return
  fi
  [ -x .venv/bin/python ] || "$(edged_python)" -m venv .venv
  echo "installing edged into .venv (llama.cpp is compiled for this CPU the first time: about 4 minutes on 2 cores)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
  echo "$wanted" >> "$stamp"
}
