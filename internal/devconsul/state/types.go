package state

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
)

// Health states of a check.
const (
	Passing  = "passing"
	Warning  = "warning"
	Critical = "critical"
	// AnyState asks for checks in whatever state.
	AnyState = "any"
)

// SerfHealth is the ID of the check that a Consul cluster keeps for each of its nodes.
const SerfHealth = "serfHealth"

// What the end of a session does to the keys that it holds.
const (
	BehaviorRelease = "release"
	BehaviorDelete  = "delete"
)

// MaxLockDelay caps what a session may ask for.
const MaxLockDelay = 60 * time.Second

// KVEntry is one key. Values in the store are never changed in place.
type KVEntry struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte
	Session     string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func (e *KVEntry) clone() *KVEntry {
	c := *e
	return &c
}

// sameAs leaves the indexes out: writing what is there already changes nothing,
// not even ModifyIndex.
func (e *KVEntry) sameAs(o *KVEntry) bool {
	return e.LockIndex == o.LockIndex && e.Key == o.Key && e.Flags == o.Flags &&
		bytes.Equal(e.Value, o.Value) && e.Session == o.Session
}

// tombstone keeps the index of a deletion, so that the index of a prefix does
// not slide back when its newest key is deleted.
type tombstone struct {
	Key   string
	Index uint64
	At    time.Time
}

// ServiceCheck names a service's check in a session.
type ServiceCheck struct {
	ID        string
	Namespace string
}

// Session is a session as the API shows it.
type Session struct {
	ID            string
	Name          string
	Node          string
	LockDelay     time.Duration
	Behavior      string
	TTL           string
	NodeChecks    []string
	ServiceChecks []ServiceCheck
	Checks        []string `json:",omitempty"`
	CreateIndex   uint64
	ModifyIndex   uint64
}

// CheckIDs is every check that the session is bound to.
func (s *Session) CheckIDs() []string {
	ids := slices.Concat(s.Checks, s.NodeChecks)
	for _, c := range s.ServiceChecks {
		ids = append(ids, c.ID)
	}
	return ids
}

// sessionCheck maps a check to a session that it can end.
type sessionCheck struct {
	Node    string
	CheckID string
	Session string
}

// Node is a catalog node.
type Node struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	CreateIndex     uint64
	ModifyIndex     uint64
}

func (n *Node) sameAs(o *Node) bool {
	return n.ID == o.ID && strings.EqualFold(n.Node, o.Node) && n.Address == o.Address &&
		n.Datacenter == o.Datacenter && maps.Equal(n.TaggedAddresses, o.TaggedAddresses) && maps.Equal(n.Meta, o.Meta)
}

// ServiceAddress is a tagged address of a service.
type ServiceAddress struct {
	Address string
	Port    int
}

// Weights are the DNS weights of a service.
type Weights struct {
	Passing int
	Warning int
}

// Service is one instance of a service on a node.
type Service struct {
	Node              string
	ID                string
	Service           string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]ServiceAddress
	Meta              map[string]string
	Port              int
	SocketPath        string
	Weights           Weights
	EnableTagOverride bool
	CreateIndex       uint64
	ModifyIndex       uint64
}

// SameAs tells whether registering o over s would change nothing.
func (s *Service) SameAs(o *Service) bool {
	return strings.EqualFold(s.Node, o.Node) && s.ID == o.ID && s.Service == o.Service && slices.Equal(s.Tags, o.Tags) &&
		s.Address == o.Address && maps.Equal(s.TaggedAddresses, o.TaggedAddresses) && maps.Equal(s.Meta, o.Meta) &&
		s.Port == o.Port && s.SocketPath == o.SocketPath && s.Weights == o.Weights && s.EnableTagOverride == o.EnableTagOverride
}

// Check is a health check in the catalog.
type Check struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  json.RawMessage
	CreateIndex uint64
	ModifyIndex uint64
}

// Clone copies the check itself; its slices are shared and never changed in place.
func (c *Check) Clone() *Check {
	o := *c
	return &o
}

// SameAs tells whether registering o over c would change nothing.
func (c *Check) SameAs(o *Check) bool {
	return strings.EqualFold(c.Node, o.Node) && c.CheckID == o.CheckID && c.Name == o.Name && c.Status == o.Status &&
		c.Notes == o.Notes && c.Output == o.Output && c.ServiceID == o.ServiceID && c.ServiceName == o.ServiceName &&
		slices.Equal(c.ServiceTags, o.ServiceTags) && bytes.Equal(c.Definition, o.Definition)
}
