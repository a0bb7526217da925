package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	pb "github.com/aim-control/aimlock/plugin/proto"
)

// Client is the host's hold of one plugin: a running process, or a plugin in this
// one. It is safe for concurrent use.
//
// Evidence, Breaker, Gate, Target and Fleet make a configured instance; [Release]
// ends it. Instances end with the process: one that answers with [ErrNoInstance] is
// to be made anew. What they return was checked, errors keep their identity, and
// the secrets of their configuration stand in no text.
type Client struct {
	info Info
	back backend
}

// backend is the other side.
type backend interface {
	validate(ctx context.Context, k Kind, c Config) error
	configure(ctx context.Context, k Kind, c Config) (any, error)
	close() error
}

// InProcess is a client of a plugin in this process: the same interfaces and the
// same checks, without a socket.
func InProcess(p Plugin, log hclog.Logger) (*Client, error) {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	r, err := newRuntime(p, log)
	if err != nil {
		return nil, err
	}
	return &Client{info: *r.info, back: local{r}}, nil
}

type local struct{ r *runtime }

func (l local) validate(ctx context.Context, k Kind, c Config) error { return l.r.validate(ctx, k, c) }

func (l local) configure(ctx context.Context, k Kind, c Config) (any, error) {
	id, err := l.r.configure(ctx, k, c)
	if err != nil {
		return nil, err
	}
	return l.r.instance(id), nil
}

func (l local) close() error { return l.r.close() }

// NewClient is a client of the plugin that answers on conn. It asks for its Info.
func NewClient(ctx context.Context, conn grpc.ClientConnInterface) (*Client, error) {
	r := &remote{conn: conn, base: pb.NewBaseClient(conn)}
	ctx, cancel := limited(ctx)
	defer cancel()
	answer, err := r.base.Info(ctx, &pb.InfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the plugin what it is: %w", fromStatus(err))
	}
	info, err := infoFromProto(answer)
	if err != nil {
		return nil, fmt.Errorf("the plugin does not describe itself as one: %w", err)
	}
	r.info = info
	return &Client{info: *info, back: r}, nil
}

// limited gives a context a deadline if it has none.
func limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, DefaultTimeout)
}

// Info is what the plugin said of itself. It is only to be read.
func (c *Client) Info() *Info { return &c.info }

// Close ends all instances of a plugin in this process. That of a running process
// is whoever started it to end.
func (c *Client) Close() error { return c.back.close() }

// Validate checks a configuration: against the schema here, then by the plugin,
// without any effect. errors.As finds [Problems] if it is wrong.
func (c *Client) Validate(ctx context.Context, k Kind, cfg Config) error {
	if _, err := c.check(k, cfg); err != nil {
		return err
	}
	return c.secretive(k, cfg).err(c.back.validate(ctx, k, cfg))
}

func (c *Client) check(k Kind, cfg Config) (*KindInfo, error) {
	ki := c.info.Kind(k)
	if ki == nil {
		return nil, fmt.Errorf("plugin %s is no %s, it is %s: %w", c.info.Name, k, c.info.kinds(), ErrUnsupported)
	}
	_, err := ki.Config.Apply(cfg)
	return ki, err
}

func (i *Info) kinds() string {
	var names []string
	for n := range i.Kinds {
		names = append(names, string(i.Kinds[n].Kind))
	}
	return strings.Join(names, ", ")
}

func (c *Client) secretive(k Kind, cfg Config) redactor {
	ki := c.info.Kind(k)
	if ki == nil {
		return redactor{}
	}
	return newRedactor(ki.Config.Secrets(cfg))
}

func configured[T any](ctx context.Context, c *Client, k Kind, cfg Config) (T, redactor, error) {
	var none T
	if _, err := c.check(k, cfg); err != nil {
		return none, redactor{}, err
	}
	red := c.secretive(k, cfg)
	v, err := c.back.configure(ctx, k, cfg)
	if err != nil {
		return none, red, red.err(err)
	}
	return v.(T), red, nil
}

// Evidence makes an instance.
func (c *Client) Evidence(ctx context.Context, cfg Config) (Evidence, error) {
	v, red, err := configured[Evidence](ctx, c, KindEvidence, cfg)
	if err != nil {
		return nil, err
	}
	return &quietEvidence{v, red}, nil
}

// Breaker makes an instance.
func (c *Client) Breaker(ctx context.Context, cfg Config) (Breaker, error) {
	v, red, err := configured[Breaker](ctx, c, KindBreaker, cfg)
	if err != nil {
		return nil, err
	}
	return &quietBreaker{v, red}, nil
}

