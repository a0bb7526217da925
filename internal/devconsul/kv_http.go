package devconsul

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/hashicorp/go-memdb"

	"github.com/aim-control/aimlock/internal/devconsul/state"
)

const (
	// maxValueSize is Consul's kv_max_value_size, and also its txn_max_req_len: the
	// most bytes of a value, and of a whole transaction.
	maxValueSize = 512 * 1024
	maxTxnOps    = 128

	kvSizeHelp  = "https://www.consul.io/docs/agent/config/config-files#kv_max_value_size"
	txnSizeHelp = "https://www.consul.io/docs/agent/config/config-files#txn_max_req_len"
)

func tooLarge(format string, args ...any) error {
	return httpError{http.StatusRequestEntityTooLarge, fmt.Sprintf(format, args...)}
}

func (s *Server) kv(w http.ResponseWriter, r *http.Request) (any, error) {
	key := strings.TrimPrefix(r.URL.Path, "/v1/kv/")
	switch r.Method {
	case http.MethodPut:
		return s.kvPut(r, key)
	case http.MethodDelete:
		return s.kvDelete(r, key)
	}
	if _, keys := r.URL.Query()["keys"]; keys {
		return s.kvKeys(w, r, key)
	}
	return s.kvGet(w, r, key)
}

func (s *Server) kvGet(w http.ResponseWriter, r *http.Request, key string) (any, error) {
	p := r.URL.Query()
	_, recurse := p["recurse"]
	if key == "" && !recurse {
		return nil, badRequest("Missing key name")
	}
	var entries []*state.KVEntry
	err := s.serve(w, r, func(ws memdb.WatchSet) (idx uint64, err error) {
		if recurse {
			idx, entries, err = s.store.KVList(ws, key)
			return idx, err
		}
		idx, e, err := s.store.KVGet(ws, key)
		if err == nil && e == nil {
			entries, err = nil, errNotFound
		} else {
			entries = []*state.KVEntry{e}
		}
		return idx, err
	})
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		w.WriteHeader(http.StatusNotFound)
		return nil, nil
	}
	if _, raw := p["raw"]; raw && !recurse {
		h := w.Header()
		h.Set("Content-Length", strconv.Itoa(len(entries[0].Value)))
		h.Set("Content-Type", "text/plain")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "sandbox")
		w.Write(entries[0].Value)
		return nil, nil
	}
	return entries, nil
}

func (s *Server) kvKeys(w http.ResponseWriter, r *http.Request, prefix string) (any, error) {
	p := r.URL.Query()
	separator := p.Get("seperator") // as it was once misspelled, and still is by old clients
	if _, ok := p["separator"]; ok {
		separator = p.Get("separator")
	}
	var keys []string
	err := s.serve(w, r, func(ws memdb.WatchSet) (uint64, error) {
		idx, entries, err := s.store.KVList(ws, prefix)
		keys = state.Keys(entries, prefix, separator)
		return idx, err
	})
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 && prefix != "" {
		w.WriteHeader(http.StatusNotFound)
		return nil, nil
	}
	return orEmpty(keys), nil
}

// conflicting refuses more than one of the parameters.
func conflicting(r *http.Request, params ...string) error {
	q := r.URL.Query()
	n := 0
	for _, p := range params {
		if _, ok := q[p]; ok {
			n++
		}
	}
	if n > 1 {
		return badRequest("Conflicting flags: %s", q.Encode())
	}
	return nil
}

func (s *Server) kvPut(r *http.Request, key string) (any, error) {
	if key == "" {
		return nil, badRequest("Missing key name")
	}
	if err := conflicting(r, "cas", "acquire", "release"); err != nil {
		return nil, err
	}
	e := state.KVEntry{Key: key}
	p := r.URL.Query()
	var err error
	if _, ok := p["flags"]; ok {
		if e.Flags, err = strconv.ParseUint(p.Get("flags"), 10, 64); err != nil {
			return nil, err
		}
	}
	_, cas := p["cas"]
	if cas {
		if e.ModifyIndex, err = strconv.ParseUint(p.Get("cas"), 10, 64); err != nil {
			return nil, err
		}
	}
	if r.ContentLength > maxValueSize {
		return nil, tooLarge("Request body(%d bytes) too large, max size: %d bytes. See %s.", r.ContentLength, maxValueSize, kvSizeHelp)
	}
	if e.Value, err = io.ReadAll(http.MaxBytesReader(nil, r.Body, maxValueSize)); err != nil {
		var over *http.MaxBytesError
		if errors.As(err, &over) {
			return nil, tooLarge("Request body too large, max size: %d bytes. See %s.", maxValueSize, kvSizeHelp)
		}
		return nil, fmt.Errorf("read the value of key %q: %w", key, err)
	}
	_, acquire := p["acquire"]
	_, release := p["release"]
	ok := true
	switch {
	case cas:
		ok, err = s.store.KVCAS(e)
	case acquire:
		e.Session = p.Get("acquire")
		ok, err = s.store.KVLock(e)
	case release:
		e.Session = p.Get("release")
		ok, err = s.store.KVUnlock(e)
	default:
		err = s.store.KVSet(e)
	}
	if err != nil {
		return nil, fmt.Errorf("raft apply failed: %w", err)
	}
	return ok, nil
}

func (s *Server) kvDelete(r *http.Request, key string) (any, error) {
	if err := conflicting(r, "recurse", "cas"); err != nil {
		return nil, err
	}
	p := r.URL.Query()
	_, recurse := p["recurse"]
	if key == "" && !recurse {
		return nil, badRequest("Missing key name")
	}
	ok := true
	var err error
	if _, cas := p["cas"]; cas {
		idx, perr := strconv.ParseUint(p.Get("cas"), 10, 64)
		if perr != nil {
			return nil, perr
		}
		ok, err = s.store.KVDeleteCAS(key, idx)
	} else if recurse {
		err = s.store.KVDeleteTree(key)
	} else {
		err = s.store.KVDelete(key)
	}
	if err != nil {
		return nil, fmt.Errorf("raft apply failed: %w", err)
	}
	return ok, nil
}
