package consulkv

import (
	"context"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/hashicorp/consul/api"
)

// Sessions reads all sessions once. An entry has what the API's has but its
// namespace. The answer is also empty, or a part, where the token lacks
// session:read.
func (c *Client) Sessions(ctx context.Context, q *api.QueryOptions) ([]*api.SessionEntry, *api.QueryMeta, error) {
	var out []*api.SessionEntry
	meta, err := c.drink(ctx, q, func(d *jsontext.Decoder) error {
		out = nil
		w := words{}
		return eachOf(d, func() error {
			s := &api.SessionEntry{}
			out = append(out, s)
			return eachField(d, func(name []byte) (err error) {
				switch string(name) {
				case "ID":
					s.ID, err = w.own(d)
				case "Name":
					s.Name, err = w.shared(d)
				case "Node":
					s.Node, err = w.shared(d)
				case "Behavior":
					s.Behavior, err = w.shared(d)
				case "TTL":
					s.TTL, err = w.shared(d)
				case "LockDelay":
					var n uint64
					n, err = readNumber(d)
					s.LockDelay = time.Duration(n)
				case "CreateIndex":
					s.CreateIndex, err = readNumber(d)
				case "NodeChecks":
					s.NodeChecks, err = w.list(d)
				case "ServiceChecks":
					err = eachOf(d, func() error {
						var sc api.ServiceCheck
						err := eachField(d, func(name []byte) (err error) {
							if string(name) != "ID" {
								return d.SkipValue()
							}
							sc.ID, err = w.shared(d)
							return err
						})
						s.ServiceChecks = append(s.ServiceChecks, sc)
						return err
					})
				default:
					err = d.SkipValue()
				}
				return err
			})
		})
	}, func(q *api.QueryOptions) (*api.QueryMeta, error) {
		_, meta, err := c.api.Session().List(q)
		return meta, err
	})
	return out, meta, err
}

// Checks reads the health checks of all nodes that pass a filter, an expression
// of Consul's; empty: all. An entry has node, ids, name, status and output.
func (c *Client) Checks(ctx context.Context, filter string, q *api.QueryOptions) (api.HealthChecks, *api.QueryMeta, error) {
	var out api.HealthChecks
	meta, err := c.drink(ctx, q, func(d *jsontext.Decoder) error {
		out = nil
		w := words{}
		return eachOf(d, func() error {
			h := &api.HealthCheck{}
			out = append(out, h)
			return eachField(d, func(name []byte) (err error) {
				switch string(name) {
				case "Node":
					h.Node, err = w.shared(d)
				case "CheckID":
					h.CheckID, err = w.shared(d)
				case "Name":
					h.Name, err = w.shared(d)
				case "Status":
					h.Status, err = w.shared(d)
				case "Output":
					h.Output, err = w.shared(d)
				case "ServiceID":
					h.ServiceID, err = w.shared(d)
				case "ServiceName":
					h.ServiceName, err = w.shared(d)
				case "ModifyIndex":
					h.ModifyIndex, err = readNumber(d)
				default:
					err = d.SkipValue()
				}
				return err
			})
		})
	}, func(q *api.QueryOptions) (*api.QueryMeta, error) {
		q.Filter = filter
		_, meta, err := c.api.Health().State(api.HealthAny, q)
		return meta, err
	})
	return out, meta, err
}

// words makes strings of an answer, the same one for the same words: most of a
// list of thousands repeat.
type words map[string]string

func (w words) own(d *jsontext.Decoder) (string, error) {
	b, err := readText(d, nil)
	return string(b), err
}

func (w words) shared(d *jsontext.Decoder) (string, error) {
	var buf [128]byte
	b, err := readText(d, buf[:0])
	if s, ok := w[string(b)]; ok {
		return s, err
	}
	s := string(b)
	w[s] = s
	return s, err
}

func (w words) list(d *jsontext.Decoder) ([]string, error) {
	var out []string
	err := eachOf(d, func() error {
		s, err := w.shared(d)
		out = append(out, s)
		return err
	})
	return out, err
}
