package policies

import (
	"testing"
	"time"
)

// The counts of BenchmarkCount… are held to a baseline: make bench-check.

func BenchmarkCountJudge(b *testing.B) {
	set, err := Builtin(BuiltinDefault)
	if err != nil {
		b.Fatal(err)
	}
	p, facts := set.Policies[0], fiveRulesFacts()
	var m Memory
	judge := func() {
		for range 1000 {
			p.Judge(facts, &m, "h", time.Second)
		}
	}
	judge() // what is made once
	b.ReportAllocs()
	for b.Loop() {
		judge()
	}
}

func BenchmarkCountLoad(b *testing.B) {
	src, err := BuiltinSource(BuiltinDefault)
	if err != nil {
		b.Fatal(err)
	}
	load := func() {
		for range 10 {
			if _, diags := Parse("p.hcl", src); diags.HasErrors() {
				b.Fatal(diags)
			}
		}
	}
	load() // what is made once
	b.ReportAllocs()
	for b.Loop() {
		load()
	}
}
