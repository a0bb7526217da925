# Completion of aimlock in fish:
# aimlock completion fish > ~/.config/fish/completions/aimlock.fish
function __aimlock_complete
    set -l line (commandline -cp)
    set -l program (commandline -opc)[1]
    set -l found (COMP_LINE="$line" COMP_POINT=(string length -- "$line") $program 2>/dev/null)
    # What stands before an equals sign is not part of what is found, but fish
    # wants the whole word.
    set -l before (string match -r -- '^-[^=]*=' (commandline -ct))
    for one in $found
        echo "$before$one"
    end
end
complete -c aimlock -f -a '(__aimlock_complete)'
