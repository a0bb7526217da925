package consulkv

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/hashicorp/consul/api"
)

// ScanTimeout bounds one read of a prefix of any size: a server puts the whole
// answer together before it sends the first byte of it.
const ScanTimeout = 2 * time.Minute

// Head is what a scan knows of a key before its value is decoded. Key and
// Session are valid only during the call that is given them.
type Head struct {
	Key, Session []byte
	Flags        uint64
	LockIndex    uint64
	CreateIndex  uint64
	ModifyIndex  uint64
	// Size is the length of the value in base64, in bytes.
	Size int
}

// Scan reads all keys under a prefix once, and returns those of which keep says
// so, in the order of their keys. However many there are, only those are held
// in memory, and only their values are decoded. After an error keep may have
// been called for a part of the keys; a repeated scan begins anew.
//
// That the token may not read some of them is an error of kind Denied; see Part.
//
// The RequestTime returned is for how long the answer was arriving: the wait of
// a blocking query is left out. It is the same of Sessions and Checks.
func (c *Client) Scan(ctx context.Context, prefix string, q *api.QueryOptions, keep func(*Head) bool) (api.KVPairs, *api.QueryMeta, error) {
	var out api.KVPairs
	none := true
	meta, err := c.drink(ctx, q, func(d *jsontext.Decoder) error {
		s := scanner{d: d, keep: keep, none: true}
		err := s.list()
		out, none = s.out, s.none
		return err
	}, func(q *api.QueryOptions) (*api.QueryMeta, error) {
		_, meta, err := c.api.KV().List(prefix, q)
		return meta, err
	})
	if err == nil && none && ctx.Value(partKey{}) == nil {
		err = c.nothing(ctx, "list "+folder(prefix), prefix)
	}
	return out, meta, err
}

// ErrKeysHidden: what a session holds is not known to who cannot read all keys.
var ErrKeysHidden = errors.New("what else the session holds is not known, since the token may not read all keys: it needs key_prefix \"\" { policy = \"read\" }")

// KeyHeldBy returns a key that the session holds, of which mine does not say that
// it is known, and "" if there is none. Consul has no index of that: all keys are
// read, and none are kept. The error is ErrKeysHidden where the token may not.
func (c *Client) KeyHeldBy(ctx context.Context, session string, mine func(key string) bool) (string, error) {
	hidden := false
	list, err := Retry(ctx, c.ForScan(), "list all keys", func(ctx context.Context) (api.KVPairs, error) {
		pairs, meta, err := c.Scan(Part(ctx), "", &api.QueryOptions{RequireConsistent: true}, func(h *Head) bool {
			return string(h.Session) == session && !mine(string(h.Key))
		})
		hidden = err == nil && meta.ResultsFilteredByACLs
		return pairs, err
	})
	switch {
	case err != nil:
		return "", err
	case len(list) > 0:
		return list[0].Key, nil
	case hidden:
		return "", ErrKeysHidden
	}
	return "", nil
}

// ForScan is the client with a time-out for one request that reads of any size
// keep. A server that stops in mid-answer is noticed by the client's own.
func (c *Client) ForScan() *Client {
	slow := *c
	slow.timeout = max(c.timeout, ScanTimeout)
	return &slow
}

// scanner decodes an answer of the KV store. Its buffers are used again for
// each entry.
type scanner struct {
	d    *jsontext.Decoder
	keep func(*Head) bool
	out  api.KVPairs
	none bool // nothing was read

	head  Head
	value []byte // in quotes, as it came
}

func (s *scanner) list() error {
	return eachOf(s.d, func() error {
		s.none = false
		s.head = Head{Key: s.head.Key[:0], Session: s.head.Session[:0]}
		s.value = s.value[:0]
		if err := eachField(s.d, s.field); err != nil {
			return err
		}
		s.head.Size = max(0, len(s.value)-2)
		if !s.keep(&s.head) {
			return nil
		}
		p := &api.KVPair{
			Key: string(s.head.Key), Session: string(s.head.Session), Flags: s.head.Flags,
			LockIndex: s.head.LockIndex, CreateIndex: s.head.CreateIndex, ModifyIndex: s.head.ModifyIndex,
		}
		if len(s.value) > 2 {
			v := s.value[1 : len(s.value)-1]
			p.Value = make([]byte, base64.StdEncoding.DecodedLen(len(v)))
			n, err := base64.StdEncoding.Decode(p.Value, v)
			if err != nil {
				return fmt.Errorf("value of key %q: %w", p.Key, err)
			}
			p.Value = p.Value[:n:n]
		}
		s.out = append(s.out, p)
		return nil
	})
}

