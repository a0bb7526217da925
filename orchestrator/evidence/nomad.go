package evidence

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
)

// Alloc is what Nomad says of an allocation.
type Alloc struct {
	ID            string
	ClientStatus  string
	DesiredStatus string
	Job           string
	// NodeStatus is empty where it could not be had: NodeWhy says why.
	NodeStatus string
	NodeWhy    string
	// Gone: Nomad collected the allocation, and nothing else is known of it.
	Gone bool
}

// AllocRef says which allocation is meant.
type AllocRef struct {
	ID string
	// Region is where it runs; empty: that of the Nomad which is asked.
	Region string
}

// allocOf is the allocation that a holder recorded.
func allocOf(h *records.Holder) AllocRef { return AllocRef{h.AllocID, h.AllocRegion} }

// Nomad is what evidence and the step nomad_stop need of a Nomad cluster.
type Nomad interface {
	// Alloc reads an allocation. With an index above 0 it waits, for some
	// minutes at most, until Nomad has something newer. What is collected is
	// no error; what may have been is one.
	Alloc(ctx context.Context, a AllocRef, index uint64) (*Alloc, uint64, error)
	// Stop asks Nomad to stop an allocation.
	Stop(ctx context.Context, a AllocRef) error
}

// nomadTimeout bounds one request that does not wait.
const nomadTimeout = 5 * time.Second

// nomadWait is how long Nomad may hold a query without a change.
const nomadWait = 2 * time.Minute

type nomadClient struct{ api *nomad.Client }

var _ Nomad = (*nomadClient)(nil)

// NewNomad makes a Nomad of a client of its API.
func NewNomad(c *nomad.Client) Nomad { return &nomadClient{api: c} }

// NomadFromEnv connects by NOMAD_ADDR, NOMAD_TOKEN and the other variables of
// Nomad's own tools. It is nil where NOMAD_ADDR is not set.
func NomadFromEnv() (Nomad, error) {
	if os.Getenv("NOMAD_ADDR") == "" {
		return nil, nil
	}
	cfg := nomad.DefaultConfig()
	// An allocation's id is enough to find it; the namespace of the variable
	// is for jobs.
	cfg.Namespace = ""
	c, err := nomad.NewClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("client for Nomad: %w", err)
	}
	return NewNomad(c), nil
}

// allocID is a whole id. Whatever else stands in a record could make another
// path of the request's.
var allocID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

func checkAllocID(id string) error {
	if !allocID.MatchString(id) {
		return fmt.Errorf("%q is not the id of a Nomad allocation", text.Clip(text.Printable(id), 40))
	}
	return nil
}

func (n *nomadClient) Alloc(ctx context.Context, ref AllocRef, index uint64) (*Alloc, uint64, error) {
	id := ref.ID
	if err := checkAllocID(id); err != nil {
		return nil, 0, err
	}
	bound := nomadTimeout
	if index > 0 {
		bound += nomadWait + nomadWait/16
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	q := &nomad.QueryOptions{Region: ref.Region, WaitIndex: index, WaitTime: nomadWait}
	a, meta, err := n.api.Allocations().Info(id, q.WithContext(ctx))
	if err != nil {
		if statusOf(err) == http.StatusNotFound {
			gone, gerr := n.gone(ctx, ref)
			return gone, 0, gerr
		}
		return nil, 0, n.fail("read allocation "+id, err)
	}
	out := &Alloc{ID: a.ID, ClientStatus: a.ClientStatus, DesiredStatus: a.DesiredStatus, Job: a.JobID}
	if a.NodeID == "" {
		out.NodeWhy = "the allocation has no node yet"
	} else if node, _, err := n.api.Nodes().Info(a.NodeID, (&nomad.QueryOptions{Region: ref.Region}).WithContext(ctx)); err != nil {
		out.NodeWhy = n.fail("read node "+a.NodeID, err).Error()
	} else {
		out.NodeStatus = node.Status
	}
	return out, meta.LastIndex, nil
}

// gone is for an allocation that Nomad says it does not have. It says so too
// to a token that may not read the allocation's namespace, so that only one that
// may read all, or none being asked for, makes it certain; and only where the
// holder said which region it runs in, since every other one does not have it
// either. The read was one of the region's leader: Nomad's default.
func (n *nomadClient) gone(ctx context.Context, ref AllocRef) (*Alloc, error) {
	id := ref.ID
	if ref.Region == "" {
		return nil, fmt.Errorf("Nomad shows no allocation %s: it was collected, or it runs in another region; the holder did not record which", id)
	}
	tok, _, err := n.api.ACLTokens().Self((&nomad.QueryOptions{Region: ref.Region}).WithContext(ctx))
	switch {
	case err == nil && tok.Type == "management", aclDisabled(err):
		return &Alloc{ID: id, Gone: true}, nil
	case err != nil:
		return nil, fmt.Errorf("Nomad shows no allocation %s, and whether the token may see it is not known: %w", id, n.fail("read the token", err))
	}
	return nil, fmt.Errorf("Nomad shows no allocation %s: it was collected, or the token may not read its namespace", id)
}

func (n *nomadClient) Stop(ctx context.Context, ref AllocRef) error {
	id := ref.ID
	if err := checkAllocID(id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, nomadTimeout)
	defer cancel()
	_, err := n.api.Allocations().Stop(&nomad.Allocation{ID: id}, (&nomad.QueryOptions{Region: ref.Region}).WithContext(ctx))
	if err != nil {
		return n.fail("stop allocation "+id, err)
	}
	return nil
}

func statusOf(err error) int {
	if e, ok := errors.AsType[nomad.UnexpectedResponseError](err); ok {
		return e.StatusCode()
	}
	return 0
}

// aclDisabled: this Nomad asks for no tokens at all.
func aclDisabled(err error) bool {
	e, ok := errors.AsType[nomad.UnexpectedResponseError](err)
	return ok && e.Body() == "ACL support disabled"
}

// fail names the operation and the address; the text of the error is foreign.
func (n *nomadClient) fail(op string, err error) error {
	what := text.Clip(text.Printable(err.Error()), 200)
	if e, ok := errors.AsType[nomad.UnexpectedResponseError](err); ok {
		what = fmt.Sprintf("HTTP %d: %s", e.StatusCode(), text.Clip(text.Printable(e.Body()), 200))
	} else if errors.Is(err, context.DeadlineExceeded) {
		what = "timed out"
	}
	addr := n.api.Address()
	if u, perr := url.Parse(addr); perr == nil {
		addr = u.Redacted()
	}
	return &NomadError{Op: op, Addr: addr, What: what, err: err}
}

// NomadError is a failed operation on Nomad. Its message holds no token.
type NomadError struct {
	Op, Addr, What string
	err            error
}

func (e *NomadError) Error() string {
	return fmt.Sprintf("%s: Nomad at %s: %s; check NOMAD_ADDR and NOMAD_TOKEN", e.Op, e.Addr, e.What)
}

func (e *NomadError) Unwrap() error { return e.err }

const nomadNotAsked = "Nomad was not asked: NOMAD_ADDR is not set"

// readAlloc asks Nomad for the holder's allocation. Nothing rests on an answer
// that does not come.
func (r *Reader) readAlloc(ctx context.Context, s *Snapshot) {
	if s.Holder == nil || s.Holder.AllocID == "" {
		return
	}
	if r.Nomad == nil {
		s.AllocWhy = nomadNotAsked
		return
	}
	a, _, err := r.Nomad.Alloc(ctx, allocOf(s.Holder), 0)
	if err != nil {
		s.AllocWhy = err.Error()
		return
	}
	s.Alloc = a
}
