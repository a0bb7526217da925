package evidence

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/aim-control/aimlock/internal/nomadapi"
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

// Since makes a read of an allocation one that waits, for Wait at most, until
// Nomad has something newer than Index. Wait is a second to
// nomadapi.MaxWait. The zero value does not wait.
type Since struct {
	Index uint64
	Wait  time.Duration
}

// Nomad is what evidence and the step nomad_stop need of a Nomad cluster.
type Nomad interface {
	// Alloc reads an allocation, and returns the index of what it read. What is
	// collected is no error; what may have been is one.
	Alloc(ctx context.Context, a AllocRef, since Since) (*Alloc, uint64, error)
	// Stop asks Nomad to stop an allocation.
	Stop(ctx context.Context, a AllocRef) error
}

type nomadClient struct{ c *nomadapi.Client }

var _ Nomad = (*nomadClient)(nil)

// NewNomad makes a Nomad of a client of its API.
func NewNomad(c *nomadapi.Client) Nomad { return &nomadClient{c: c} }

// NomadFromEnv connects by NOMAD_ADDR, NOMAD_TOKEN and the other variables of
// Nomad's own tools. It is nil where NOMAD_ADDR is not set.
func NomadFromEnv() (Nomad, error) {
	var cfg nomadapi.Config
	if !cfg.Configured() {
		return nil, nil
	}
	c, err := nomadapi.New(cfg)
	if err != nil {
		return nil, err
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

func (n *nomadClient) Alloc(ctx context.Context, ref AllocRef, since Since) (*Alloc, uint64, error) {
	id := ref.ID
	if err := checkAllocID(id); err != nil {
		return nil, 0, err
	}
	q, cancel := n.c.Blocking(ctx, since.Index, since.Wait)
	defer cancel()
	a, meta, err := n.c.API().Allocations().Info(id, inRegion(q, ref))
	if err != nil {
		if nomadapi.Status(err) == http.StatusNotFound {
			gone, gerr := n.gone(ctx, ref)
			return gone, 0, gerr
		}
		return nil, 0, n.c.Fail("read allocation "+id, err)
	}
	out := &Alloc{ID: a.ID, ClientStatus: a.ClientStatus, DesiredStatus: a.DesiredStatus, Job: a.JobID}
	if a.NodeID == "" {
		out.NodeWhy = "the allocation has no node yet"
		return out, meta.LastIndex, nil
	}
	q, done := n.c.Blocking(ctx, 0, 0)
	defer done()
	if node, _, err := n.c.API().Nodes().Info(a.NodeID, inRegion(q, ref)); err != nil {
		out.NodeWhy = n.c.Fail("read node "+a.NodeID, err).Error()
	} else {
		out.NodeStatus = node.Status
	}
	return out, meta.LastIndex, nil
}

// inRegion asks the region of an allocation, whose id alone is enough to find
// it: the namespace of NOMAD_NAMESPACE is for jobs.
func inRegion(q *nomad.QueryOptions, ref AllocRef) *nomad.QueryOptions {
	q.Region, q.Namespace = ref.Region, nomad.AllNamespacesNamespace
	return q
}

// gone is for an allocation that Nomad says it does not have. It says so too
// to a token that may not read the allocation's namespace, so that only one that
// may read all of them, or none being asked for, makes it certain; and only where the
// holder said which region it runs in, since every other one does not have it
// either. The read was one of the region's leader: Nomad's default.
func (n *nomadClient) gone(ctx context.Context, ref AllocRef) (*Alloc, error) {
	id := ref.ID
	if ref.Region == "" {
		return nil, fmt.Errorf("Nomad shows no allocation %s: it was collected, or it runs in another region; the holder did not record which", id)
	}
	q, cancel := n.c.Blocking(ctx, 0, 0)
	defer cancel()
	switch all, err := n.c.SeesAll(inRegion(q, ref)); {
	case all:
		return &Alloc{ID: id, Gone: true}, nil
	case err != nil:
		return nil, fmt.Errorf("Nomad shows no allocation %s, and whether the token may see it is not known: %w", id, err)
	}
	return nil, fmt.Errorf("Nomad shows no allocation %s: it was collected, or the token may not read its namespace", id)
}

func (n *nomadClient) Stop(ctx context.Context, ref AllocRef) error {
	id := ref.ID
	if err := checkAllocID(id); err != nil {
		return err
	}
	q, cancel := n.c.Blocking(ctx, 0, 0)
	defer cancel()
	_, err := n.c.API().Allocations().Stop(&nomad.Allocation{ID: id}, inRegion(q, ref))
	if err != nil {
		return n.c.Fail("stop allocation "+id, err)
	}
	return nil
}

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
	a, _, err := r.Nomad.Alloc(ctx, allocOf(s.Holder), Since{})
	if err != nil {
		s.AllocWhy = err.Error()
		return
	}
	s.Alloc = a
}
