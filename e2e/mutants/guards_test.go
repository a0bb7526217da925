//go:build mutants

package mutants

// guards are the guards of the protocol, each left out. The tests named are
// those that are about the protocol as a whole or on the wire, not all that
// would fail.
var guards = []mutant{
	{
		name: "check-session in the holder's writes",
		file: locks + "/hold.go",
		old:  "h.guards = append(h.guards, consulkv.CheckSession(k, h.sess.id), consulkv.CheckIndex(k, h.token))",
		new:  "h.guards = append(h.guards, consulkv.CheckIndex(k, h.token))",
		run:  "TestRestoredServersThatHandOutTheSameIndex|TestEveryWriteOfAHolderBeginsWithItsGuards",
	},
	{
		name: "check-index of the lock in the holder's writes",
		file: locks + "/hold.go",
		old:  "h.guards = append(h.guards, consulkv.CheckSession(k, h.sess.id), consulkv.CheckIndex(k, h.token))",
		new:  "h.guards = append(h.guards, consulkv.CheckSession(k, h.sess.id))",
		run:  "TestFencedWriteRefusedAfterForeignWrites|TestEveryWriteOfAHolderBeginsWithItsGuards",
	},
	{
		name: "both guards in the holder's writes",
		file: locks + "/hold.go",
		old:  "h.guards = append(h.guards, consulkv.CheckSession(k, h.sess.id), consulkv.CheckIndex(k, h.token))",
		new:  "_ = k",
		run:  "TestHistory",
	},
	{
		name: "the pen",
		file: locks + "/write.go",
		old:  "consulkv.CheckIndex(h.penKey(), pen))",
		new:  "consulkv.GetOrEmpty(h.penKey()))",
		run:  "TestLateWriteOfTheSameHold|TestLateWriteOfACallThatGaveUp",
	},
	{
		name: "check-session in a break",
		file: locks + "/breaking.go",
		old:  "ops := []consulkv.Op{consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index())}",
		new:  "ops := []consulkv.Op{consulkv.CheckIndex(s.Key, s.Index())}",
		run:  "TestEveryBreakBeginsWithItsGuards",
	},
	{
		name: "check-index of the lock in a break",
		file: locks + "/breaking.go",
		old:  "ops := []consulkv.Op{consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index())}",
		new:  "ops := []consulkv.Op{consulkv.CheckSession(s.Key, s.SessionID())}",
		run:  "TestEveryBreakBeginsWithItsGuards",
	},
	{
		name: "check-index of the progress in a break",
		file: locks + "/breaking.go",
		old:  "list := []string{c.keys.Progress(s.Name), c.keys.Fence(s.Name)}",
		new:  "list := []string{c.keys.Fence(s.Name)}",
		run:  "TestHolderThatComesBackToLifeIsNotBroken|TestProgressOfAnyLockKeepsTheHold",
	},
	{
		name: "the intent before the steps",
		file: locks + "/breaking.go",
		old:  "	out, err := b.c.consul.Txn(ctx, ops...)\n	switch {\n	case err == nil:\n		for _, t := range b.targets {\n			t.index = out.Find(t.key).ModifyIndex\n		}\n		return nil",
		new:  "	out, err := b.c.consul.Txn(ctx, ops[len(ops)-len(b.targets):]...)\n	switch {\n	case err == nil:\n		for _, t := range b.targets {\n			t.index = out.Find(t.key).ModifyIndex\n		}\n		return nil",
		run:  "TestIntentRestsOnThePermit|TestBudgetRace|TestEveryBreakBeginsWithItsGuards",
	},
	{
		name: "the outcome in the transaction that ends the hold",
		file: locks + "/ending.go",
		old:  "e.outcome = consulkv.CAS(t.key, records.Encode(&rec), t.index)",
		new:  "e.outcome = consulkv.Set(t.key, records.Encode(&rec))",
		run:  "TestLateTake|TestAmbiguousTake|TestAmbiguousBreak",
	},
	{
		name: "the applied policy and the switch",
		file: locks + "/permit.go",
		old:  "p.guards = append(p.guards, consulkv.CheckIndex(kActive, active.ModifyIndex), consulkv.CheckIndex(kSuspended, suspended.ModifyIndex))",
		new:  "",
		run:  "TestIntentRestsOnThePermit|TestBrakesHoldToTheEnd",
	},
	{
		name: "the budget by CAS",
		file: locks + "/permit.go",
		old:  "return consulkv.CAS(key, records.Encode(&rec), permit.budgetIndex), \"\"",
		new:  "return consulkv.Set(key, records.Encode(&rec)), \"\"",
		run:  "TestBudgetRace",
	},
	{
		name: "the durable quiesce of a break",
		file: locks + "/ending.go",
		old:  "	ops = append(ops, b.c.setFence(t.v.Snapshot, e.fence)...)\n",
		new:  "	ops = append(ops, consulkv.Delete(b.c.keys.Fence(name)))\n",
		run:  "TestQuiesceAfterABreakOnly",
	},
	{
		name: "the durable quiesce of an end that was not clean",
		file: locks + "/acquire.go",
		old:  "		ops = append(ops, c.setFence(s, fence)...)\n",
		new:  "",
		run:  "TestQuiesceSurvivesCrashes",
	},
	{
		name: "self-fencing",
		file: locks + "/session.go",
		old:  "	return left - LeaseMargin\n",
		new:  "	return max(left, time.Second)\n",
		run:  "TestSelfFencing",
	},
	{
		name: "self-fencing of a process that wakes",
		file: locks + "/session.go",
		old:  "	if s.leaseLeft() <= 0 {\n		s.die(errLeaseOver)\n	}\n	s.mu.Lock()",
		new:  "	s.mu.Lock()",
		run:  "TestNothingIsSentAfterTheLease|TestAnswerOfBeforeDoesNotExtendALeaseThatIsOver",
	},
	{
		name: "the nonce that tells whose acquisition stands",
		file: locks + "/acquire.go",
		old:  "err != nil || rec.Nonce != a.recs[a.req.Names[0]].Nonce",
		new:  "err != nil",
		run:  "TestAmbiguousAcquireThatWasRewritten",
	},
	{
		name: "the session of an acquisition that does not stand is destroyed",
		file: locks + "/wait.go",
		old:  "	case errors.Is(err, errNotOurs):\n		w.drop(ctx)\n",
		new:  "	case errors.Is(err, errNotOurs):\n		w.att = nil\n",
		run:  "TestLateAcquire",
	},
	{
		name: "the order check on the node",
		file: agents + "/fence.go",
		old:  "	case c < 0:\n		return w.refuse(d)\n",
		new:  "	case c < 0:\n		w.st.Mark, w.st.Phase, w.st.Prev, w.st.Refused = d.Order, phaseAccepted, nil, nil\n",
		run:  "TestFenceProperty|TestApply",
	},
	{
		name: "the check again before the rename",
		file: agents + "/order.go",
		old:  "	if err := w.recheck(); err != nil {\n		// Not ours any more: neither the file nor the journal is touched.\n		p.t.unstage()\n		return outcome{}, err\n	}\n",
		new:  "",
		run:  "TestNewerMarkJustBeforeTheRename",
	},
	{
		name: "every check again on the node",
		file: agents + "/fence.go",
		old:  "func (w *work) recheck() error {\n",
		new:  "func (w *work) recheck() error {\n	if w.dir != \"\" {\n		return nil\n	}\n",
		run:  "TestLockFileReplaced",
	},
}
