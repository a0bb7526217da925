// Package supervise runs one command whose whole process tree dies when the
// process that ordered it does, kill -9 included, and that ends within a bound
// when it is told to, or when nobody told it to go on.
//
// It exists because a lock is worth nothing while the work of its last holder
// runs on beside that of the next one.
//
// # How
//
// [Prepare] starts this program again as a supervisor, which init in main.go makes of
// it, before the lock is taken, so that its pid can stand in the holder record. Parent
// and supervisor share a socket pair, and no other process has an end of it:
//
//   - The socket ends: the parent is dead, however it died. The supervisor kills
//     the tree, at once or after Config.OrphanGrace.
//   - The parent lives but cannot act (SIGSTOP, a hung disk, swapping): it sent
//     leases ([Supervisor.ExtendTo]). SIGTERM, grace and SIGKILL are taken out of the
//     lease, so that the tree is gone when it ends. It is measured on the clock
//     that goes on while the machine is suspended.
//   - The supervisor itself is killed: the kernel kills the command (parent-death
//     signal), and the parent kills what it finds of the rest, by process group
//     and by the nonce in the environment. That finds all but what cleaned its
//     environment and left the group, so it counts as no proof.
//
// The tree is every descendant of the supervisor: it is the reaper of orphans
// (PR_SET_CHILD_SUBREAPER), so what calls setsid or forks twice is still its own,
// and "no process left" is the kernel's word (ECHILD), not a search. When the
// command ends by itself while others that it started run on, they are ended too
// (SIGTERM, grace, SIGKILL) before [Supervisor.Wait] returns, as the lock is
// about to be let go. This is what systemd does with KillMode=control-group.
//
// # What escapes
//
// Work that is handed to a daemon (docker, systemd-run, at, ssh to another host)
// belongs to the daemon. A process of another user (sudo) can be ended only by
// who may signal it; then [ErrSurvivors] says so. If parent and supervisor are
// both killed with SIGKILL at the same time, the command dies, and what it had
// started lives on, visible to hostproc.TreeGone by its nonce. The supervisor
// calls itself "lock-supervisor", so that `pkill -f aimlock` does not hit both.
//
// Outside Linux there is no reaper of orphans and no parent-death signal: there
// only the command's process group is ended.
//
// # Order of calls
//
//  1. Prepare, then Process for the holder record; the lock is taken while the supervisor
//     comes up.
//  2. ExtendTo, then Start. A lease that has run out refuses the start.
//  3. ExtendTo after each renewal; Signal as they come; Stop when the lock is lost.
//  4. Wait: nothing of the tree is left when it returns, unless its error is
//     ErrSurvivors. Then the lock may be let go.
//  5. Close in any case.
//
// It may import records and hostproc. The decisions are in machine.go, which
// does nothing by itself; main.go carries them out.
package supervise
