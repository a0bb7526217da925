package devconsul

import (
	"errors"
	"net/http"

	"github.com/aim-control/aimlock/internal/devconsul/state"
)

// txnOp is one operation as it comes. Consul also takes Node, Service and Check.
type txnOp struct {
	KV *struct {
		Verb      string
		Key       string
		Value     []byte
		Flags     uint64
		Index     uint64
		Session   string
		Namespace string
		Partition string
	}
	Node    *struct{}
	Service *struct{}
	Check   *struct{}
}

type txnResult struct {
	KV *state.KVEntry `json:",omitempty"`
}

type txnResponse struct {
	Results []txnResult
	Errors  []state.TxnError
}

// txnReadResponse is what a transaction without a write answers with: Consul
// shows it the metadata of a read in the body.
type txnReadResponse struct {
	txnResponse
	Index                 uint64
	LastContact           int64
	KnownLeader           bool
	ConsistencyLevel      string
	NotModified           bool
	Backend               int
	ResultsFilteredByACLs bool
}

func (s *Server) txn(w http.ResponseWriter, r *http.Request) (any, error) {
	ops, err := txnOps(w, r)
	if err != nil {
		return nil, err
	}
	var resp txnResponse
	writes := false
	for _, op := range ops {
		writes = writes || op.Writes()
	}
	var entries []*state.KVEntry
	if writes {
		entries, resp.Errors = s.store.Txn(ops)
	} else {
		if _, err := parseQuery(r); err != nil {
			return nil, err
		}
		entries, resp.Errors = s.store.TxnRead(ops)
		w.Header().Set("X-Consul-LastContact", "0")
		w.Header().Set("X-Consul-KnownLeader", "true")
	}
	code := http.StatusOK
	if len(resp.Errors) > 0 {
		code = http.StatusConflict
	} else {
		resp.Results = make([]txnResult, len(entries))
		for i, e := range entries {
			resp.Results[i].KV = e
		}
	}
	if writes {
		return nil, writeJSON(w, r, code, resp)
	}
	return nil, writeJSON(w, r, code, txnReadResponse{txnResponse: resp, Index: 1, KnownLeader: true})
}

func txnOps(w http.ResponseWriter, r *http.Request) ([]state.KVOp, error) {
	if r.ContentLength > maxValueSize {
		return nil, tooLarge("Request body(%d bytes) too large, max size: %d bytes. See %s.", r.ContentLength, maxValueSize, txnSizeHelp)
	}
	var in []txnOp
	if err := decode(http.MaxBytesReader(w, r.Body, maxValueSize), &in); err != nil {
		var over *http.MaxBytesError
		if errors.As(err, &over) {
			return nil, tooLarge("Request body too large, max size: %d bytes. See %s.", maxValueSize, txnSizeHelp)
		}
		return nil, badRequest("Failed to parse body: %v", err)
	}
	if len(in) > maxTxnOps {
		return nil, tooLarge("Transaction contains too many operations (%d > %d)", len(in), maxTxnOps)
	}
	ops := make([]state.KVOp, 0, len(in))
	for _, op := range in {
		switch {
		case op.KV != nil:
			if op.KV.Namespace != "" || op.KV.Partition != "" {
				return nil, badRequest("Failed to parse body: namespaces and partitions are a Consul Enterprise feature")
			}
			ops = append(ops, state.KVOp{Verb: op.KV.Verb, Entry: state.KVEntry{
				Key: op.KV.Key, Value: op.KV.Value, Flags: op.KV.Flags, Session: op.KV.Session, ModifyIndex: op.KV.Index,
			}})
		case op.Node != nil, op.Service != nil, op.Check != nil:
			return nil, badRequest("Failed to parse body: the embedded Consul takes KV operations only in a transaction")
		}
	}
	return ops, nil
}
