# Completion of aimlock in bash: eval "$(aimlock completion bash)"
_aimlock() {
  local IFS=$'\n' line point
  # Up to the cursor; bash parts words at colons too, which stay whole here.
  line=${COMP_LINE:0:COMP_POINT} point=$COMP_POINT
  COMPREPLY=($(COMP_LINE="$line" COMP_POINT="$point" "$1" 2>/dev/null))
  # Bash puts what it is given in place of what stands behind the last colon or
  # equals sign.
  local typed=${line##*[[:space:]]}
  case $typed in
  *:*)
    local before=${typed%"${typed##*:}"}
    [[ $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"$before"}")
    ;;
  esac
  # A folder is only the beginning of a path.
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == */ ]] && compopt -o nospace
  return 0
}
complete -F _aimlock aimlock
