package devconsul

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/go-bexpr"
)

// servesFilter tells which endpoints take ?filter=.
func servesFilter(path string) bool {
	for _, p := range []string{"/v1/health/node/", "/v1/health/checks/", "/v1/health/state/", "/v1/catalog/nodes", "/v1/catalog/node/", "/v1/catalog/service/", "/v1/health/service/"} {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// filter is an expression that picks entries of an answer; nil picks all.
type filter struct{ expr *bexpr.Evaluator }

// maxExpressions bounds the work of the parser, which is exponential in nested
// parentheses.
const maxExpressions = 100_000

func filterOf(r *http.Request) (*filter, error) {
	text := r.URL.Query().Get("filter")
	if text == "" {
		return nil, nil
	}
	expr, err := bexpr.CreateEvaluator(text, bexpr.WithMaxExpressions(maxExpressions))
	if err != nil {
		return nil, fmt.Errorf("Failed to create boolean expression evaluator: %w", err)
	}
	return &filter{expr}, nil
}

// filtered is what f picks of a list.
func filtered[T any](f *filter, list []T) ([]T, error) {
	if f == nil {
		return list, nil
	}
	var out []T
	for _, item := range list {
		ok, err := f.expr.Evaluate(item)
		if err != nil {
			return nil, fmt.Errorf("evaluate filter: %w", err)
		}
		if ok {
			out = append(out, item)
		}
	}
	return out, nil
}
