# Runs on the far side: sh -c SCRIPT aimlock OPERATION DESTINATION ARGUMENT...
# The first line of its output is the answer. The mark holds the newest order that
# was seen; it is written before the config, so that it never goes back, whatever
# dies in between: the same order, sent again, then writes the config.
set -u
umask 077
fail() { echo "failed $*"; exit 0; }
op=$1 dest=$2
shift 2
dir=$(dirname -- "$dest") base=$(basename -- "$dest")
mark=$dir/.$base.aimlock
if [ "$op" = apply ]; then
	[ -d "$dir" ] || (umask 022 && mkdir -p -- "$dir") || fail "the folder $dir cannot be made"
fi
if [ ! -d "$dir" ]; then
	case $op in
	read) echo "absent 0 0 0" ;;
	*) echo missing ;;
	esac
	exit 0
fi
exec 9>>"$mark.lock" || fail "$dir cannot be written to"
flock 9 || fail "flock"
he=0 ht=0 hs=0
if [ -f "$mark" ]; then
	read -r he ht hs _ <"$mark" || fail "the mark $mark is damaged: $(wc -c <"$mark") bytes"
fi

# fence EPOCH TOKEN SEQ ends here if the order is older than the mark.
fence() {
	if [ "$1" -lt "$he" ] || { [ "$1" -eq "$he" ] && [ "$2" -lt "$ht" ]; } ||
		{ [ "$1" -eq "$he" ] && [ "$2" -eq "$ht" ] && [ "$3" -lt "$hs" ]; }; then
		echo "stale $he $ht $hs"
		exit 0
	fi
	same=no
	[ "$1 $2 $3" = "$he $ht $hs" ] && same=yes
}

# remember makes the order the mark, on the disk.
remember() {
	printf '%s %s %s\n' "$1" "$2" "$3" >"$mark.new" && sync "$mark.new" && mv -f -- "$mark.new" "$mark" && sync "$dir" || fail "the mark cannot be written"
}

sum_of() { sha256sum <"$1" | cut -d ' ' -f 1; }

case $op in
apply)
	order=$1 sum=$2 mode=$3
	# shellcheck disable=SC2086
	fence $order
	cat >"$mark.part" || fail "the content cannot be written"
	[ "$(sum_of "$mark.part")" = "$sum" ] || fail "the content did not arrive whole"
	chmod -- "$mode" "$mark.part" || fail "mode $mode"
	sync "$mark.part" || fail "sync"
	if [ -f "$dest" ] && [ "$(sum_of "$dest")" = "$sum" ]; then
		rm -f -- "$mark.part"
		# shellcheck disable=SC2086
		remember $order
		echo unchanged
		exit 0
	fi
	# Before the mark: an order that is sent again keeps nothing, since what stands may
	# be its own.
	if [ -f "$dest" ] && [ $same = no ]; then
		cp -p -- "$dest" "$mark.keep" && sync "$mark.keep" && mv -f -- "$mark.keep" "$mark.last" || fail "the last good revision cannot be kept"
	fi
	# shellcheck disable=SC2086
	remember $order
	mv -f -- "$mark.part" "$dest" && sync "$dir" || fail "the config cannot be put in its place"
	echo ok
	;;
restore)
	# shellcheck disable=SC2086
	fence $1
	if [ ! -f "$mark.last" ]; then
		echo missing
		exit 0
	fi
	# shellcheck disable=SC2086
	remember $1
	cp -p -- "$mark.last" "$mark.part" && sync "$mark.part" && mv -f -- "$mark.part" "$dest" && sync "$dir" || fail "the config cannot be put in its place"
	echo ok
	;;
read)
	if [ ! -f "$dest" ]; then
		echo "absent $he $ht $hs"
		exit 0
	fi
	echo "ok $he $ht $hs"
	echo "$(sum_of "$dest") $(wc -c <"$dest")"
	[ "$1" = yes ] && cat <"$dest"
	exit 0
	;;
esac