// Gate makes an instance.
func (c *Client) Gate(ctx context.Context, cfg Config) (Gate, error) {
	v, red, err := configured[Gate](ctx, c, KindGate, cfg)
	if err != nil {
		return nil, err
	}
	return &quietGate{v, red}, nil
}

// Target makes an instance.
func (c *Client) Target(ctx context.Context, cfg Config) (Target, error) {
	v, red, err := configured[Target](ctx, c, KindTarget, cfg)
	if err != nil {
		return nil, err
	}
	return &quietTarget{v, red}, nil
}

// Fleet makes an instance.
func (c *Client) Fleet(ctx context.Context, cfg Config) (Fleet, error) {
	v, red, err := configured[Fleet](ctx, c, KindFleet, cfg)
	if err != nil {
		return nil, err
	}
	return &quietFleet{v, red}, nil
}

// Release ends an instance that a [Client] made.
func Release(instance any) error {
	if c, ok := instance.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// remote is a plugin behind a connection.
type remote struct {
	conn grpc.ClientConnInterface
	base pb.BaseClient
	info *Info
}

func (r *remote) close() error { return nil }

func (r *remote) validate(ctx context.Context, k Kind, c Config) error {
	ctx, cancel := limited(ctx)
	defer cancel()
	answer, err := r.base.Validate(ctx, &pb.ValidateRequest{Kind: string(k), Config: c})
	if err != nil {
		return fromStatus(err)
	}
	return problemsFromProto(answer.GetProblems()).Err()
}

func (r *remote) configure(ctx context.Context, k Kind, c Config) (any, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	answer, err := r.base.Configure(ctx, &pb.ConfigureRequest{Kind: string(k), Config: c})
	if err != nil {
		return nil, fromStatus(err)
	}
	i := instance{r, answer.GetInstance()}
	switch k {
	case KindEvidence:
		return &remoteEvidence{i, pb.NewEvidenceClient(r.conn)}, nil
	case KindBreaker:
		return &remoteBreaker{i, pb.NewBreakerClient(r.conn)}, nil
	case KindGate:
		return &remoteGate{i, pb.NewGateClient(r.conn)}, nil
	case KindTarget:
		return &remoteTarget{i, pb.NewTargetClient(r.conn)}, nil
	case KindFleet:
		return &remoteFleet{i, pb.NewFleetClient(r.conn)}, nil
	}
	return nil, fmt.Errorf("kind %q: %w", k, ErrUnsupported)
}

// instance is one behind a connection.
type instance struct {
	r  *remote
	id uint64
}

// Close releases it.
func (i *instance) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), DefaultTimeout)
	defer cancel()
	_, err := i.r.base.Release(ctx, &pb.ReleaseRequest{Instance: i.id})
	return fromStatus(err)
}

type remoteEvidence struct {
	instance
	c pb.EvidenceClient
}

func (e *remoteEvidence) Facts() []FactDef { return e.r.info.Kind(KindEvidence).Facts }

func (e *remoteEvidence) Observe(ctx context.Context, q *ObserveRequest) ([]Fact, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	answer, err := e.c.Observe(ctx, &pb.ObserveRequest{Instance: e.id, Lock: lockToProto(&q.Lock), Host: q.Host, Want: q.Want})
	if err != nil {
		return nil, fromStatus(err)
	}
	defs := e.Facts()
	return CheckFacts(defs, q.Want, factsFromProto(defs, answer.GetFacts())), nil
}

type remoteBreaker struct {
	instance
	c pb.BreakerClient
}

func (b *remoteBreaker) Break(ctx context.Context, q *BreakRequest) (*BreakResult, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	answer, err := b.c.Break(ctx, &pb.BreakRequest{
		Instance: b.id, Id: q.ID, Lock: lockToProto(&q.Lock), Rule: q.Rule, Reason: q.Reason,
		Step: uint32(max(q.Step, 0)), DryRun: q.DryRun,
	})
	if err != nil {
		return nil, fromStatus(err)
	}
	return checkResult(&BreakResult{Outcome: Outcome(answer.GetOutcome()), Detail: clip(answer.GetDetail(), maxMessage)})
}

type remoteGate struct {
	instance
	c pb.GateClient
}

func (g *remoteGate) Ask(ctx context.Context, q *Question) (*Answer, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	answer, err := g.c.Ask(ctx, &pb.AskRequest{
		Instance: g.id, Gate: q.Gate, Rollout: q.Rollout, Stage: q.Stage, Epoch: q.Epoch, Token: q.Token,
		Updated: q.Updated, Rest: q.Rest, Dir: q.Dir,
	})
	if err != nil {
		return nil, fromStatus(err)
	}
	return checkAnswer(&Answer{
		Verdict: Verdict(answer.GetVerdict()), Value: clip(answer.GetValue(), maxMessage), Why: clip(answer.GetWhy(), maxMessage), Retry: answer.GetRetry(),
	}), nil
}

