package consulkv

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/text"
)

// Limits of one transaction, found on Consul 1.14.11: 128 operations, and
// 512 KiB of JSON with values in base64. Some room is left for the frame.
const (
	MaxTxnOps   = 128
	MaxTxnBytes = 500 << 10
)

// Op is one operation of a transaction.
type Op = *api.KVTxnOp

// Results are the answers of a transaction's operations: every one but the
// deletes has one, in order.
type Results []*api.KVPair

// Find returns the last result for key, or nil.
func (r Results) Find(key string) *api.KVPair {
	for i := len(r) - 1; i >= 0; i-- {
		if r[i] != nil && r[i].Key == key {
			return r[i]
		}
	}
	return nil
}

// OpError says why Consul refused one operation of a transaction.
type OpError struct {
	// Index of the operation in the transaction as it was given.
	Index int
	Verb  string
	Key   string
	What  string
}

// Refused is a transaction that Consul rolled back: nothing of it stands.
type Refused struct{ Ops []OpError }

func (e *Refused) Error() string {
	var b strings.Builder
	b.WriteString("transaction refused: ")
	for i, o := range e.Ops {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s %s: %s", o.Verb, o.Key, o.What)
	}
	return b.String()
}

// First returns the first refusal whose key is key.
func (e *Refused) First(key string) (OpError, bool) {
	for _, o := range e.Ops {
		if o.Key == key {
			return o, true
		}
	}
	return OpError{}, false
}

// Txn runs operations atomically, once. The error is nil (it stands), a
// *Refused (it does not), or another, of which Ambiguous tells whether it may
// stand: then read before anything else is done.
func (c *Client) Txn(ctx context.Context, ops ...Op) (Results, error) {
	if len(ops) == 0 {
		return nil, errors.New("transaction of no operations")
	}
	if len(ops) > MaxTxnOps {
		return nil, fmt.Errorf("transaction of %d operations: Consul takes %d at most", len(ops), MaxTxnOps)
	}
	list := make(api.TxnOps, len(ops))
	for i, op := range ops {
		list[i] = &api.TxnOp{KV: op}
	}
	name := "transaction on " + ops[0].Key
	tctx, cancel := context.WithTimeout(ctx, try(ctx, c.timeout))
	defer cancel()
	q := &api.QueryOptions{RequireConsistent: !writes(ops)}
	ok, resp, _, err := c.api.Txn().Txn(list, q.WithContext(tctx))
	if err != nil {
		return nil, c.Classify(name, err)
	}
	if !ok {
		return nil, refusal(ops, resp.Errors, c, name)
	}
	res := make(Results, 0, len(resp.Results))
	for _, r := range resp.Results {
		if r.KV != nil {
			res = append(res, r.KV)
		}
	}
	if err := c.shown(name, ops, res); err != nil {
		return nil, err
	}
	return res, nil
}

// writes tells whether a transaction goes through the log of the servers. One
// that does not is a read, and reads are consistent here.
func writes(ops []Op) bool {
	for _, op := range ops {
		switch op.Verb {
		case api.KVGet, api.KVGetOrEmpty, api.KVGetTree, api.KVCheckSession, api.KVCheckIndex, api.KVCheckNotExists:
		default:
			return true
		}
	}
	return false
}

func refusal(ops []Op, errs api.TxnErrors, c *Client, name string) error {
	ref := &Refused{}
	for _, e := range errs {
		o := OpError{Index: e.OpIndex, What: text.Clip(text.Printable(e.What), maxErrorBody)}
		if e.OpIndex >= 0 && e.OpIndex < len(ops) {
			o.Verb, o.Key = string(ops[e.OpIndex].Verb), ops[e.OpIndex].Key
		}
		if isDenied(e.What) {
			return &Error{Kind: Denied, Op: name, Addr: c.addr, Tries: 1, Err: fmt.Errorf("%s %s: %s", o.Verb, text.Printable(o.Key), o.What)}
		}
		ref.Ops = append(ref.Ops, o)
	}
	return ref
}

// Size is about how many bytes of the transaction's JSON an operation takes;
// never less than it does.
func Size(op Op) int {
	return len(op.Key)*2 + (len(op.Value)+2)/3*4 + len(op.Session) + 160
}

// Set writes a key.
func Set(key string, value []byte) Op {
	return &api.KVTxnOp{Verb: api.KVSet, Key: key, Value: value}
}

// CAS writes a key if its ModifyIndex is index; 0: if it does not exist.
func CAS(key string, value []byte, index uint64) Op {
	return &api.KVTxnOp{Verb: api.KVCAS, Key: key, Value: value, Index: index}
}

// Lock takes a key for a session and writes it.
func Lock(key string, value []byte, session string) Op {
	return &api.KVTxnOp{Verb: api.KVLock, Key: key, Value: value, Session: session}
}

// Unlock ends the hold that session has of key and writes it: without a value
// the old one is erased.
func Unlock(key string, value []byte, session string) Op {
	return &api.KVTxnOp{Verb: api.KVUnlock, Key: key, Value: value, Session: session}
}

// Get reads a key; a missing one refuses the transaction.
func Get(key string) Op { return &api.KVTxnOp{Verb: api.KVGet, Key: key} }

// GetOrEmpty reads a key; a missing one answers with ModifyIndex 0.
func GetOrEmpty(key string) Op { return &api.KVTxnOp{Verb: api.KVGetOrEmpty, Key: key} }

// GetTree reads every key under a prefix; that there is none is no error.
func GetTree(prefix string) Op { return &api.KVTxnOp{Verb: api.KVGetTree, Key: prefix} }

// Delete removes a key; a missing one is no error.
func Delete(key string) Op { return &api.KVTxnOp{Verb: api.KVDelete, Key: key} }

// DeleteCAS removes a key if its ModifyIndex is index; a key that is not there
// any more is no error.
func DeleteCAS(key string, index uint64) Op {
	return &api.KVTxnOp{Verb: api.KVDeleteCAS, Key: key, Index: index}
}

// CheckSession refuses unless session holds key.
func CheckSession(key, session string) Op {
	return &api.KVTxnOp{Verb: api.KVCheckSession, Key: key, Session: session}
}

// CheckIndex refuses unless key's ModifyIndex is index; for 0, unless the key
// does not exist.
func CheckIndex(key string, index uint64) Op {
	if index == 0 {
		return &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: key}
	}
	return &api.KVTxnOp{Verb: api.KVCheckIndex, Key: key, Index: index}
}
