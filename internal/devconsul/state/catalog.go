package state

import (
	"fmt"
	"strings"
)

// Names in the index table beside the tables' own. A service or node that is
// gone has no name of its own any more; its readers follow the extinction index,
// so that what they see does not go back.
const (
	indexServiceExtinct = "service_last_extinction"
	indexNodeExtinct    = "node_last_extinction"
)

func serviceIndex(name string) string { return "service." + name }
func nodeIndex(name string) string    { return "node." + name }

// Registration is what catalog/register takes, and what an agent syncs.
type Registration struct {
	Node           *Node
	SkipNodeUpdate bool
	Service        *Service
	Checks         []*Check
}

// Register adds or updates a node, a service on it, and checks.
func (s *Store) Register(r Registration) error {
	_, err := s.write(func(w *wtx) error {
		old, err := first[*Node](w.Txn, tableNodes, indexID, r.Node.Node)
		if err != nil {
			return err
		}
		if old == nil || !r.SkipNodeUpdate && !old.sameAs(r.Node) {
			if err := w.ensureNode(r.Node); err != nil {
				return fmt.Errorf("failed inserting node: %w", err)
			}
		}
		if r.Service != nil {
			r.Service.Node = r.Node.Node
			if err := w.ensureService(r.Service); err != nil {
				return fmt.Errorf("failed inserting service: %w", err)
			}
		}
		for _, c := range r.Checks {
			if !strings.EqualFold(c.Node, r.Node.Node) {
				return fmt.Errorf("Node '%s' for check '%s' doesn't match register request node '%s'", c.Node, c.CheckID, r.Node.Node)
			}
			if c.ServiceID != "" {
				svc, err := first[*Service](w.Txn, tableServices, indexID, c.Node, c.ServiceID)
				if err != nil {
					return err
				}
				if svc == nil {
					return fmt.Errorf("Unknown service ID '%s' for check ID '%s'", c.ServiceID, c.CheckID)
				}
			}
			if err := w.ensureCheck(c); err != nil {
				return fmt.Errorf("failed inserting check on node %q: %w", c.Node, err)
			}
		}
		return nil
	})
	return err
}

// Deregister removes a service or a check of a node, or, with neither, the node
// and all that is on it. What does not exist is no error.
func (s *Store) Deregister(node, serviceID, checkID string) error {
	_, err := s.write(func(w *wtx) error {
		switch {
		case serviceID != "":
			return w.deleteService(node, serviceID)
		case checkID != "":
			return w.deleteCheck(node, checkID)
		}
		return w.deleteNode(node)
	})
	return err
}

func (w *wtx) ensureNode(n *Node) error {
	old, err := first[*Node](w.Txn, tableNodes, indexID, n.Node)
	if err != nil {
		return err
	}
	if n.ID != "" {
		same, err := first[*Node](w.Txn, tableNodes, indexNodeID, n.ID)
		if err != nil {
			return err
		}
		if same != nil && !strings.EqualFold(same.Node, n.Node) {
			if old != nil {
				return fmt.Errorf("Error while renaming Node ID: %q (%s): Node name %s is reserved by node %s with name %s (%s)",
					n.ID, n.Address, n.Node, old.ID, old.Node, old.Address)
			}
			if err := w.deleteNode(same.Node); err != nil {
				return err
			}
		}
		if same == nil && old != nil && old.ID != "" {
			return fmt.Errorf("Error while renaming Node ID: %q: Node name %s is reserved by node %s with name %s (%s)",
				n.ID, n.Node, old.ID, old.Node, old.Address)
		}
	}
	n.CreateIndex, n.ModifyIndex = w.idx, w.idx
	if old != nil {
		n.CreateIndex, n.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if old.sameAs(n) {
			return nil
		}
		n.ModifyIndex = w.idx
	}
	if err := w.Insert(tableNodes, n); err != nil {
		return err
	}
	if err := w.touch(tableNodes, nodeIndex(n.Node)); err != nil {
		return err
	}
	// Health answers show the node with each of its services.
	return w.touchServicesOf(n.Node)
}

func (w *wtx) touchServicesOf(node string) error {
	services, err := list[*Service](w.Txn, nil, tableServices, indexNode, node)
	if err != nil {
		return err
	}
	for _, svc := range services {
		if err := w.touch(serviceIndex(svc.Service)); err != nil {
			return err
		}
	}
	return nil
}

func (w *wtx) ensureService(svc *Service) error {
	node, err := first[*Node](w.Txn, tableNodes, indexID, svc.Node)
	if err != nil {
		return err
	}
	if node == nil {
		return ErrMissingNode
	}
	old, err := first[*Service](w.Txn, tableServices, indexID, svc.Node, svc.ID)
	if err != nil {
		return err
	}
	svc.CreateIndex, svc.ModifyIndex = w.idx, w.idx
	if old != nil {
		svc.CreateIndex = old.CreateIndex
		if old.SameAs(svc) {
			svc.ModifyIndex = old.ModifyIndex
			return nil
		}
	}
	if err := w.Insert(tableServices, svc); err != nil {
		return err
	}
	return w.touch(tableServices, serviceIndex(svc.Service), tableNodes, nodeIndex(svc.Node))
}

