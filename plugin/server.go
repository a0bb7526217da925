package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	pb "github.com/aim-control/aimlock/plugin/proto"
)

// server answers the wire with a runtime.
type server struct {
	pb.UnimplementedBaseServer
	r *runtime
}

// The services of the kinds have methods of the same names, so each has its type.
type (
	evidenceServer struct {
		pb.UnimplementedEvidenceServer
		r *runtime
	}
	breakerServer struct {
		pb.UnimplementedBreakerServer
		r *runtime
	}
	gateServer struct {
		pb.UnimplementedGateServer
		r *runtime
	}
	targetServer struct {
		pb.UnimplementedTargetServer
		r *runtime
	}
	fleetServer struct {
		pb.UnimplementedFleetServer
		r *runtime
	}
)

// register puts the plugin's services on a server.
func (r *runtime) register(s grpc.ServiceRegistrar) {
	pb.RegisterBaseServer(s, &server{r: r})
	for i := range r.info.Kinds {
		switch r.info.Kinds[i].Kind {
		case KindEvidence:
			pb.RegisterEvidenceServer(s, &evidenceServer{r: r})
		case KindBreaker:
			pb.RegisterBreakerServer(s, &breakerServer{r: r})
		case KindGate:
			pb.RegisterGateServer(s, &gateServer{r: r})
		case KindTarget:
			pb.RegisterTargetServer(s, &targetServer{r: r})
		case KindFleet:
			pb.RegisterFleetServer(s, &fleetServer{r: r})
		}
	}
}

// maxMessageSize bounds one message. Contents and lists come in parts.
const maxMessageSize = 16 << 20

// serverOptions are those that a plugin's server needs: limits, errors that keep
// their identity, and no panic that ends the process.
func (r *runtime) serverOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessageSize),
		grpc.MaxSendMsgSize(maxMessageSize),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (res any, err error) {
			err = r.caught(ctx, info.FullMethod, func(ctx context.Context) error {
				res, err = next(ctx, req)
				return err
			})
			return res, toStatus(err)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			return toStatus(r.caught(stream.Context(), info.FullMethod, func(context.Context) error { return next(srv, stream) }))
		}),
	}
}

func (s *server) Info(context.Context, *pb.InfoRequest) (*pb.InfoResponse, error) {
	return infoToProto(s.r.info)
}

func (s *server) Validate(ctx context.Context, q *pb.ValidateRequest) (*pb.ValidateResponse, error) {
	err := s.r.validate(ctx, Kind(q.GetKind()), q.GetConfig())
	var problems Problems
	if errors.As(err, &problems) {
		return &pb.ValidateResponse{Problems: problemsToProto(problems)}, nil
	}
	return &pb.ValidateResponse{}, err
}

func (s *server) Configure(ctx context.Context, q *pb.ConfigureRequest) (*pb.ConfigureResponse, error) {
	id, err := s.r.configure(ctx, Kind(q.GetKind()), q.GetConfig())
	return &pb.ConfigureResponse{Instance: id}, err
}

func (s *server) Release(_ context.Context, q *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	return &pb.ReleaseResponse{}, s.r.release(q.GetInstance())
}

func (s *evidenceServer) Observe(ctx context.Context, q *pb.ObserveRequest) (*pb.ObserveResponse, error) {
	e, err := instanceOf[Evidence](s.r, q.GetInstance())
	if err != nil {
		return nil, err
	}
	facts, err := e.Observe(ctx, &ObserveRequest{Lock: lockFromProto(q.GetLock()), Host: q.GetHost(), Want: q.GetWant()})
	if err != nil {
		return nil, err
	}
	return &pb.ObserveResponse{Facts: factsToProto(facts)}, nil
}

