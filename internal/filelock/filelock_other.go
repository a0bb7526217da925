//go:build !linux

package filelock

import (
	"context"
	"time"
)

// Scanner explains files; not here.
type Scanner struct{}

// Explain always returns ErrUnsupported.
func (s *Scanner) Explain(context.Context, string, time.Duration) (*Report, error) {
	return nil, ErrUnsupported
}