type remoteTarget struct {
	instance
	c pb.TargetClient
}

func (t *remoteTarget) Fencing() bool { return t.r.info.Kind(KindTarget).Has(CapFencing) }

func (t *remoteTarget) Apply(ctx context.Context, q *ApplyRequest) (*Applied, error) {
	if err := checkContent(q.Content, q.SHA256); err != nil {
		return nil, err
	}
	ctx, cancel := limited(ctx)
	defer cancel()
	stream, err := t.c.Apply(ctx)
	if err != nil {
		return nil, fromStatus(err)
	}
	err = stream.Send(&pb.ApplyRequest{Part: &pb.ApplyRequest_Header{Header: &pb.ApplyHeader{
		Instance: t.id, Place: placeToProto(&q.Place), Order: orderToProto(q.Order), Revision: q.Revision, Rollout: q.Rollout,
		Size: uint64(len(q.Content)), Sha256: q.SHA256, Mode: q.Mode, Owner: q.Owner, Group: q.Group,
	}}})
	if err == nil {
		err = inChunks(q.Content, func(part []byte) error {
			return stream.Send(&pb.ApplyRequest{Part: &pb.ApplyRequest_Chunk{Chunk: part}})
		})
	}
	// io.EOF: the plugin has answered already, and its answer is told by the end.
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fromStatus(err)
	}
	answer, err := stream.CloseAndRecv()
	if err != nil {
		return nil, fromStatus(err)
	}
	return appliedFromProto(answer)
}

func (t *remoteTarget) Read(ctx context.Context, q *ReadRequest) (*State, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	stream, err := t.c.Read(ctx, &pb.ReadRequest{Instance: t.id, Place: placeToProto(&q.Place), Content: q.Content})
	if err != nil {
		return nil, fromStatus(err)
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, fromStatus(err)
	}
	p := first.GetState()
	if p == nil {
		return nil, errors.New("the plugin sent no state")
	}
	if p.GetSize() > 1<<62 {
		return nil, errors.New("the plugin tells of a size that cannot be")
	}
	st := &State{
		Exists: p.GetExists(), SHA256: clip(p.GetSha256(), 64), Revision: clip(p.GetRevision(), 200),
		Size: int64(p.GetSize()), Highest: orderFromProto(p.GetHighest()),
	}
	if !q.Content || !st.Exists {
		return st, nil
	}
	st.Content, err = receive(p.GetSize(), func() ([]byte, error) {
		part, err := stream.Recv()
		return part.GetChunk(), err
	})
	if err == nil && st.SHA256 != "" {
		err = checkContent(st.Content, st.SHA256)
	}
	if err != nil {
		return nil, fromStatus(err)
	}
	return st, nil
}

func (t *remoteTarget) Restore(ctx context.Context, q *RestoreRequest) (*Applied, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	answer, err := t.c.Restore(ctx, &pb.RestoreRequest{Instance: t.id, Place: placeToProto(&q.Place), Order: orderToProto(q.Order), Rollout: q.Rollout})
	if err != nil {
		return nil, fromStatus(err)
	}
	return appliedFromProto(answer)
}

type remoteFleet struct {
	instance
	c pb.FleetClient
}

func (f *remoteFleet) List(ctx context.Context) (*Listing, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	stream, err := f.c.List(ctx, &pb.ListRequest{Instance: f.id})
	if err != nil {
		return nil, fromStatus(err)
	}
	return receiveListing(stream)
}

// receiveListing puts one list together.
func receiveListing(stream grpc.ServerStreamingClient[pb.ListResponse]) (*Listing, error) {
	l := &Listing{}
	for {
		part, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, errors.New("the plugin's list breaks off")
		case err != nil:
			return nil, fromStatus(err)
		}
		for _, n := range part.GetNodes() {
			l.Nodes = append(l.Nodes, Node{Name: n.GetName(), Meta: n.GetMeta()})
		}
		l.Warnings = append(l.Warnings, part.GetWarnings()...)
		if len(l.Nodes) > maxNodes || len(l.Warnings) > maxSchema {
			return nil, fmt.Errorf("the plugin lists more than %d nodes or %d warnings", maxNodes, maxSchema)
		}
		if part.GetLast() {
			return checkListing(l)
		}
	}
}
