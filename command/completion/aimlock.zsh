#compdef aimlock
# Completion of aimlock in zsh: eval "$(aimlock completion zsh)" after compinit,
# or save it as _aimlock in a folder of $fpath.
_aimlock() {
  local line="${(j: :)words[1,CURRENT-1]} ${PREFIX}"
  local -a found folders
  found=("${(@f)$(COMP_LINE="$line" COMP_POINT="${#line}" "${words[1]}" 2>/dev/null)}")
  found=(${found:#})
  # A folder is only the beginning of a path.
  folders=(${(M)found:#*/})
  found=(${found:#*/})
  # What stands before an equals sign is not part of what is found.
  compset -P '-*='
  (( ${#folders} )) && compadd -S '' -- "${folders[@]}"
  (( ${#found} )) && compadd -- "${found[@]}"
}
if [ "${funcstack[1]}" = "_aimlock" ]; then
  _aimlock "$@"
else
  compdef _aimlock aimlock
fi
