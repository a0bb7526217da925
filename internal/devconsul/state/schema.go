package state

import (
	"fmt"
	"strings"

	"github.com/hashicorp/go-memdb"
)

const (
	tableIndex         = "index"
	tableKV            = "kvs"
	tableTombstones    = "tombstones"
	tableSessions      = "sessions"
	tableSessionChecks = "session_checks"
	tableNodes         = "nodes"
	tableServices      = "services"
	tableChecks        = "checks"

	indexID          = "id"
	indexPrefix      = "id_prefix"
	indexSession     = "session"
	indexNode        = "node"
	indexNodeID      = "uuid"
	indexService     = "service"
	indexNodeService = "node_service"
	indexNodeCheck   = "node_check"
	indexStatus      = "status"
)

// parts indexes objects by the strings that of returns, each ended by a NUL, so
// that no value can run into the next. A prefix query keeps the last string
// open. fold makes it case-insensitive, as Consul's names are (KV keys are not).
type parts struct {
	of   func(obj any) []string
	fold bool
	// optional drops objects whose parts are all empty from the index.
	optional bool
}

var (
	_ memdb.SingleIndexer = parts{}
	_ memdb.PrefixIndexer = parts{}
)

func (p parts) encode(ss []string, open bool) []byte {
	var b strings.Builder
	for i, s := range ss {
		if p.fold {
			s = strings.ToLower(s)
		}
		b.WriteString(s)
		if !open || i < len(ss)-1 {
			b.WriteByte(0)
		}
	}
	return []byte(b.String())
}

func (p parts) FromObject(obj any) (bool, []byte, error) {
	ss := p.of(obj)
	if p.optional && strings.Join(ss, "") == "" {
		return false, nil, nil
	}
	return true, p.encode(ss, false), nil
}

func (p parts) FromArgs(args ...any) ([]byte, error) {
	ss, err := stringArgs(args)
	if err != nil {
		return nil, err
	}
	return p.encode(ss, false), nil
}

func (p parts) PrefixFromArgs(args ...any) ([]byte, error) {
	ss, err := stringArgs(args)
	if err != nil {
		return nil, err
	}
	return p.encode(ss, true), nil
}

func stringArgs(args []any) ([]string, error) {
	ss := make([]string, len(args))
	for i, a := range args {
		s, ok := a.(string)
		if !ok {
			return nil, fmt.Errorf("index argument %d is a %T, not a string", i, a)
		}
		ss[i] = s
	}
	return ss, nil
}

// of1 adapts a typed accessor to parts.of.
func of1[T any](f func(T) []string) func(any) []string {
	return func(obj any) []string { return f(obj.(T)) }
}

func schema() *memdb.DBSchema {
	index := func(name string, unique bool, p parts) *memdb.IndexSchema {
		return &memdb.IndexSchema{Name: name, Unique: unique, AllowMissing: p.optional, Indexer: p}
	}
	table := func(name string, idx ...*memdb.IndexSchema) *memdb.TableSchema {
		t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
		for _, i := range idx {
			t.Indexes[i.Name] = i
		}
		return t
	}
	tables := []*memdb.TableSchema{
		table(tableIndex,
			index(indexID, true, parts{fold: true, of: of1(func(e *indexEntry) []string { return []string{e.Name} })})),
		table(tableKV,
			index(indexID, true, parts{of: of1(func(e *KVEntry) []string { return []string{e.Key} })}),
			index(indexSession, false, parts{fold: true, optional: true, of: of1(func(e *KVEntry) []string { return []string{e.Session} })})),
		table(tableTombstones,
			index(indexID, true, parts{of: of1(func(e *tombstone) []string { return []string{e.Key} })})),
		table(tableSessions,
			index(indexID, true, parts{fold: true, of: of1(func(e *Session) []string { return []string{e.ID} })}),
			index(indexNode, false, parts{fold: true, of: of1(func(e *Session) []string { return []string{e.Node} })})),
		table(tableSessionChecks,
			index(indexID, true, parts{fold: true, of: of1(func(e *sessionCheck) []string { return []string{e.Node, e.CheckID, e.Session} })}),
			index(indexNodeCheck, false, parts{fold: true, of: of1(func(e *sessionCheck) []string { return []string{e.Node, e.CheckID} })}),
			index(indexSession, false, parts{fold: true, of: of1(func(e *sessionCheck) []string { return []string{e.Session} })})),
		table(tableNodes,
			index(indexID, true, parts{fold: true, of: of1(func(e *Node) []string { return []string{e.Node} })}),
			index(indexNodeID, false, parts{fold: true, optional: true, of: of1(func(e *Node) []string { return []string{e.ID} })})),
		table(tableServices,
			index(indexID, true, parts{fold: true, of: of1(func(e *Service) []string { return []string{e.Node, e.ID} })}),
			index(indexNode, false, parts{fold: true, of: of1(func(e *Service) []string { return []string{e.Node} })}),
			index(indexService, false, parts{fold: true, of: of1(func(e *Service) []string { return []string{e.Service} })})),
		table(tableChecks,
			index(indexID, true, parts{fold: true, of: of1(func(e *Check) []string { return []string{e.Node, e.CheckID} })}),
			index(indexNode, false, parts{fold: true, of: of1(func(e *Check) []string { return []string{e.Node} })}),
			index(indexNodeService, false, parts{fold: true, of: of1(func(e *Check) []string { return []string{e.Node, e.ServiceID} })}),
			index(indexService, false, parts{fold: true, optional: true, of: of1(func(e *Check) []string { return []string{e.ServiceName} })}),
			index(indexStatus, false, parts{fold: true, of: of1(func(e *Check) []string { return []string{e.Status} })})),
	}
	db := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range tables {
		db.Tables[t.Name] = t
	}
	return db
}
