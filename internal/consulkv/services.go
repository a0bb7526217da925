package consulkv

import (
	"context"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/hashicorp/consul/api"
)

// Services reads the instances of one service once, by the catalog. An entry
// has the node's name, the service's id and its metadata: an instance of ten
// thousand is some 1.5 KB on the wire, and a tenth of that in memory.
func (c *Client) Services(ctx context.Context, service string, q *api.QueryOptions) ([]*api.CatalogService, *api.QueryMeta, error) {
	var out []*api.CatalogService
	meta, err := c.drink(ctx, q, func(d *jsontext.Decoder) error {
		out = []*api.CatalogService{}
		w := words{}
		return eachOf(d, func() error {
			s := &api.CatalogService{ServiceName: service}
			out = append(out, s)
			return eachField(d, func(name []byte) (err error) {
				switch string(name) {
				case "Node":
					s.Node, err = w.shared(d)
				case "ServiceID":
					s.ServiceID, err = w.own(d)
				case "ServiceMeta":
					s.ServiceMeta, err = w.pairs(d)
				default:
					err = d.SkipValue()
				}
				return err
			})
		})
	}, func(q *api.QueryOptions) (*api.QueryMeta, error) {
		_, meta, err := c.api.Catalog().Service(service, "", q)
		return meta, err
	})
	return out, meta, err
}

func (w words) pairs(d *jsontext.Decoder) (map[string]string, error) {
	if d.PeekKind() == 'n' {
		return nil, d.SkipValue()
	}
	out := map[string]string{}
	err := eachField(d, func(name []byte) error {
		// Names come as they are written, with their escapes.
		key, err := jsontext.AppendUnquote(nil, append(append([]byte{'"'}, name...), '"'))
		if err != nil {
			return err
		}
		out[string(key)], err = w.shared(d)
		return err
	})
	return out, err
}
