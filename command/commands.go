// Package command is aimlock's command line: one file a verb. It turns flags
// and files into calls of the packages below and their answers into text, JSON
// and exit codes, and holds no logic of locks or rollouts itself. Only main
// imports it. Start with commands (this file), then command.go for what a
// command is made of and meta.go for what every command is given.
package command

// commands is the whole list of verbs. To add one:
//
//  1. Make a file named after it (lock_list.go for "lock list") with a
//     constructor `func newLockList(m *Meta) *command`. It fills in Synopsis,
//     Usage, Description and Examples, registers its own flags in Flags, says
//     by Groups which shared flags it takes, and does its work in Run. See
//     version.go for a short one.
//  2. Add one line below, in alphabetical order.
//  3. Add a script under testdata/script that runs it.
//
// A constructor only fills in a struct: it runs for the help text of a parent
// as well, and must neither read nor connect to anything. A parent such as
// "lock" needs no line, only one in parents.
func commands() map[string]constructor {
	return map[string]constructor{
		"acl":              newACL,
		"agent apply":      newAgentApply,
		"agent exec":       newAgentExec,
		"agent status":     newAgentStatus,
		"agent template":   newAgentTemplate,
		"agent":            newAgent,
		"completion":       newCompletion,
		"demo":             newDemo,
		"dev":              newDev,
		"doctor":           newDoctor,
		"init":             newInit,
		"lock approve":     newLockApprove,
		"lock break":       newLockBreak,
		"lock exec":        newLockExec,
		"lock explain":     newLockExplain,
		"lock list":        newLockList,
		"lock request":     newLockRequest,
		"lock silence":     newLockSilence,
		"lock status":      newLockStatus,
		"lock watch":       newLockWatch,
		"locksmith":        newLocksmith,
		"man":              newMan,
		nomadDevice:        newNomadDevicePlugin,
		"plugin info":      newPluginInfo,
		"plugin list":      newPluginList,
		"plugin verify":    newPluginVerify,
		"policy apply":     newPolicyApply,
		"policy check":     newPolicyCheck,
		"policy fmt":       newPolicyFmt,
		"policy replay":    newPolicyReplay,
		"policy resume":    newPolicyResume,
		"policy show":      newPolicyShow,
		"policy suspend":   newPolicySuspend,
		"policy test":      newPolicyTest,
		"recover":          newRecover,
		"rollout abort":    newRolloutAbort,
		"rollout list":     newRolloutList,
		"rollout pause":    newRolloutPause,
		"rollout plan":     newRolloutPlan,
		"rollout promote":  newRolloutPromote,
		"rollout report":   newRolloutReport,
		"rollout resume":   newRolloutResume,
		"rollout rollback": newRolloutRollback,
		"rollout skip":     newRolloutSkip,
		"rollout start":    newRolloutStart,
		"rollout status":   newRolloutStatus,
		"rollout tick":     newRolloutTick,
		"rollout watch":    newRolloutWatch,
		"ui":               newUI,
		"version":          newVersion,
	}
}

// parents holds the synopsis of each verb that only has subcommands.
func parents() map[string]string {
	return map[string]string{
		"lock":    "Show, explain, take and break locks",
		"plugin":  "List and check plugins",
		"policy":  "Check, test and apply the policies that judge locks",
		"rollout": "Roll a config file out to a fleet in stages",
	}
}
