// Package host finds, starts and watches the plugins that run in processes of
// their own, and fits them in where built-in gates, steps, facts, fleets and
// targets stand.
//
// # From a file to an answer
//
//  1. [ReadBlock] reads a `plugin` block of aimlock.hcl; [New] joins the blocks with
//     what lies in the folder of plugins. Nothing runs yet.
//  2. The first use starts the process ([Plugin.Info], or a call): the file is
//     looked at, nobody else may be able to change it, and its SHA-256 must be the
//     one that the block pins.
//  3. It runs under a supervisor (internal/supervise), so that nothing of it is left
//     when it ends, when it is ended, or when this process is killed.
//  4. A call has a bound. Its process may die in the middle of it, or never answer:
//     that is an error of that call, which names the plugin and the way out. One
//     that does not answer is ended; the next call starts another, after a pause
//     that grows.
//
// Invariant: no call waits longer than its bound, whatever a plugin does, and no
// process of a plugin outlives [Host.Close] or this process.
//
// plugin.go is the life of one process after another, process.go that of one,
// call.go an instance that survives them, logs.go what it writes to stderr. One file
// for each kind makes a plugin what the rest of aimlock asks for.
package host
