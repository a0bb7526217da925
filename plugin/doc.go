// Package plugin is the SDK for plugins of aimlock, and the way in which aimlock
// calls them. A plugin is a program that serves one or more kinds:
//
//	Evidence  finds out facts about a lock and its holder
//	Breaker   does one step of a break
//	Gate      says whether a rollout may go on
//	Target    writes configs to nodes
//	Fleet     lists nodes
//
// # Three moves
//
//  1. Write a struct. Its fields, with `config` tags, are the plugin's
//     configuration; what New puts in them are the defaults.
//  2. Give it the method of its kind, such as Ask of [Gate].
//  3. Call [Serve] in main.
//
// # The life of an instance
//
//  1. The factory in [Plugin], such as Plugin.Gate, makes a new value. This
//     happens to learn the schema too: a factory has no effects.
//  2. The configuration, checked against the schema, is put into its fields.
//  3. Validate, if it is a [Validator]. No effects: it may be called at any time,
//     for configurations that are never used.
//  4. Start, if it is a [Starter]: connections may be opened here.
//  5. The methods of its kind, from several goroutines at once.
//  6. Close, if it is an io.Closer.
//
// Every call has a context with a deadline. A panic becomes the error of that
// call. hclog.FromContext(ctx) logs to aimlock's own log. Nothing else is owed to
// the process that runs the plugin: stdout may be written to.
//
// # The host's side
//
// [Connect] gives a [Client] of a running plugin and [InProcess] one of a plugin
// in this process; both hand out the same interfaces. What a plugin says is
// checked on the way: see [CheckFacts].
//
// Files: kinds.go the interfaces; schema.go and config.go the configuration;
// runtime.go the life of instances; server.go and client.go the two ends of the
// wire; errors.go what survives it. The folder schema reads configurations in HCL.
//
// This package imports nothing of the rest of aimlock.
package plugin
