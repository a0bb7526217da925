package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/aim-control/aimlock/plugin/proto"
)

// Errors that keep their identity over the wire: errors.Is holds on the host's
// side for what the plugin returned, wrapped or not.
var (
	// ErrStale: the order is older than one already seen. See [StaleError].
	ErrStale = errors.New("the order is older than one already seen")
	// ErrNotFound: what was asked for does not exist.
	ErrNotFound = errors.New("not found")
	// ErrUnsupported: the plugin cannot do that at all.
	ErrUnsupported = errors.New("not supported")
	// ErrUnavailable: what the plugin needs does not answer, or the plugin itself
	// does not. Another try may do better.
	ErrUnavailable = errors.New("not available")
	// ErrInvalidConfig: the configuration is wrong. See [Problems].
	ErrInvalidConfig = errors.New("invalid configuration")
	// ErrDenied: the plugin lacks the right.
	ErrDenied = errors.New("permission denied")
	// ErrNoInstance: the process that was configured is not the one that answers.
	// Configure anew.
	ErrNoInstance = errors.New("the plugin does not know this instance")
	// ErrPanic: the plugin's code panicked. Its log has the stack.
	ErrPanic = errors.New("the plugin panicked")
)

// StaleError is ErrStale with the newest order that was seen.
type StaleError struct{ Highest Order }

func (e *StaleError) Error() string {
	return fmt.Sprintf("%v: the newest is %s", ErrStale, e.Highest)
}

// Is makes it ErrStale.
func (e *StaleError) Is(target error) bool { return target == ErrStale }

// Problem is something wrong with a configuration.
type Problem struct {
	// Path is where: "url", "server[1].port"; empty is all of it.
	Path string
	// Message is one line. It never holds the value of a secret.
	Message string
}

func (p Problem) String() string {
	if p.Path == "" {
		return p.Message
	}
	return p.Path + ": " + p.Message
}

// Problems are what is wrong with a configuration. It is ErrInvalidConfig.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "; ")
}

// Is makes it ErrInvalidConfig.
func (p Problems) Is(target error) bool { return target == ErrInvalidConfig }

// Add adds one.
func (p *Problems) Add(path, format string, args ...any) {
	*p = append(*p, Problem{Path: path, Message: fmt.Sprintf(format, args...)})
}

// Err is nil if there are none.
func (p Problems) Err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// Invalid is one problem as an error.
func Invalid(path, format string, args ...any) error {
	return Problems{{Path: path, Message: fmt.Sprintf(format, args...)}}
}

// sentinels are told apart by reason, and by code alone where a plugin sends no
// detail.
var sentinels = []struct {
	err    error
	code   codes.Code
	reason string
}{
	{ErrStale, codes.Aborted, "stale"},
	{ErrNotFound, codes.NotFound, "not_found"},
	{ErrUnsupported, codes.Unimplemented, "unsupported"},
	{ErrUnavailable, codes.Unavailable, "unavailable"},
	{ErrInvalidConfig, codes.InvalidArgument, "invalid_config"},
	{ErrDenied, codes.PermissionDenied, "denied"},
	{ErrNoInstance, codes.FailedPrecondition, "no_instance"},
	{ErrPanic, codes.Internal, "panic"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "deadline"},
	{context.Canceled, codes.Canceled, "canceled"},
}

// remoteError is an error that came over the wire.
type remoteError struct {
	is      error // a sentinel, a *StaleError or Problems; nil: none
	message string
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.is }

// maxMessage bounds the text of an error that crosses.
const maxMessage = 4 << 10

// toStatus makes a status of an error.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	code, detail := codes.Unknown, &pb.ErrorDetail{}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			code, detail.Reason = s.code, s.reason
			break
		}
	}
	if code == codes.Unknown {
		// One of gRPC's own, from a call that the plugin made itself, is its affair.
		return status.Error(codes.Unknown, clip(err.Error(), maxMessage))
	}
	var stale *StaleError
	if errors.As(err, &stale) {
		detail.Highest = orderToProto(stale.Highest)
	}
	var problems Problems
	if errors.As(err, &problems) {
		detail.Problems = problemsToProto(problems)
	}
	st := status.New(code, clip(err.Error(), maxMessage))
	if with, err := st.WithDetails(detail); err == nil {
		st = with
	}
	return st.Err()
}

// fromStatus makes an error of a status, with its identity.
func fromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	out := &remoteError{message: clip(st.Message(), maxMessage)}
	if out.message == "" {
		out.message = st.Code().String()
	}
	for _, s := range sentinels {
		if s.code == st.Code() && s.code != codes.Internal {
			out.is = s.err
		}
	}
	for _, d := range st.Details() {
		detail, ok := d.(*pb.ErrorDetail)
		if !ok {
			continue
		}
		for _, s := range sentinels {
			if s.reason == detail.GetReason() {
				out.is = s.err
			}
		}
		switch {
		case errors.Is(out.is, ErrStale) && detail.GetHighest() != nil:
			out.is = &StaleError{orderFromProto(detail.GetHighest())}
		case errors.Is(out.is, ErrInvalidConfig) && len(detail.GetProblems()) > 0:
			out.is = problemsFromProto(detail.GetProblems())
		}
	}
	return out
}

// clip cuts a text to at most n bytes, at a whole character.
func clip(s string, n int) string {
	if len(s) <= n {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(strings.ToValidUTF8(s[:n], "")+"…", "\uFFFD")
}