func (s *breakerServer) Break(ctx context.Context, q *pb.BreakRequest) (*pb.BreakResponse, error) {
	b, err := instanceOf[Breaker](s.r, q.GetInstance())
	if err != nil {
		return nil, err
	}
	res, err := b.Break(ctx, &BreakRequest{
		ID: q.GetId(), Lock: lockFromProto(q.GetLock()), Rule: q.GetRule(), Reason: q.GetReason(), Step: int(q.GetStep()), DryRun: q.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &pb.BreakResponse{Outcome: string(res.Outcome), Detail: clip(res.Detail, maxMessage)}, nil
}

func (s *gateServer) Ask(ctx context.Context, q *pb.AskRequest) (*pb.AskResponse, error) {
	g, err := instanceOf[Gate](s.r, q.GetInstance())
	if err != nil {
		return nil, err
	}
	a, err := g.Ask(ctx, &Question{
		Gate: q.GetGate(), Rollout: q.GetRollout(), Stage: q.GetStage(), Epoch: q.GetEpoch(), Token: q.GetToken(),
		Updated: q.GetUpdated(), Rest: q.GetRest(), Dir: q.GetDir(),
	})
	if err != nil {
		return nil, err
	}
	return &pb.AskResponse{Verdict: string(a.Verdict), Value: clip(a.Value, maxMessage), Why: clip(a.Why, maxMessage), Retry: a.Retry}, nil
}

func (s *targetServer) Apply(stream grpc.ClientStreamingServer[pb.ApplyRequest, pb.ApplyResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	h := first.GetHeader()
	if h == nil {
		return Invalid("", "the header of an apply is missing")
	}
	t, err := instanceOf[Target](s.r, h.GetInstance())
	if err != nil {
		return err
	}
	content, err := receive(h.GetSize(), func() ([]byte, error) {
		part, err := stream.Recv()
		return part.GetChunk(), err
	})
	if err != nil {
		return err
	}
	a, err := t.Apply(stream.Context(), &ApplyRequest{
		Place: placeFromProto(h.GetPlace()), Order: orderFromProto(h.GetOrder()), Revision: h.GetRevision(), Rollout: h.GetRollout(),
		SHA256: h.GetSha256(), Content: content, Mode: h.GetMode(), Owner: h.GetOwner(), Group: h.GetGroup(),
	})
	answer, err := appliedToProto(a, err)
	if err != nil {
		return err
	}
	return stream.SendAndClose(answer)
}

// receive puts content together of which the size was told. next ends with io.EOF.
func receive(size uint64, next func() ([]byte, error)) ([]byte, error) {
	if size > MaxContent {
		return nil, fmt.Errorf("content of %d bytes: %d at most", size, MaxContent)
	}
	// Grown as it comes: the size is only what the other side says.
	content := make([]byte, 0, min(size, chunkSize))
	for {
		part, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if content = append(content, part...); uint64(len(content)) > size {
			break
		}
	}
	if uint64(len(content)) != size {
		return nil, fmt.Errorf("content of %d bytes was promised, and %d or more came", size, len(content))
	}
	return content, nil
}

// chunkSize is that of the parts in which content crosses.
const chunkSize = 256 << 10

func (s *targetServer) Read(q *pb.ReadRequest, stream grpc.ServerStreamingServer[pb.ReadResponse]) error {
	t, err := instanceOf[Target](s.r, q.GetInstance())
	if err != nil {
		return err
	}
	st, err := t.Read(stream.Context(), &ReadRequest{Place: placeFromProto(q.GetPlace()), Content: q.GetContent()})
	if err != nil {
		return err
	}
	err = stream.Send(&pb.ReadResponse{Part: &pb.ReadResponse_State{State: &pb.ReadState{
		Exists: st.Exists, Sha256: st.SHA256, Size: uint64(max(st.Size, 0)), Revision: st.Revision, Highest: orderToProto(st.Highest),
	}}})
	if err != nil || !q.GetContent() {
		return err
	}
	return inChunks(st.Content, func(part []byte) error {
		return stream.Send(&pb.ReadResponse{Part: &pb.ReadResponse_Chunk{Chunk: part}})
	})
}

func inChunks(content []byte, send func([]byte) error) error {
	for len(content) > 0 {
		n := min(len(content), chunkSize)
		if err := send(content[:n]); err != nil {
			return err
		}
		content = content[n:]
	}
	return nil
}

func (s *targetServer) Restore(ctx context.Context, q *pb.RestoreRequest) (*pb.ApplyResponse, error) {
	t, err := instanceOf[Target](s.r, q.GetInstance())
	if err != nil {
		return nil, err
	}
	return appliedToProto(t.Restore(ctx, &RestoreRequest{Place: placeFromProto(q.GetPlace()), Order: orderFromProto(q.GetOrder()), Rollout: q.GetRollout()}))
}

func (s *fleetServer) List(q *pb.ListRequest, stream grpc.ServerStreamingServer[pb.ListResponse]) error {
	f, err := instanceOf[Fleet](s.r, q.GetInstance())
	if err != nil {
		return err
	}
	l, err := f.List(stream.Context())
	if err != nil {
		return err
	}
	return sendListing(l, stream.Send)
}

// partNodes is how many nodes one part of a list holds.
const partNodes = 1000

func sendListing(l *Listing, send func(*pb.ListResponse) error) error {
	part := &pb.ListResponse{Warnings: l.Warnings}
	for _, n := range l.Nodes {
		if len(part.Nodes) == partNodes {
			if err := send(part); err != nil {
				return err
			}
			part = &pb.ListResponse{}
		}
		part.Nodes = append(part.Nodes, &pb.Node{Name: n.Name, Meta: n.Meta})
	}
	part.Last = true
	return send(part)
}
