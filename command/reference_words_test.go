package command

import "strings"

// fieldWords says what a field of JSON is that has no comment in the code because its
// name says it there. An entry with the object's name before it counts first.
func fieldWords() map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(fieldTexts) {
		if name, text, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			out[name] = text
		}
	}
	return out
}

const fieldTexts = `
about: What it is, in a few words.
acquired_at: When it was acquired, by the holder's clock: for people.
acting: Whether it may break: its policies are the ones in force, and nothing is suspended.
action: Empty: apply. Or that the last good file is to be put back.
address: Prometheus's URL.
locksmith.PolicyChange.after: Hash of it now; empty: it is gone.
locksmith.ProgressView.age: Seconds since it was seen to change; null: not known.
records.Remembered.age: Seconds that it had stood still for when this was written.
agent: Version of the agent that answers.
alive: Whether its process lives; null: not known.
alloc_id: The Nomad allocation in which it runs.
approval: ` + "`auto`, `manual` or `never`" + `.
arch: Architecture that it was built for.
arguments: What its block takes.
argv: Program and arguments.
at: When it was written, by the clock of who wrote it.
locksmith.Event.at: When it was, by the clock that is named.
attempt: The how manieth break of this hold it is, from 1.
bake: How long it is watched after its last node, in seconds.
bakes: All bakes together, in seconds.
baking_since: When the present bake began, for people.
before: What stood before; null: nothing.
orchestrator.planPart.before: Nodes that an earlier rollout had served.
before_why: Why it is not known what stood before.
boot_id: Boot id of its host.
break: What is done about a HOT lock; null: nothing.
breakView.break: The record of the break; null: none was begun.
breaks: The breaks.
sweepView.broken: How many locks were broken.
budget: How much may still go wrong, and what was forgiven.
breakRulesView.budget: How often it may break by itself; null: no limit.
builtin: Whether it is the shipped default, and none was given.
busy: Who is at work: a lock, or a rollout.
by: Who, as user@host.
byte: Offset in the file, from 0.
ca_file: File with the CA's certificate.
capabilities: What it says that it can.
orchestrator.PauseInfo.cause: Who or what paused it: an operator, a gate, a failure.
cgroup: Its control group.
change: Whether the clocks change while the window is open.
changes: What differs, policy by policy.
check: What was looked at.
checks: Each thing that was looked at.
chunks: How many parts the plan has.
class: How the node ended: applied, failed, unreachable, skipped, rolled_back, superseded.
code: The lines of the file that it is about.
column: Column, from 1.
command: The program and its arguments.
filelock.Waiter.command: The process's name.
rolloutView.command: The last order of an operator, and what became of it.
commit: Commit that it was built from.
config: The config's name.
orchestrator.GatePlugin.config: What the plugin is given.
configs: The configs that it delivers.
confirm: How often the verdict is looked at again.
conflict: What its spec says of others of the same config: supersede or queue.
consul_key: Consul key in which its value is.
contents: The contents of renderings, in the order of their numbers.
count: How many.
counts: How many nodes are of each class.
sweepView.counts: How many locks are in each state.
created_at: When it was planned.
datacenter: Consul's datacenter.
default: Its value where none is given.
description: For people.
destination: The file's path on the node.
detail: More about it, in words.
diagnostics: What is wrong, as terraform validate prints it.
diff: The difference, as diff -u shows it.
doc: What it is.
done: Units of work done.
drifted_total: How many nodes drift in all.
dry_run: Whether nothing was changed.
duration: For how long it is open, in nanoseconds.
orchestrator.HeaderStage.end: Place in the plan after its last node.
policies.RangeJSON.end: Where it ends.
ended_at: When it ended.
ends: For each stage the place in the plan after its last node.
entries: Entries of the journal that were read.
env: Variable in which its value is.
epoch: Epoch of the hold.
epoch_before: The epoch until now.
error: Why it failed.
error_count: How many errors.
events: The log.
every: Seconds from one to the next.
evidence: The facts that it rests on.
exec: A program that is asked.
expires: When it counts no more.
fact: The fact's name.
facts: Facts that it reads or tells.
orchestrator.Budget.failed: How many have failed.
orchestrator.StageForgiven.failed: How many of its failed nodes are forgiven.
failure: How much may fail, and what happens past that.
failures: Nodes that failed, with why.
failures_more: How many more failed than are listed.
file: The file's path.
filename: The file's path.
files: The files that were written.
finished_at: When it ended; null: not yet.
fleet: The nodes, and where they come from.
flying: The nodes that have been in flight for longest.
folder: The folder in Consul.
follows: The rollout before it, of the same name.
for: Seconds that it must have held.
forgiven_failed: Failed nodes that an operator let pass.
forgiven_unreachable: Unreachable nodes that an operator let pass.
format_version: Version of this output's form.
freeze: Condition under which nothing is broken but on proof.
orchestrator.HeaderStage.from: Place in the plan of its first node.
gates: The gates.
planEstimate.gates: How many gates are asked.
go: Release of Go that it was built with.
group: The file's group.
hash: Hash of the policies.
runner.queuedRecord.hash: Hash of the spec and its contents.
headers: Headers of the request.
healthy: Command that says whether all is well afterwards.
held_for: Seconds for which it is held; null: not known.
highest: The highest order there; null: none.
highlight_end_offset: Where the part ends that is meant.
highlight_start_offset: Where the part begins that is meant.
holder: Who holds or held it; null: nobody, or it is not known.
holders: Who holds its slots.
host: Host name of the machine.
how: How it keeps it: owner, or inherited or passed.
http: A web server that is asked.
id: Its id.
in_flight: How many nodes have an order and have not answered it.
job: The Nomad job.
key: The whole key in Consul.
kind: Which kind of it.
kinds: What the plugin is: evidence, breaker, gate, target, fleet.
known: Whether the value is known.
limit: How many slots there are.
line: Line, from 1.
local: Whether it is on this host, in this boot, pid and time namespace.
lock: The lock's name.
orchestrator.Spec.lock: How its locks are taken.
locks: The locks.
policyView.locks: The patterns of names that it judges.
triedView.locks: The patterns of names that it judges.
replay.Report.locks: How many locks the journal tells of.
manual_promotions: How many stages wait for an operator.
max: At most so many.
max_parallel: At most so many nodes in flight; 0: no limit.
measured: How many nodes the estimate rests on.
method: The request's method.
mode: The file's permission, in octal.
filelock.Lock.mode: Shared or exclusive.
filelock.Waiter.mode: Shared or exclusive.
n: Its number, from 1.
name: Its name.
namespace: The Nomad namespace.
new_session: The session of who took it.
next: What happens next, and the command for it.
node: The node's name.
nodes: The nodes.
fleet.SourceCount.nodes: How many nodes it named.
planEstimate.nodes: How many nodes are still to be served.
nomad_deployment: A Nomad job's deployment that is asked for.
nonce: The hold's random name.
not_acting: Why it may not break.
note: More, for people.
nothing_to_do: Whether a start would begin nothing; the note then says how many nodes have it.
now: How it is now.
observations: How many.
observed_at: When it was looked at.
observer: Who saw it.
orchestrator.renderedPart.of: For each node the number of its rendering.
ok: Whether it is as it should be.
on_error: ` + "`abort` or `continue`" + `.
open: Whether it is open now.
os: System that it was built for.
output: The end of the output of the command that failed.
owed: Seconds that the next holder waits.
owner: The file's owner.
passed: Whether it came out as expected.
path: The plugin's file.
pattern: The pattern by which the policy judges it.
paused: Why it is paused; null: it is not.
per: In so many seconds.
pid: Process id.
pid_ns: Pid namespace.
plugin: A plugin that is asked.
policy: The policy's name.
policy_hash: Hash of the policies that judged.
problems: What went wrong.
processes: The processes of the hold.
progress: How far its work is; null: it does not tell.
prometheus: A Prometheus that is asked.
promoted: Whether an operator took the stage's bake and gates as passed.
proof: Whether the rule rests on proof.
protocol: Version of the plugin protocol.
quiesce: Seconds that the next holder waits.
range: Where it is.
rate: Units in a second; null: not known.
raw_holder: What stood in the key, where it is no holder record.
reason: Why, in words.
record: What stands now.
refused: The order that was refused.
region: The Nomad region.
released_at: When it was let go in good order; null: it was not.
reload: Command run once the file is in place.
rendered: What its nodes get where that differs from node to node.
reordered: Whether only the order of the policies differs.
required: Whether it must be given.
result: What came of it.
resumes: The rollout that would be gone on with.
revision: The first 12 digits of the content's SHA-256.
role: The role's name.
rollout: The rollout's id.
storyView.rollout: The rollout.
rollout_id: The rollout's id.
root: First of the rollouts that build on each other.
rule: The rule's name.
rules: The rules, in order.
runs: How many runs of an observer the journal tells of.
sdk: Version of the plugin SDK.
argView.secret: Whether its value is never shown.
session: The session's id.
sha256: SHA-256 of the content, in hex.
orchestrator.planHead.sha256: SHA-256 of the plan's parts.
silence: What stands now; null: none.
silences: Silences that stand.
since: Since when.
size: Size of the content in bytes.
skipped: Places in the plan of the nodes that were left out.
source: Where it comes from.
sources: How many nodes come from where.
spec: The spec, as it was read.
stage: The stage's name.
stage_index: Number of the present or last stage, from 0.
stages: The stages, in order.
start: Where it begins.
start_line: Number of the first line.
start_ticks: Field 22 of /proc/PID/stat, which tells a reused pid.
started_at: When it began.
state: Its state.
step: The step's kind.
steps: The steps.
summary: What is wrong, in a few words.
superseded_by: The rollout that took its place.
superseded_nodes: Places in the plan of the nodes that were superseded.
supersedes: The rollout whose place it would take.
suspended: Whether all automatic breaking is suspended.
locksmith.Recovery.suspended: The suspension that stands; null: none.
policyActiveReport.suspended: The suspension that stands; null: none.
tests: How many tests passed.
text: The file's text.
replay.Difference.then: How it was judged then.
time: When, by the node's clock: for people.
timeout: Bound in nanoseconds.
times: How often.
timezone: Whose clock is meant.
token: The fencing token; null: nobody holds it.
tool: The program that took it.
total: How many nodes in all.
records.Progress.total: Units of work in all.
locksmith.ProgressView.total: Units of work in all; null: not known.
ttl: TTL of the session in seconds.
type: Its type.
unchanged: Whether nothing differs.
unit: What is counted.
unreachable: Places in the plan of the nodes that are unreachable.
orchestrator.StageForgiven.unreachable: How many of its unreachable nodes are forgiven.
updated_at: When it was last decided upon.
url: What is asked.
user: The user that it runs as.
valid: Whether there is no error.
validate: Command run on the staged copy.
value: Its value.
verb: What was ordered: pause, resume, abort, rollback, promote, skip.
version: Version of the record's form.
pluginView.version: The plugin's version.
records.Secret.version: A new one is a new revision.
version.Info.version: The version.
wait: Seconds to wait after it.
waiting: How many wait.
warning_count: How many warnings.
warnings: What is odd, in words.
what: What it is, in words.
when: The condition.
why: Why, in words.
window: When nodes may be put at risk; null: always.
`
