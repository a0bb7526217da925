package devconsul

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/go-bexpr"

	"github.com/aim-control/aimlock/internal/devconsul/state"
)

// servesFilter tells which endpoints take ?filter=.
func servesFilter(path string) bool {
	for _, p := range []string{"/v1/health/node/", "/v1/health/checks/", "/v1/health/state/"} {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// checks is an expression that picks checks; nil picks all.
type checks struct{ expr *bexpr.Evaluator }

func checkFilter(r *http.Request) (*checks, error) {
	text := r.URL.Query().Get("filter")
	if text == "" {
		return nil, nil
	}
	expr, err := bexpr.CreateEvaluator(text)
	if err != nil {
		return nil, fmt.Errorf("Failed to create boolean expression evaluator: %w", err)
	}
	return &checks{expr}, nil
}

func (c *checks) apply(list []*state.Check) ([]*state.Check, error) {
	if c == nil {
		return list, nil
	}
	var out []*state.Check
	for _, check := range list {
		ok, err := c.expr.Evaluate(check)
		if err != nil {
			return nil, fmt.Errorf("evaluate filter: %w", err)
		}
		if ok {
			out = append(out, check)
		}
	}
	return out, nil
}
