package command

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// slotNames are the locks that n slots of a name are.
func slotNames(name string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = name + "." + strconv.Itoa(i)
	}
	return out
}

// slotOf is the number of the slot whose lock it is.
func slotOf(lock string) string { return lock[strings.LastIndexByte(lock, '.')+1:] }

// slotsRefused names every holder: any of them would have had to let go.
func slotsRefused(name string, ref *locksmith.RefusedError) error {
	var b strings.Builder
	fmt.Fprintf(&b, "ERROR: %s: %s\n  %-9s %s: none of %d slots is to be had\n", name, ref.Status.State, "refused", ref.Why, len(ref.Slots))
	for _, st := range ref.Slots {
		fmt.Fprintf(&b, "  %s: %s\n%s", st.Name, st.State, statusLines(st, "", "    "))
	}
	code := ExitLockBusy
	if ref.Hot {
		code = ExitLockHot
	}
	return refused(code, b.String())
}

// slotsDiffer is for contenders that give different -n.
func slotsDiffer(name string, e *locksmith.SlotsError) error {
	text := fmt.Sprintf("ERROR: %s: %s\n  %-9s %s is held by somebody who gave -n %d, and this is -n %d: all who share a semaphore must give the same\n%s",
		name, locksmith.Held, "refused", e.Status.Name, e.Theirs, e.Ours, statusLines(e.Status, "", "  "))
	return refused(ExitLockBusy, text)
}

// heldSlots names one of n slots that are held.
func heldSlots(n int, one string) string {
	if n == 1 {
		return "its slot " + text.Printable(one) + " is"
	}
	return fmt.Sprintf("%d of its slots are, such as %s", n, text.Printable(one))
}
