// Package selector reads the expressions by which a stage selects its nodes:
// hashicorp/go-bexpr, the filter language of Consul and Nomad, over `node` (the
// node's name) and `meta` (its metadata). The core is handed what it makes as
// an orchestrator.Matcher.
//
// Of this module it imports only the core.
package selector

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/hashicorp/go-bexpr"
	"github.com/hashicorp/go-bexpr/grammar"

	"github.com/aim-control/aimlock/orchestrator"
)

// maxExpressions bounds the work of the parser, which is exponential in nested
// parentheses.
const maxExpressions = 100_000

// Selector is an expression that was checked. It is used by one goroutine.
type Selector struct {
	expr *bexpr.Evaluator
	// datum is what the expression is given, anew for each node.
	datum map[string]any
}

// Parse reads an expression and checks what it refers to, so that Match fails
// on no node.
func Parse(expr string) (*Selector, error) {
	ast, err := grammar.Parse("", []byte(expr), grammar.MaxExpressions(maxExpressions))
	if err != nil {
		return nil, errors.New("it cannot be read: " + plain(err))
	}
	e, ok := ast.(grammar.Expression)
	if !ok {
		return nil, errors.New("it cannot be read as an expression")
	}
	if err := check(e, nil); err != nil {
		return nil, err
	}
	ev, err := bexpr.CreateEvaluator(expr, bexpr.WithMaxExpressions(maxExpressions))
	if err != nil {
		return nil, errors.New("it cannot be read: " + plain(err))
	}
	s := &Selector{expr: ev, datum: map[string]any{}}
	// The types of both names are the same on every node: what cannot be
	// compared shows on any of them, unless a part is not reached.
	_, err = s.Match(&orchestrator.Node{Name: "n", Meta: map[string]string{"k": "v"}})
	return s, err
}

// plain is the first line of a parser's error.
func plain(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// Match reports whether a node is selected. A key that the node's metadata has
// not is equal to nothing: == and matches do not hold, != and not in do, as in
// Consul's own filters.
func (s *Selector) Match(n *orchestrator.Node) (bool, error) {
	meta := n.Meta
	if meta == nil {
		meta = map[string]string{}
	}
	s.datum["node"], s.datum["meta"] = n.Name, meta
	return s.expr.Evaluate(s.datum)
}

// check walks an expression. bound are the names that an enclosing all or any
// gives to what it looks at.
func check(e grammar.Expression, bound []string) error {
	switch e := e.(type) {
	case *grammar.UnaryExpression:
		return check(e.Operand, bound)
	case *grammar.BinaryExpression:
		return errors.Join(check(e.Left, bound), check(e.Right, bound))
	case *grammar.MatchExpression:
		if e.Operator == grammar.MatchMatches || e.Operator == grammar.MatchNotMatches {
			if _, err := regexp.Compile(e.Value.Raw); err != nil {
				return fmt.Errorf("%q is no regular expression: %w", e.Value.Raw, err)
			}
		}
		return checkName(e.Selector.Path, bound, e.Operator)
	case *grammar.CollectionExpression:
		if len(e.Selector.Path) != 1 || e.Selector.Path[0] != "meta" {
			return fmt.Errorf("%s goes over meta, and this is %s", strings.ToLower(string(e.Op)), e.Selector)
		}
		b := e.NameBinding
		return check(e.Inner, append(bound[:len(bound):len(bound)], b.Default, b.Index, b.Value))
	}
	return fmt.Errorf("it has a part of a kind that is not known here (%T)", e)
}

func checkName(path, bound []string, op grammar.MatchOperator) error {
	if len(path) == 0 {
		return errors.New("a name is missing")
	}
	for _, b := range bound {
		if b != "" && path[0] == b {
			if len(path) > 1 {
				return fmt.Errorf("%s: %s is a string and has no parts", strings.Join(path, "."), b)
			}
			return nil
		}
	}
	switch {
	case path[0] == "node" && len(path) == 1, path[0] == "meta" && len(path) == 2:
		return nil
	case path[0] == "meta" && len(path) == 1:
		switch op {
		case grammar.MatchIn, grammar.MatchNotIn, grammar.MatchContains, grammar.MatchNotContains, grammar.MatchIsEmpty, grammar.MatchIsNotEmpty:
			return nil
		}
		return errors.New("meta is all of a node's metadata: compare one key of it, as in meta.zone == \"a\"")
	case path[0] == "meta":
		return fmt.Errorf("%s: metadata has no parts; a key with dots is written meta[%q]", strings.Join(path, "."), strings.Join(path[1:], "."))
	case path[0] == "node":
		return fmt.Errorf("%s: node is the node's name; its metadata is meta", strings.Join(path, "."))
	}
	return fmt.Errorf("there is no %q here: a selector knows node, the node's name, and meta, its metadata, as in meta.%s", path[0], path[len(path)-1])
}

// Of makes the matcher of a spec's stages. Without a Select it matches none
// and costs nothing.
func Of(spec *orchestrator.Spec) (orchestrator.Matcher, error) {
	sel := make([]*Selector, len(spec.Stages))
	for i, st := range spec.Stages {
		if st.Select == "" {
			continue
		}
		s, err := Parse(st.Select)
		if err != nil {
			return nil, &orchestrator.StageError{Stage: i, Name: st.Name, Err: fmt.Errorf("select: %w", err)}
		}
		sel[i] = s
	}
	return func(stage int, n *orchestrator.Node) (bool, error) {
		if stage >= len(sel) || sel[stage] == nil {
			return false, nil
		}
		return sel[stage].Match(n)
	}, nil
}
