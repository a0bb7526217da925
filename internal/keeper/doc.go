// Package keeper keeps one command running beside the configs that it reads: it
// starts it once there is a first one of each, restarts or signals it when one
// has changed, and starts it again, within bounds, when it crashes.
//
// It decides, and touches no process and no file by itself: both are handed to
// it ([Options]). Start at [Keeper.Run], which owns all state in one goroutine
// (loop.go).
//
// Changes come by two ways. [Keeper.Changed] is called by the fence, while an
// order is carried out, and waits for what becomes of the command: if it ends,
// the order fails, and the fence puts the last good file back. [Keeper.Poke] is
// for what others have delivered, where nobody waits for an answer.
//
// Fail static: nothing but a change that is there, or the command's own end,
// ever ends the command. A change that cannot be used (an environment that cannot
// be read) leaves it running as it is.
//
// It imports the agent's package for what stands on the node.
package keeper