func (s *scanner) field(name []byte) (err error) {
	switch string(name) {
	case "Key":
		s.head.Key, err = readText(s.d, s.head.Key)
	case "Session":
		s.head.Session, err = readText(s.d, s.head.Session)
	case "Value":
		var v jsontext.Value
		if v, err = s.d.ReadValue(); err == nil && v.Kind() == '"' {
			s.value = append(s.value, v...)
		}
	case "Flags":
		s.head.Flags, err = readNumber(s.d)
	case "LockIndex":
		s.head.LockIndex, err = readNumber(s.d)
	case "CreateIndex":
		s.head.CreateIndex, err = readNumber(s.d)
	case "ModifyIndex":
		s.head.ModifyIndex, err = readNumber(s.d)
	default:
		err = s.d.SkipValue()
	}
	return err
}

var errShape = errors.New("its answer is not of the shape that Consul's API has")

// eachOf calls f before each value of an array; null is an empty one.
func eachOf(d *jsontext.Decoder, f func() error) error {
	switch d.PeekKind() {
	case 'n':
		return d.SkipValue()
	case '[':
	case 0:
		_, err := d.ReadToken() // tells the error
		return err
	default:
		return errShape
	}
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	for d.PeekKind() != ']' {
		if err := f(); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	return err
}

// eachField calls f for each member of an object, to read its value. The name
// is valid only until then.
func eachField(d *jsontext.Decoder, f func(name []byte) error) error {
	if d.PeekKind() != '{' {
		if d.PeekKind() == 0 {
			_, err := d.ReadToken()
			return err
		}
		return errShape
	}
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	for d.PeekKind() != '}' {
		v, err := d.ReadValue()
		if err != nil {
			return err
		}
		if err := f(v[1 : len(v)-1]); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	return err
}

// readText appends a string to dst; null is an empty one.
func readText(d *jsontext.Decoder, dst []byte) ([]byte, error) {
	v, err := d.ReadValue()
	switch {
	case err != nil:
		return dst, err
	case v.Kind() == 'n':
		return dst, nil
	case v.Kind() != '"':
		return dst, errShape
	}
	return jsontext.AppendUnquote(dst, v)
}

func readNumber(d *jsontext.Decoder) (uint64, error) {
	v, err := d.ReadValue()
	if err != nil {
		return 0, err
	}
	if v.Kind() != '0' {
		return 0, errShape
	}
	var n uint64
	for _, c := range v {
		digit := uint64(c - '0')
		if digit > 9 || n > math.MaxUint64/10 || n == math.MaxUint64/10 && digit > math.MaxUint64%10 {
			return 0, errShape
		}
		n = n*10 + digit
	}
	return n, nil
}

type sinkKey struct{}

// drink makes a request whose answer is handed to read as it arrives, in place
// of consul/api, which would hold all of it in memory first. The rest of the
// request and of the answer stays with consul/api.
func (c *Client) drink(ctx context.Context, q *api.QueryOptions, read func(*jsontext.Decoder) error,
	request func(*api.QueryOptions) (*api.QueryMeta, error),
) (*api.QueryMeta, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var took time.Duration
	sink := func(body io.Reader) error {
		start := time.Now()
		stall := time.AfterFunc(c.timeout, func() { cancel(errStalled) })
		defer stall.Stop()
		d := jsontext.NewDecoder(lively{body, stall, c.timeout}, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
		err := read(d)
		took = time.Since(start)
		if err != nil && errors.Is(context.Cause(ctx), errStalled) {
			return errStalled
		}
		return err
	}
	meta, err := request(q.WithContext(context.WithValue(ctx, sinkKey{}, sink)))
	if err != nil {
		return nil, err
	}
	meta.RequestTime = took
	return meta, nil
}

var errStalled = errors.New("the answer stopped arriving")

// lively puts off a stall at each read.
type lively struct {
	r     io.Reader
	stall *time.Timer
	after time.Duration
}

func (l lively) Read(p []byte) (int, error) {
	l.stall.Reset(l.after)
	return l.r.Read(p)
}

// drinkOf lets the sink of a request, if it has one, have the answer's data.
func drinkOf(req *http.Request, resp *http.Response) error {
	sink, ok := req.Context().Value(sinkKey{}).(func(io.Reader) error)
	if !ok {
		return nil
	}
	err := sink(resp.Body)
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(strings.NewReader("null"))
	_, syntax := errors.AsType[*jsontext.SyntacticError](err)
	_, corrupt := errors.AsType[base64.CorruptInputError](err)
	if !errors.Is(err, io.ErrUnexpectedEOF) && (syntax || corrupt || errors.Is(err, errShape)) {
		return &notConsulError{what: errShape.Error()}
	}
	return err
}
