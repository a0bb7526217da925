package state

import (
	"fmt"

	"github.com/hashicorp/go-memdb"
)

// watchLimit is how many channels one query watches before it watches a whole
// table instead.
const watchLimit = 256

// Instance is a service with the node that it runs on and the checks of both.
type Instance struct {
	Node    *Node
	Service *Service
	Checks  []*Check
}

// Nodes reads all nodes.
func (s *Store) Nodes(ws memdb.WatchSet) (uint64, []*Node, error) {
	tx := s.db().Txn(false)
	out, err := list[*Node](tx, ws, tableNodes, indexPrefix, "")
	return maxIndex(tx, tableNodes), out, err
}

// Services reads all instances of all services.
func (s *Store) Services(ws memdb.WatchSet) (uint64, []*Service, error) {
	tx := s.db().Txn(false)
	out, err := list[*Service](tx, ws, tableServices, indexPrefix, "")
	return maxIndex(tx, tableServices), out, err
}

// NodeServices reads a node and its services; the node is nil where there is none.
func (s *Store) NodeServices(ws memdb.WatchSet, name string) (uint64, *Node, []*Service, error) {
	tx := s.db().Txn(false)
	ch, raw, err := tx.FirstWatch(tableNodes, indexID, name)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("node lookup: %w", err)
	}
	ws.Add(ch)
	node, _ := raw.(*Node)
	if node == nil {
		return maxIndex(tx, indexNodeExtinct), nil, nil, nil
	}
	services, err := list[*Service](tx, ws, tableServices, indexNode, name)
	return maxIndex(tx, nodeIndex(node.Node)), node, services, err
}

// serviceMaxIndex is the index of a service, and the channel that closes when
// anything about it changes, nil where only the instances' own channels tell.
func serviceMaxIndex(tx *memdb.Txn, name string, exists, checks bool) (uint64, <-chan struct{}) {
	if !exists {
		if _, e := watchIndex(tx, indexServiceExtinct); e != nil {
			return e.Value, nil
		}
	}
	if ch, e := watchIndex(tx, serviceIndex(name)); e != nil {
		return e.Value, ch
	}
	names := []string{tableServices, tableNodes}
	if checks {
		names = append(names, tableChecks)
	}
	return maxIndex(tx, names...), nil
}

// ServiceNodes reads the instances of a service, without checks.
func (s *Store) ServiceNodes(ws memdb.WatchSet, name string) (uint64, []Instance, error) {
	tx := s.db().Txn(false)
	services, err := list[*Service](tx, ws, tableServices, indexService, name)
	if err != nil {
		return 0, nil, err
	}
	all, err := tx.Get(tableNodes, indexPrefix, "")
	if err != nil {
		return 0, nil, fmt.Errorf("nodes lookup: %w", err)
	}
	var out []Instance
	for _, svc := range services {
		ch, raw, err := tx.FirstWatch(tableNodes, indexID, svc.Node)
		if err != nil {
			return 0, nil, fmt.Errorf("node lookup: %w", err)
		}
		ws.AddWithLimit(watchLimit, ch, all.WatchCh())
		out = append(out, Instance{Node: raw.(*Node), Service: svc})
	}
	idx, _ := serviceMaxIndex(tx, name, len(out) > 0, false)
	return idx, out, nil
}

// ServiceInstances reads the instances of a service with their checks. It
// watches the service's own index, which every change of them touches.
func (s *Store) ServiceInstances(ws memdb.WatchSet, name string) (uint64, []Instance, error) {
	tx := s.db().Txn(false)
	instances := memdb.NewWatchSet()
	services, err := list[*Service](tx, instances, tableServices, indexService, name)
	if err != nil {
		return 0, nil, err
	}
	idx, ch := serviceMaxIndex(tx, name, len(services) > 0, true)
	if len(services) > 0 && ch != nil {
		ws.Add(ch)
	} else {
		for c := range instances {
			ws.Add(c)
		}
	}
	var out []Instance
	for _, svc := range services {
		node, err := first[*Node](tx, tableNodes, indexID, svc.Node)
		if err != nil {
			return 0, nil, err
		}
		ofNode, err := list[*Check](tx, nil, tableChecks, indexNodeService, svc.Node, "")
		if err != nil {
			return 0, nil, err
		}
		ofService, err := list[*Check](tx, nil, tableChecks, indexNodeService, svc.Node, svc.ID)
		if err != nil {
			return 0, nil, err
		}
		out = append(out, Instance{Node: node, Service: svc, Checks: append(ofNode, ofService...)})
	}
	return idx, out, nil
}

// NodeChecks reads all checks of a node.
func (s *Store) NodeChecks(ws memdb.WatchSet, node string) (uint64, []*Check, error) {
	return s.checks(ws, indexNode, node)
}

// ServiceChecks reads all checks of a service.
func (s *Store) ServiceChecks(ws memdb.WatchSet, service string) (uint64, []*Check, error) {
	return s.checks(ws, indexService, service)
}

// ChecksInState reads all checks in a state, or all, with AnyState.
func (s *Store) ChecksInState(ws memdb.WatchSet, status string) (uint64, []*Check, error) {
	if status == AnyState {
		return s.checks(ws, indexPrefix, "")
	}
	return s.checks(ws, indexStatus, status)
}

func (s *Store) checks(ws memdb.WatchSet, index, arg string) (uint64, []*Check, error) {
	tx := s.db().Txn(false)
	out, err := list[*Check](tx, ws, tableChecks, index, arg)
	return maxIndex(tx, tableChecks), out, err
}

// NodeMeta maps each node to its metadata.
func (s *Store) NodeMeta() (map[string]map[string]string, error) {
	_, nodes, err := s.Nodes(nil)
	if err != nil {
		return nil, err
	}
	meta := make(map[string]map[string]string, len(nodes))
	for _, n := range nodes {
		meta[n.Node] = n.Meta
	}
	return meta, nil
}