// ensureCheck stores a check. A critical one ends the sessions bound to it, also
// when it was critical before.
func (w *wtx) ensureCheck(c *Check) error {
	old, err := first[*Check](w.Txn, tableChecks, indexID, c.Node, c.CheckID)
	if err != nil {
		return err
	}
	c.CreateIndex = w.idx
	if old != nil {
		c.CreateIndex, c.ModifyIndex = old.CreateIndex, old.ModifyIndex
	}
	if c.Status == "" {
		c.Status = Critical
	}
	node, err := first[*Node](w.Txn, tableNodes, indexID, c.Node)
	if err != nil {
		return err
	}
	if node == nil {
		return ErrMissingNode
	}
	var svc *Service
	if c.ServiceID != "" {
		if svc, err = first[*Service](w.Txn, tableServices, indexID, c.Node, c.ServiceID); err != nil {
			return err
		}
		if svc == nil {
			return fmt.Errorf("check %s has no service %s", c.CheckID, c.ServiceID)
		}
		c.ServiceName, c.ServiceTags = svc.Service, svc.Tags
	}
	modified := old == nil || !old.SameAs(c)
	if modified {
		if svc != nil {
			err = w.touch(serviceIndex(svc.Service))
		} else {
			err = w.touchServicesOf(c.Node)
		}
		if err != nil {
			return err
		}
	}
	if c.Status == Critical {
		if err := w.endSessionsOf(c.Node, c.CheckID); err != nil {
			return err
		}
	}
	if !modified {
		return nil
	}
	c.ModifyIndex = w.idx
	if err := w.Insert(tableChecks, c); err != nil {
		return err
	}
	return w.touch(tableChecks)
}

func (w *wtx) deleteCheck(node, checkID string) error {
	c, err := first[*Check](w.Txn, tableChecks, indexID, node, checkID)
	if err != nil || c == nil {
		return err
	}
	if c.ServiceID != "" {
		err = w.touch(serviceIndex(c.ServiceName))
	} else if err = w.touchServicesOf(c.Node); err == nil {
		err = w.touch(tableServices)
	}
	if err != nil {
		return err
	}
	if err := w.Delete(tableChecks, c); err != nil {
		return err
	}
	if err := w.touch(tableChecks); err != nil {
		return err
	}
	return w.endSessionsOf(c.Node, c.CheckID)
}

func (w *wtx) deleteService(node, serviceID string) error {
	svc, err := first[*Service](w.Txn, tableServices, indexID, node, serviceID)
	if err != nil || svc == nil {
		return err
	}
	checks, err := list[*Check](w.Txn, nil, tableChecks, indexNodeService, node, serviceID)
	if err != nil {
		return err
	}
	for _, c := range checks {
		if err := w.deleteCheck(node, c.CheckID); err != nil {
			return err
		}
	}
	if err := w.Delete(tableServices, svc); err != nil {
		return err
	}
	if err := w.touch(tableChecks, tableServices, tableNodes, nodeIndex(svc.Node)); err != nil {
		return err
	}
	left, err := first[*Service](w.Txn, tableServices, indexService, svc.Service)
	if err != nil {
		return err
	}
	if left != nil {
		return w.touch(serviceIndex(svc.Service))
	}
	if _, e := watchIndex(w.Txn, serviceIndex(svc.Service)); e != nil {
		if err := w.Delete(tableIndex, e); err != nil {
			return err
		}
	}
	return w.touch(indexServiceExtinct)
}

// deleteNode removes a node, its services and checks, and ends its sessions.
func (w *wtx) deleteNode(name string) error {
	node, err := first[*Node](w.Txn, tableNodes, indexID, name)
	if err != nil || node == nil {
		return err
	}
	services, err := list[*Service](w.Txn, nil, tableServices, indexNode, name)
	if err != nil {
		return err
	}
	for _, svc := range services {
		if err := w.deleteService(name, svc.ID); err != nil {
			return err
		}
	}
	checks, err := list[*Check](w.Txn, nil, tableChecks, indexNode, name)
	if err != nil {
		return err
	}
	for _, c := range checks {
		if err := w.deleteCheck(name, c.CheckID); err != nil {
			return err
		}
	}
	if err := w.Delete(tableNodes, node); err != nil {
		return err
	}
	if _, e := watchIndex(w.Txn, nodeIndex(name)); e != nil {
		if err := w.Delete(tableIndex, e); err != nil {
			return err
		}
	}
	if err := w.touch(tableNodes, indexNodeExtinct); err != nil {
		return err
	}
	sessions, err := list[*Session](w.Txn, nil, tableSessions, indexNode, name)
	if err != nil {
		return err
	}
	for _, sess := range sessions {
		if err := w.sessionEnd(sess.ID); err != nil {
			return err
		}
	}
	return nil
}
